"""The versions that a bitwise repetition would need to match."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch


def describe_versions() -> dict[str, Any]:
    """Return the versions of Python and of the libraries, and torch's number of threads."""
    found = {}
    for name in ("ddpm-lib", "torch", "accelerate", "ema-pytorch", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "python": platform.python_version(), "threads": torch.get_num_threads()}
