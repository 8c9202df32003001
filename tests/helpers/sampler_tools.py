"""Known laws and exact denoisers to run samplers on, in float64."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.samplers import (
    Prediction,
    Sampler,
    sample_loop,
)
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.variance import FixedSmall
from process_tools import gaussian_diffusion

MU, S = 0.3, 0.5
RANDOM = ("ddpm", "dpmpp_2m_sde")
"""Samplers that draw noise with their default options."""


def _pixel(value: float) -> Tensor:
    return torch.full((1, 1), value, dtype=torch.float64)


def one_pixel(
    schedule: Schedule, mu: float = MU, s: float = S, **options: object
) -> GaussianDiffusion:
    return gaussian_diffusion(_pixel(mu), _pixel(s), schedule, "v", **options)


def moments(
    sampler: Sampler,
    predict: Callable[[Tensor, Level], Prediction],
    levels: list[Level],
    level_at: Callable[[float], Level] | None = None,
    mu: float = MU,
    s: float = S,
) -> tuple[float, float]:
    """Return the exact mean and standard deviation of what a sampler makes, in float64, without
    Monte Carlo.

    Row 0 has neither start nor noise and gives the constant, row 1 starts at 1, row 2 + k gets 1 as
    the k-th noise.
    """
    rows = 2 + 2 * len(levels)
    start = torch.zeros(rows, 1, 1, dtype=torch.float64)
    start[1] = 1
    drawn = 0

    def noise() -> Tensor:
        nonlocal drawn
        z = torch.zeros(rows, 1, 1, dtype=torch.float64)
        z[2 + drawn] = 1
        drawn += 1
        return z

    x = sample_loop(sampler, start, levels, predict, noise, level_at=level_at or between).flatten()
    response = x[1:] - x[0]
    first = levels[0]
    mean = float(x[0] + response[0] * first.alpha * mu)
    variance = float(
        response[0] ** 2 * (first.alpha**2 * s**2 + first.sigma**2) + response[1:].square().sum()
    )
    return mean, math.sqrt(variance)


def between(log_snr: float) -> Level:
    """Return a level of no particular schedule."""
    return Level.of_log_snr(math.nan, log_snr)


def log_snr_grid(first: float, last: float, steps: int) -> list[Level]:
    return [between(first + (last - first) * k / steps) for k in range(steps + 1)]


def gaussian_predict(x: Tensor, level: Level) -> Prediction:
    away = (x - level.alpha * MU) / (level.alpha**2 * S**2 + level.sigma**2)
    return Prediction(MU + level.alpha * S**2 * away, level.sigma * away, FixedSmall())


def mixture_predict(x: Tensor, level: Level) -> Prediction:
    """The exact denoiser of 0.3·N(−0.6, 0.2²) + 0.7·N(0.5, 0.1²)."""
    weight, mu, s = (
        torch.tensor(v, dtype=torch.float64) for v in ((0.3, 0.7), (-0.6, 0.5), (0.2, 0.1))
    )
    variance = level.alpha**2 * s**2 + level.sigma**2
    away = x[..., None] - level.alpha * mu
    share = torch.softmax(weight.log() - 0.5 * variance.log() - 0.5 * away**2 / variance, -1)
    x0 = (share * (mu + level.alpha * s**2 / variance * away)).sum(-1)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma, FixedSmall())


CENTRES = (
    0.7
    * torch.tensor(
        [[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)]
    ).double()
)
SPREAD = 0.08


def ring_predict(x: Tensor, level: Level) -> Prediction:
    """The exact denoiser of eight round Gaussians on a circle; x is (b, 2)."""
    variance = level.alpha**2 * SPREAD**2 + level.sigma**2
    away = x[:, None] - level.alpha * CENTRES
    share = torch.softmax(-0.5 * away.square().sum(-1) / variance, -1)
    x0 = (share[..., None] * (CENTRES + level.alpha * SPREAD**2 / variance * away)).sum(1)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma, FixedSmall())


def refuse() -> Tensor:
    """Stand in for noise where none may be drawn."""
    raise AssertionError("drew noise")
