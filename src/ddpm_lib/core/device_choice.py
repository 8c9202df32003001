"""The device that an option names, if it is there."""

from __future__ import annotations

import os

import torch

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.validation import check_device_name


def resolve_device(wanted: str | torch.device) -> torch.device:
    """Return the device to use; with an index where one GPU was asked for, such as "cuda:1".

    Raises:
        ConfigError: If it is not there, saying what is.
    """
    name = check_device_name("device", str(wanted))
    present = {
        "cuda": torch.cuda.is_available(),
        "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kind, _, index = name.partition(":")
    if kind == "auto":
        kind = next(kind for kind, there in present.items() if there)
    if kind == "cuda" and torch.cuda._is_in_bad_fork():
        raise ConfigError(
            "This process was forked from one that had used CUDA, or had only asked for it"
            " (torch.cuda.is_available()), and cannot use it any more. In a notebook: restart the"
            " kernel and call notebook_launcher before any cell that asks, or start the processes"
            " by `!torchrun --nproc_per_node 2 script.py`."
        )
    if name == "auto":
        return torch.device(kind)
    if not present[kind]:
        built = f"torch {torch.__version__}"
        there = ", ".join(name for name, ok in present.items() if ok)
        raise ConfigError(
            f"device={name!r} is not available here ({built}); available: {there}. Use --device"
            " auto."
        )
    if index:
        count = torch.get_device_module(kind).device_count()
        if int(index) >= count:
            only = f"{kind}:0" if count == 1 else f"{kind}:0 … {kind}:{count - 1}"
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES") if kind == "cuda" else None
            also = f" (CUDA_VISIBLE_DEVICES={hidden} hides others)" if hidden else ""
            raise ConfigError(
                f"device={name!r} does not exist: there {'is' if count == 1 else 'are'} {count} of"
                f" that kind, {only}{also}."
            )
    return torch.device(name)
