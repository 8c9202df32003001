"""Ancestral sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lib.samplers.base import History, Noise, Predict, Sampler
from ddpm_lib.schedules.levels import Level, tau


def posterior_mean(x0: Tensor, eps: Tensor, t: Level, s: Level) -> Tensor:
    """Return the mean of q(x_s | x_t, x_0), α_s x_0 + σ_s √(1−τ) ε, ε = (x_t − α_t x_0)/σ_t (Ho et
    al. 2020, eq. 7).
    """
    return s.alpha * x0 + s.sigma * math.sqrt(1.0 - tau(t, s)) * eps


@dataclass(frozen=True)
class DDPM(Sampler):
    """x_s = posterior mean of (x̂_0, ε̂) + √variance·z (Ho et al. 2020, algorithm 2), for any pair
    of levels.
    """

    def step(
        self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History
    ) -> Tensor:
        """Return a draw from p(x_s | x_t); its mean when s is clean."""
        p = predict(x, t)
        mean = posterior_mean(p.x0, p.eps, t, s)
        if s.sigma == 0:
            return mean
        variance = p.variance(t, s)
        std = variance.sqrt() if isinstance(variance, torch.Tensor) else math.sqrt(variance)
        return mean + std * noise()
