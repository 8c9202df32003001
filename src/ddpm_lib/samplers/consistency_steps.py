"""Sampling with a network that jumps to the end of a trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ddpm_lib.samplers.base import History, Noise, Predict, Sampler
from ddpm_lib.schedules.levels import Level


@dataclass(frozen=True)
class Consistency(Sampler):
    """x_s = α_s x̂_0 + σ_s z: jump to clean data, and back to a cleaner level with fresh noise (Song
    et al. 2023, algorithm 1).

    One step is one jump from pure noise. It needs a network that was trained with
    loss="consistency": the mean of clean images, which a denoiser answers with, is blurred.
    """

    jumps: ClassVar[bool] = True

    def step(
        self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History
    ) -> Tensor:
        """Return x_s."""
        x0 = predict(x, t).x0
        return x0 if s.sigma == 0 else s.alpha * x0 + s.sigma * noise()
