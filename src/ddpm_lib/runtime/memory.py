"""Memory of a device: what is free, and whether an error means that there is none."""

from __future__ import annotations

from typing import Any

import torch

_FULL = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "host_allocation_failed",
    "unable to find an engine",
)
"""What errors of a full device say; cuBLAS and cuDNN have words of their own for it."""


def device_module(device: torch.device) -> Any:
    """Return torch.cuda or torch.xpu, which count the memory of their devices under the same
    names.
    """
    return torch.get_device_module(device)


def free_bytes(device: torch.device) -> int:
    """Return how much this process can still allocate on a device; ranks of one machine share its
    RAM.
    """
    from ddpm_lib.runtime.limits import available_memory, local_world_size

    if device.type in ("cuda", "xpu"):
        memory = device_module(device)
        return int(
            memory.mem_get_info(device)[0]
            + memory.memory_reserved(device)
            - memory.memory_allocated(device)
        )
    return available_memory() // local_world_size()


def is_out_of_memory_error(error: BaseException) -> bool:
    """Say whether an error means that the device, or the machine, has no more memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _FULL)
    )


def memory_numbers(device: torch.device) -> str:
    """Word how much memory a device, or the machine, has left."""
    gib = 2.0**30
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held, most = (
            torch.cuda.memory_reserved(device) / gib,
            torch.cuda.max_memory_allocated(device) / gib,
        )
        return (
            f"{free / gib:.2f} of {total / gib:.2f} GiB free on {device}; this process holds"
            f" {held:.2f} GiB and used {most:.2f} at most"
        )
    from ddpm_lib.runtime.limits import available_memory

    return f"{available_memory() / gib:.2f} GiB of memory free"
