"""Dropout whose mask is a hash of a seed and the position, so that nobody draws or stores it.

This is the plain form of what the C++ kernel does inside the normalisation, bit for bit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def threshold_of(p: float) -> int:
    """Return the 32-bit number below which a position's hash drops it, for a probability p < 1."""
    return min(round(p * 2**32), 2**32 - 1)


def draw_seed() -> int:
    """Draw the seed of one mask from torch's global generator: whoever seeds that, or sets it back
    as gradient checkpointing does, gets the same mask again.
    """
    return int(torch.randint(2**63 - 1, (), device="cpu"))


def kept(seed: int, shape: tuple[int, int, int], p: float) -> Tensor:
    """Say which elements stay.

    SplitMix64 (Steele et al. 2014) of the seed and the row gives 64 bits; these and the channel
    go through a 32-bit finaliser, whose result is compared with p·2³².

    Args:
        seed: Names the mask, 0 … 2⁶³ - 1.
        shape: Samples, positions and channels.
        p: Probability of being dropped, in [0, 1).

    Returns:
        Boolean tensor of that shape on the CPU.
    """
    n, rows, channels = shape
    row = np.arange(1, n * rows + 1, dtype=np.uint64)
    key = np.uint64(seed) + row * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    key = key ^ (key >> np.uint64(31))
    low = (key & np.uint64(0xFFFFFFFF)).astype(np.uint32)[:, None]
    high = (key >> np.uint64(32)).astype(np.uint32)[:, None]
    h = (np.arange(channels, dtype=np.uint32) * np.uint32(0x9E3779B9))[None] ^ low
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15)) ^ high) * np.uint32(0x846CA68B)
    h = h ^ (h >> np.uint32(16))
    return torch.from_numpy(h >= np.uint32(threshold_of(p))).view(n, rows, channels)


def drop_by_position(x: Tensor, seed: int, p: float) -> Tensor:
    """Set elements of x (b, c, *spatial) to zero, the others times 1 / (1 - p), which keeps the
    mean.

    Args:
        x: Feature map on a CPU.
        seed: Names the mask.
        p: Probability of being dropped, in [0, 1).
    """
    b, c = x.shape[:2]
    spatial = x.shape[2:]
    mask = kept(seed, (b, spatial.numel(), c), p).view(b, *spatial, c).movedim(-1, 1)
    scale = 1 / (1 - threshold_of(p) / 2**32)
    return x * (mask.to(x.dtype) * scale)
