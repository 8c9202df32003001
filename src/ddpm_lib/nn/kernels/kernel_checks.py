"""Whether the library's own kernel is there, and computes what torch does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import torch
from torch import nn

from ddpm_lib.core.health import Check
from ddpm_lib.nn.kernels.build import (
    compilers,
    convolution_library,
    gradient_library,
    library,
    orthogonal_library,
)
from ddpm_lib.nn.kernels.group_norm import norm_act
from ddpm_lib.nn.kernels.low_gradient import low_gradient_error
from ddpm_lib.nn.kernels.norm_on_gpu import triton_kernels
from ddpm_lib.nn.kernels.orthogonal_steps import orthogonal_error
from ddpm_lib.nn.kernels.winograd import winograd_error


def check_kernels() -> Iterator[Check]:
    """Say whether there is a compiler, and whether what it made is right; without it training on a
    CPU is slower, and gives the same numbers.
    """
    if sys.platform != "linux":
        yield Check("kernel", "ok", "for Linux only: torch's own operations are used")
        return
    if os.environ.get("DDPM_LIB_KERNELS", "1") == "0":
        yield Check("kernel", "note", "DDPM_LIB_KERNELS=0 turns it off", "unset it")
        return
    found = compilers()
    if not found:
        remedy = "apt install g++ (or set CXX): training on a CPU becomes faster"
        yield Check("compiler", "note", "no g++, c++ or clang++", remedy)
        return
    yield Check("compiler", "ok", ", else ".join(found))
    for name, there, error, most in (
        ("normalisation", library, kernel_error, 1e-4),
        ("convolution", convolution_library, winograd_error, 1e-4),
        ("gradients in bf16", gradient_library, low_gradient_error, 2**-7),
        ("Muon", orthogonal_library, orthogonal_error, 1e-4),
    ):
        yield _checked(name, error() if there() is not None else None, most)


def _checked(name: str, off: float | None, most: float) -> Check:
    """Say whether a kernel is there and right, by its difference from torch's operations and the
    most that this may be.
    """
    if off is None:
        says = "not for this processor, or a line above says why it was not compiled"
        return Check(name, "note", says, "none is needed: torch's own operations are slower")
    if off < most:
        return Check(name, "ok", "its kernel for CPUs is compiled, and agrees with torch's")
    says = f"its kernel for CPUs does not compute what torch does (error {off:.2g})"
    return Check(name, "broken", says, "set DDPM_LIB_KERNELS=0, and report this line")


def check_triton() -> Iterator[Check]:
    """Say whether the kernels for GPUs compute what torch does, on each that is here."""
    if not torch.cuda.is_available():
        return
    for k in range(torch.cuda.device_count()):
        device = torch.device("cuda", k)
        if triton_kernels(device) is None:
            says = f"normalisation on {device} is torch's own: slower where nothing is compiled"
            yield Check("triton", "note", says, "a warning above says why, if it is no choice")
        else:
            says = f"normalisation on {device} is compiled, and agrees with torch's"
            yield Check("triton", "ok", says)


def kernel_error() -> float:
    """Return the largest difference between the kernel and torch's operations."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 6, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    norm = nn.GroupNorm(4, 16)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(16, generator=generator))
        return float((norm_act(x, norm) - torch.nn.functional.silu(norm(x))).abs().max())
