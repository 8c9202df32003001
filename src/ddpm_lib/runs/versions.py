"""The versions that a bitwise repetition would need to match."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

ARITHMETIC = 6
"""Counts the changes of this library after which a CPU rounds otherwise. 2: squares of the
normalisation kernel are taken about the first position. 3: clipping within Adam's pass.
4: gradients of small convolutions as products. 5: Winograd's convolutions, normalisation in vectors
of a register, Muon in a kernel; on CUDA the learning rate is rounded to float32. 6: the gradient of
convolutions' weights in bf16 with AVX-512 BF16.
"""


def describe_versions() -> dict[str, Any]:
    """Return the versions of Python, libraries and our arithmetic, and torch's threads."""
    found: dict[str, Any] = {}
    for name in ("ddpm-lib", "torch", "accelerate", "ema-pytorch", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    found |= {"python": platform.python_version(), "threads": torch.get_num_threads()}
    return found | {"arithmetic": ARITHMETIC}
