"""torch.compile of the parts of a network that repeat, so that compiling takes seconds to a minute
and not many.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from ddpm_lib.core.caching import cache_folder
from ddpm_lib.core.errors import ConfigError

_LIMIT = 256
"""Shapes of one region that are compiled: every width and resolution of a U-Net is one, in training
and in evaluation.
"""


def wants_compile(wanted: bool | Literal["auto"], device: str) -> bool:
    """Say whether to compile: auto is yes on CUDA where Triton is installed, no elsewhere."""
    if wanted == "auto":
        return device == "cuda" and importlib.util.find_spec("triton") is not None
    return wanted


def compile_regions(
    model: nn.Module, wanted: bool | Literal["auto"], log: Callable[[str], None]
) -> None:
    """Compile a network in place, region by region if it declares `regions()`, else as a whole; for
    training or for sampling.

    Regions of one class and shape share what is compiled, and Inductor keeps it on disk for the
    next run. The names of the weights do not change.

    Args:
        model: The network, on its device.
        wanted: True: a region that cannot be compiled is an error; "auto": it runs uncompiled.
        log: Gets one line.

    Raises:
        ConfigError: If torch.compile does not work with this Python at all.
    """
    declared = getattr(model, "regions", None)
    regions: list[nn.Module] = declared() if declared is not None else [model]
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    settings = torch._dynamo.config
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(settings, name, max(_LIMIT, getattr(settings, name)))
    try:
        for region in regions:
            region.compile(dynamic=False)
    except RuntimeError as error:
        if wanted != "auto":
            raise ConfigError(
                f"torch.compile does not work here: {error} Use compile=False."
            ) from error
        log(f"Not compiled: {error}")
        return
    if wanted == "auto":
        settings.suppress_errors = True  # for the whole process: there is no narrower switch
    log(
        f"Compiling {len(regions)} regions of the network as they are first used (kept in the cache"
        " for the next run)."
    )
