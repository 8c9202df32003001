"""Whether a pixel's channels lie side by side in memory."""

from __future__ import annotations

from ddpm_lib.nn.kernels import library


def use_channels_last(wanted: str, device: str, precision: str) -> bool:
    """Say whether a pixel's channels lie side by side in memory.

    That is the faster layout on GPUs and for float32 on CPUs; in bf16 on CPUs it is with the kernel
    of `nn.kernels` only, because torch's own normalisation then loses more than the convolutions
    gain.
    """
    if wanted == "auto":
        if device == "cpu" and precision == "bf16":
            return library() is not None
        return device in ("cuda", "xpu") or (device == "cpu" and precision == "no")
    return wanted == "yes"
