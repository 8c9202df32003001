"""Copies to the device that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a small tensor without making the host wait: from page-locked memory, because other
    copies stand in line.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=copies_by_itself(device))


def copies_by_itself(device: torch.device) -> bool:
    """Say whether a copy to the device may go on alone while its source is freed.

    Not on MPS, which reads the memory later and finds what lies there then (pytorch#189690).
    """
    return device.type in ("cuda", "xpu")
