"""Statistics of measured values, in their units: mean, deviation, quantiles and power spectrum by
channel, and the features of single images that they are means of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.metrics.feature_extractor import Extractor

LEVELS = 256
"""Quantiles of each image and channel that quantiles of a set are taken of; all values where an
image has fewer.
"""
FLOOR = 1e-8
"""Power below this share of the largest counts as this share: what rounding leaves is no spectrum.
"""


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

    P(k) is the mean of |FFT(x)|² / N² over the frequencies whose distance from zero rounds to k, in
    cycles per image along the longest side; N values per image. Its sum, weighted by how many
    frequencies there are, is the variance within images (Parseval).

    Args:
        values: (n, c, *spatial).

    Returns:
        float64 (c, k), for k = 1, 2, … up to half the shortest side.

    >>> radial_spectrum(np.ones((1, 2, 8, 8))).shape
    (2, 4)
    """
    return image_spectra(values).mean(0)


def image_spectra(values: np.ndarray) -> np.ndarray:
    """Return the power of each image, as `radial_spectrum` has that of all: float64 (n, c, k)."""
    spatial = values.shape[2:]
    axes = tuple(range(2, values.ndim))
    centred = values.astype(np.float64)
    centred -= centred.mean(axes, keepdims=True)  # of frequency 0 alone, which is no k
    power = np.abs(np.fft.fftn(centred, axes=axes)) ** 2 / np.prod(spatial) ** 2
    grids = np.meshgrid(*(np.fft.fftfreq(size) for size in spatial), indexing="ij")
    distance = np.sqrt(sum(grid**2 for grid in grids)) * max(spatial)
    ring = np.rint(distance).astype(np.int64).ravel()
    last = max(1, min(spatial) // 2)
    counts = np.bincount(ring, minlength=last + 1)[1 : last + 1]
    every = power.reshape(-1, ring.size)
    sums = [np.bincount(ring, one, minlength=last + 1)[1 : last + 1] for one in every]
    return (np.stack(sums) / np.maximum(counts, 1)).reshape(*values.shape[:2], -1)


def spectrum_distance(samples: np.ndarray, data: np.ndarray) -> tuple[float, np.ndarray]:
    """Return how far apart two power spectra are, in decibels: √ of the mean over wave numbers of
    (10·log₁₀ of their ratio)², the log-spectral distance (Gray & Markel 1976).

    Args:
        samples: Spectra of single samples, (n, k), of one channel (`image_spectra`).
        data: The spectrum that they should have, (k,).

    Returns:
        The distance, 0 where they agree; and its derivative by the weight of each sample, float64
        (n,).

    >>> spectrum_distance(np.full((2, 3), 10.0), np.ones(3))[0]
    10.0
    """
    mean = samples.mean(0)
    floor = FLOOR * max(float(mean.max()), float(data.max()))
    if floor == 0.0:  # both are constant
        return 0.0, np.zeros(len(samples))
    power = np.maximum(mean, floor)
    decibels = 10 * np.log10(power / np.maximum(data, floor))
    distance = float(np.sqrt((decibels**2).mean()))
    slope = np.where(mean > floor, decibels / power, 0.0) * (10 / np.log(10))
    slope = slope / (len(decibels) * max(distance, 1e-12))
    return distance, (samples - mean) @ slope


class Values(Extractor):
    """Facts of single images of which the statistics of a set are means.

    Layers: "moments" (mean and variance of each channel), "levels" (`LEVELS` quantiles of each) and
    "spectrum" (its `image_spectra`). The call takes float64 (n, c, *spatial).
    """

    def __init__(self, layers: Sequence[str], device: torch.device) -> None:
        self._layers = tuple(layers)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 (n, d) by layer, the channels one after the other."""
        values = images.detach().cpu().double().numpy()
        found = {name: _FACTS[name](values) for name in self._layers}
        return {
            name: torch.from_numpy(fact).flatten(1).float().to(images.device)
            for name, fact in found.items()
        }


def _moments(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(*values.shape[:2], -1)
    return np.concatenate([flat.mean(2), flat.var(2)], 1)


def _levels(values: np.ndarray) -> np.ndarray:
    ordered = np.sort(values.reshape(*values.shape[:2], -1), axis=2)
    n = ordered.shape[2]
    if n <= LEVELS:
        return ordered
    return ordered[:, :, ((np.arange(LEVELS) + 0.5) / LEVELS * n).astype(np.int64)]


_FACTS = {"moments": _moments, "levels": _levels, "spectrum": image_spectra}
