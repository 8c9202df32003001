"""Making images, sequences and volumes smaller by a whole factor, as good picture programs do it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def shrink(x: Tensor, factor: int) -> Tensor:
    """Return x (b, c, *spatial) at 1/factor of its size in every direction, by antialiased bicubic interpolation.

    Each output value is the mean of its 4·factor nearest inputs along a direction, weighted by Keys' cubic (1981, a = −1/2)
    stretched by the factor, and normalised where it hangs over the border. That is what Pillow's BICUBIC does, with which
    this library fits pictures to a size. It may overshoot the range of x next to edges.

    Args:
        x: Floating point, every spatial size divisible by the factor.
        factor: How many times smaller, at least 1.

    Raises:
        ValueError: If a size is not divisible by the factor, naming the nearest ones that are.

    >>> shrink(torch.arange(8.0).view(1, 1, 8), 2).shape
    torch.Size([1, 1, 4])
    """
    check_divisible(x.shape[2:], factor)
    if factor == 1:
        return x
    # Mixed precision would round the pixels to three digits.
    with torch.autocast(x.device.type, enabled=False):
        for axis in range(2, x.ndim):
            weights = _weights(x.shape[axis], factor).to(x)
            x = (x.movedim(axis, -1) @ weights).movedim(-1, axis)
    return x.contiguous()


def nearest_multiples(size: Sequence[int], factor: int) -> str:
    """Word the nearest sizes that are divisible by the factor in every direction.

    >>> nearest_multiples((30, 33), 8), nearest_multiples((16,), 8)
    ('24×32 or 32×40', '16')
    """
    down = "×".join(str(max(s // factor, 1) * factor) for s in size)
    up = "×".join(str(max(math.ceil(s / factor), 1) * factor) for s in size)
    return f"{down} or {up}" if up != down else down


def check_divisible(size: Sequence[int], factor: int) -> None:
    """Raise ValueError where a spatial size is not divisible by the factor."""
    if any(s < 1 or s % factor for s in size):
        raise ValueError(
            f"The image size {'×'.join(map(str, size))} must be divisible by {factor}, the factor between it and its "
            f"smaller copy. The nearest sizes that fit: {nearest_multiples(size, factor)}."
        )


@lru_cache(maxsize=32)
def _weights(size: int, factor: int) -> Tensor:
    """Return the matrix (size, size // factor) that shrinks one direction, float64."""
    centres = (torch.arange(size // factor, dtype=torch.float64) + 0.5) * factor
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    d = ((pixels[:, None] - centres) / factor).abs()
    near = 1.5 * d**3 - 2.5 * d**2 + 1.0
    far = -0.5 * d**3 + 2.5 * d**2 - 4.0 * d + 2.0
    weights = torch.where(d < 1, near, torch.where(d < 2, far, 0.0))
    return weights / weights.sum(0)
