"""Denoising diffusion implicit models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ddpm_lib.samplers.base import History, Noise, Predict, Sampler
from ddpm_lib.schedules import scalars
from ddpm_lib.schedules.levels import Level, tau


@dataclass(frozen=True)
class DDIM(Sampler):
    """x_s = α_s x̂_0 + σ_s √(1 − η²τ) ε̂ + σ_s η √τ z (Song et al. 2021, eq. 12).

    Args:
        eta: η in [0, 1]. 0 is deterministic, Euler's method for the probability-flow ODE, and can
            go to noisier levels as well; 1 is ancestral sampling with the variance fixed_small.

    Raises:
        ValueError: If eta is outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(
                f"eta must be in [0, 1], got {self.eta}. 0 is deterministic DDIM, 1 ancestral"
                " sampling."
            )

    def step(
        self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History
    ) -> Tensor:
        """Return x_s."""
        p = predict(x, t)
        if self.eta == 0 or s.sigma == 0:
            return s.alpha * p.x0 + s.sigma * p.eps
        new = self.eta**2 * tau(t, s)
        mean = s.alpha * p.x0 + s.sigma * scalars.sqrt(1.0 - new) * p.eps
        return mean + s.sigma * scalars.sqrt(new) * noise()
