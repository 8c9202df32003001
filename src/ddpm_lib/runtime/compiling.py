"""torch.compile of the parts of a network that repeat, so that compiling takes seconds to a minute
and not many.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ddpm_lib.core.caching import cache_folder
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import try_writing
from ddpm_lib.runtime.limits import available_cpus, local_world_size

_LIMIT = 256
"""Shapes of one region that are compiled: every width and resolution of a U-Net is one, in training
and in evaluation.
"""


def wants_compile(wanted: bool | Literal["auto"], device: str) -> bool:
    """Say whether to compile: auto is yes on CUDA where Triton is installed, no elsewhere."""
    if wanted == "auto":
        return device == "cuda" and importlib.util.find_spec("triton") is not None
    return wanted


def share_compilation() -> None:
    """Let Inductor and Triton keep what they compile in the library's cache, or in the system's
    temporary folder where that cannot be written to, and divide the CPUs that compile among the
    processes of this machine.

    Who has set TORCHINDUCTOR_CACHE_DIR, TRITON_CACHE_DIR or TORCHINDUCTOR_COMPILE_THREADS is left
    alone.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_writing(folder)
    except OSError:  # a home that is full, read-only or not there, as on nodes of clusters
        folder = _temporary_folder()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        threads = max(1, available_cpus() // local_world_size())
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(threads)
        config: Any = sys.modules.get("torch._inductor.config")
        if config is not None:  # which reads the variable when it is imported
            config.compile_threads = min(threads, config.compile_threads)


def _temporary_folder() -> Path:
    """Return a folder of this user's among the system's temporary ones; code is loaded from it, so
    one that somebody else has made is not taken.
    """
    if hasattr(os, "getuid"):
        folder = Path(tempfile.gettempdir()) / f"ddpm_lib-compiled-{os.getuid()}"
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            about = folder.lstat()
            safe = stat.S_ISDIR(about.st_mode) and not about.st_mode & 0o022
            if safe and about.st_uid == os.getuid():
                return folder
    return Path(tempfile.mkdtemp(prefix="ddpm_lib-compiled-"))


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
    share_compilation()
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
