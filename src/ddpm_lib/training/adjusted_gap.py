"""The gap between held-out and training images, without what the two sets differ by anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.images import to_model_range
from ddpm_lib.time_sampling import spread_levels

FEWEST_PAIRS = 8
"""Pairs of images from which on their sets' offset is estimated."""
SPECTRUM_IMAGES = 128
"""Training images, spread over the set, that the spectrum is taken of."""
BLOCK = 16
"""Images that are transformed at a time."""


@dataclass(frozen=True)
class LinearDenoiser:
    """The best linear denoiser that is the same everywhere: Wiener's filter for the spectrum of the
    data, averaged over directions.

    It knows a number per frequency, so it cannot remember an image; but what is hard for it, detail
    and contrast, is hard for every denoiser. That makes it the reference for what two sets of
    images differ by.

    Attributes:
        mean: Of each channel, in [-1, 1], float32 (c, 1, …).
        power: Of each frequency, as `torch.fft.fftn` orders them, float32 (*spatial).
    """

    mean: Tensor
    power: Tensor

    @classmethod
    def of(cls, images: Tensor) -> LinearDenoiser:
        """Measure mean and spectrum.

        Args:
            images: Training images (n, c, *spatial), uint8 or float in [0, 1].
        """
        blocks, space = images.split(BLOCK), tuple(range(2, images.ndim))
        sums = torch.stack([to_model_range(x).sum(dim=(0, *space)) for x in blocks]).sum(0)
        size = tuple(images.shape[2:])
        mean = (sums / (len(images) * math.prod(size))).view(-1, *[1] * len(size))
        spectrum = torch.zeros(size)
        for x in blocks:
            found = torch.fft.fftn(to_model_range(x) - mean, dim=space)
            spectrum += found.abs().square().mean(1).sum(0) / (len(images) * math.prod(size))
        ring = _rings(size)
        of_ring = torch.zeros(int(ring.max()) + 1).index_add_(0, ring.flatten(), spectrum.flatten())
        return cls(mean, (of_ring / torch.bincount(ring.flatten()))[ring])

    def errors(
        self, diffusion: GaussianDiffusion, images: Tensor, t: Tensor, noise: Tensor
    ) -> Tensor:
        """Return w_t·‖x_0 − x̂_0(x_t)‖², averaged over the values of each image, float64 (b,).

        Args:
            diffusion: Its schedule and weighting are used, not its network.
            images: Images (b, c, *spatial), uint8 or float in [0, 1].
            t: Levels in 1 … T, (b,).
            noise: ε, the shape of the images.
        """
        space = tuple(range(2, images.ndim))
        x0 = to_model_range(images) - self.mean
        alpha, sigma = (
            v.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1)) for v in diffusion.schedule.gather(t)
        )
        keep = alpha * self.power / (alpha.square() * self.power + sigma.square())
        spectrum = torch.fft.fftn(alpha * x0 + sigma * noise, dim=space)
        found = torch.fft.ifftn(spectrum * keep, dim=space).real
        weight = diffusion.weighting(diffusion.schedule.snr[1:])[t - 1]
        return weight.double() * (x0 - found).double().square().flatten(1).mean(1)


def _rings(size: tuple[int, ...]) -> Tensor:
    """Return the distance of each frequency from 0, in steps of the longest side, int64 (*size)."""
    square = torch.zeros(size)
    for axis, n in enumerate(size):
        shape = [1] * len(size)
        shape[axis] = n
        square = square + torch.fft.fftfreq(n).view(shape).square()
    return (square.sqrt() * max(size)).round().long()


@dataclass(frozen=True)
class AdjustedGap:
    """A gap and the part of it that the two sets explain.

    Attributes:
        offset: What the sets differ by without any over-fitting, in units of the loss.
        gap: The gap minus the offset.
        error: Standard error of `gap`.
    """

    offset: float
    gap: float
    error: float


def adjusted_gap(
    held_out: Tensor, train: Tensor, reference: Tensor, timesteps: int
) -> AdjustedGap | None:
    """Take out of a gap what a reference that cannot remember finds between the same two sets.

    Sixty-four images differ from sixty-four others of the same kind by a tenth of their loss, only
    because some are plainer. With d_i the differences between the paired losses of the network, and
    s_i those of the reference, d_i = gap + β·s_i + rest (analysis of covariance, Fisher 1932; as a
    control variate, Owen 2013, §8.9). β·mean(s) is the offset; subtracting mean(s) itself, as if β
    were 1, would add noise where the reference is worse than the network.

    Args:
        held_out: Losses (n,) of held-out images.
        train: Losses (n,) of training images; row i of both has the level and the noise of row i.
        reference: Differences s (n,), held-out minus training.
        timesteps: T.

    Returns:
        The gap; None with fewer than `FEWEST_PAIRS` pairs, or where something is not finite.
    """
    n = len(reference)
    if n < FEWEST_PAIRS or not len(held_out) == len(train) == n:
        return None
    d, s = (held_out - train).double(), reference.double()
    if not bool(torch.isfinite(d).all() and torch.isfinite(s).all()):
        return None
    spread = float((s - s.mean()).square().sum())
    if spread == 0.0:
        return AdjustedGap(0.0, float(d.mean()), mean_error(d, timesteps))
    slope = float(((s - s.mean()) * d).sum()) / spread
    offset, rest = slope * float(s.mean()), d - slope * s
    unsure = 1.0 + n * float(s.mean()) ** 2 / spread  # of the slope, far from where s lies
    error = mean_error(rest, timesteps) * (unsure * n / (n - 2)) ** 0.5
    return AdjustedGap(offset, float(rest.mean()), error)


def mean_error(values: Tensor, timesteps: int) -> float:
    """Return the standard error of the mean of losses whose levels are spread evenly.

    How they depend on the levels is no error: what counts is how rows of neighbouring levels
    differ, Σ(l_{i+1} − l_i)² / (2(n−1)), the estimate for systematic samples (Wolter 2007, §8.2).

    Args:
        values: Losses, or differences of paired ones, (n,).
        timesteps: T.

    Returns:
        The error; NaN where there is one row only.
    """
    n = len(values)
    if n < 2:
        return float("nan")
    order = torch.argsort(spread_levels(np.arange(n), timesteps), stable=True)
    steps = values.double()[order].diff()
    return float((steps.square().sum() / (2 * (n - 1)) / n).sqrt())
