"""Randomness as a function: every draw is named by integers and words, so that nothing has to be
saved to repeat it.

A key is a 64-bit integer mixed from its parts by SplitMix64 (Steele, Lea & Flood 2014). Integers
only: the same on every platform and in every version of numpy and torch. `uniform` and
`permutation` are built on the keys alone; `generator` seeds a torch generator, for Gaussian noise
made on the device.
"""

from __future__ import annotations

import logging
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("ddpm_lib")

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def key(*parts: int | str) -> int:
    """Mix integers and words into one 64-bit key; the order of the parts matters.

    >>> key(0, "order", 1) == key(0, "order", 1), key(0, "order", 1) == key(1, "order", 0)
    (True, False)
    """
    state = 0
    for part in parts:
        words = [part & _MASK] if isinstance(part, int) else [len(part), *part.encode()]
        for word in words:
            state = _mix((state + _GOLDEN + word) & _MASK)
    return state


def check_seed(seed: Any) -> int:
    """Return a seed as a whole number; None stands for a fresh one, which is drawn from the system
    and logged.

    Raises:
        TypeError: If it is no whole number.
    """
    if seed is None:
        import secrets

        drawn = secrets.randbits(31)
        logger.info("seed=None: drew the seed %d", drawn)
        return drawn
    try:
        return operator.index(seed)
    except TypeError:
        raise TypeError(
            f"A seed must be a whole number, or None for a fresh one; got {type(seed).__name__}."
        ) from None


def hashes(counters: Tensor | np.ndarray, *parts: int | str) -> np.ndarray:
    """Hash int64 counters under a key: uint64, the same shape, independent of what else is
    hashed.
    """
    z = np.asarray(counters, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(key(*parts)) + (z + np.uint64(1)) * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def uniform(counters: Tensor | np.ndarray, *parts: int | str) -> Tensor:
    """Draw one number per counter, uniform in [0, 1): float64 on the CPU, 53 random bits each."""
    return torch.from_numpy(
        (hashes(counters, *parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    )


def permutation(n: int, *parts: int | str) -> np.ndarray:
    """Return a permutation of 0 … n-1 as int64: the order of the hashes of the indices."""
    return np.argsort(hashes(np.arange(n), *parts), kind="stable").astype(np.int64)


def generator(device: torch.device | str, index: int, *parts: int | str) -> torch.Generator:
    """Seed a torch generator on `device` for draw number `index` of the stream named by `parts`.

    The CPU generator keeps only the low 32 bits of a seed. Counting upwards from the stream's key
    instead of hashing the index keeps 2³² draws of one stream apart from each other.
    """
    return torch.Generator(device).manual_seed((key(*parts) + index) & _MASK >> 1)
