"""Whether a pixel's channels lie side by side in memory."""

from __future__ import annotations

import torch

from ddpm_lib.nn.kernels import library


def use_channels_last(wanted: str, device: str, precision: str) -> bool:
    """Say whether a pixel's channels lie side by side in memory.

    That is the faster layout on GPUs and for float32 on CPUs; in bf16 on CPUs it is with the kernel
    of `nn.kernels` only, because torch's own normalisation then loses more than the convolutions
    gain. GPUs of NVIDIA before Ampere (compute capability 8) convolve float32 faster without it.
    """
    if wanted == "auto":
        if device == "cpu" and precision == "bf16":
            return library() is not None
        if device == "cuda" and precision == "no" and torch.version.hip is None:
            return torch.cuda.get_device_capability() >= (8, 0)
        return device in ("cuda", "xpu") or (device == "cpu" and precision == "no")
    return wanted == "yes"
