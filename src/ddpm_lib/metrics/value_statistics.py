"""Statistics of measured values, in their units: mean, deviation and power spectrum by channel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ValueStatistics(NamedTuple):
    """What a set of images of measured values is like.

    Attributes:
        mean: Of each channel, in units of the data, float64 (c,).
        std: Standard deviation of each channel, over images and places, float64 (c,).
        spectrum: Power by wave number of each channel, see `radial_spectrum`, float64 (c, k).
    """

    mean: np.ndarray
    std: np.ndarray
    spectrum: np.ndarray


def value_statistics(values: np.ndarray) -> ValueStatistics:
    """Return mean, deviation and spectrum of images.

    Args:
        values: (n, c, *spatial), such as `diffusion.normalization.inverse(samples)` gives them.
    """
    flat = np.moveaxis(values.astype(np.float64), 1, 0).reshape(values.shape[1], -1)
    return ValueStatistics(flat.mean(1), flat.std(1), radial_spectrum(values))


def radial_spectrum(values: np.ndarray) -> np.ndarray:
    """Return the power of each channel by wave number, mean over images and directions.

    P(k) is the mean of |FFT(x − mean)|² / N² over the frequencies whose distance from zero rounds
    to k, in cycles per image along the longest side; N values per image. Its sum, weighted by how
    many frequencies there are, is the variance (Parseval).

    Args:
        values: (n, c, *spatial).

    Returns:
        float64 (c, k), for k = 1, 2, … up to half the shortest side.

    >>> radial_spectrum(np.ones((1, 2, 8, 8))).shape
    (2, 4)
    """
    spatial = values.shape[2:]
    axes = tuple(range(2, values.ndim))
    centred = values.astype(np.float64)
    centred -= centred.mean((0, *axes), keepdims=True)
    power = (np.abs(np.fft.fftn(centred, axes=axes)) ** 2).mean(0) / np.prod(spatial) ** 2
    grids = np.meshgrid(*(np.fft.fftfreq(size) for size in spatial), indexing="ij")
    distance = np.sqrt(sum(grid**2 for grid in grids)) * max(spatial)
    ring = np.rint(distance).astype(np.int64).ravel()
    last = max(1, min(spatial) // 2)
    counts = np.bincount(ring, minlength=last + 1)[1 : last + 1]
    sums = [np.bincount(ring, one.ravel(), minlength=last + 1)[1 : last + 1] for one in power]
    return np.stack(sums) / np.maximum(counts, 1)
