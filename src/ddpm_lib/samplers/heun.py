"""The samplers of Karras et al. 2022, which see x_t/α_t = x_0 + σ̃·ε with σ̃ = σ/α."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ddpm_lib.samplers.base import History, Noise, Predict, Sampler
from ddpm_lib.samplers.exponential import half_log_snr_step, moments
from ddpm_lib.schedules import scalars
from ddpm_lib.schedules.levels import Level


@dataclass(frozen=True)
class Euler(Sampler):
    """Euler's method in σ̃ with churn: x_s = α_s·x̂_0 + σ_s·ε̂ (Karras et al. 2022, alg. 2 without
    lines 6 to 8).

    Deterministic DDIM follows straight lines in σ̃, so that without churn this is "ddim"; the
    ancestral form of Euler's method is "ddim" with eta. Churn first raises the noise from σ̃ to
    σ̃(1 + γ), γ = min(s_churn/steps, √2 − 1), where s_tmin ≤ σ̃ ≤ s_tmax: fresh noise covers errors
    made so far. Of first order; for reproducing published results.

    The raised level lies between those of the schedule: log-SNR is interpolated linearly and the
    network gets the fractional t. It never passes level T, so that there is no churn from pure
    noise.

    Args:
        s_churn: Noise over the whole trajectory; 0 is deterministic. Karras et al. use 10 … 80.
        s_tmin: Churn only above this σ̃.
        s_tmax: Churn only below this σ̃.
        s_noise: Factor of the standard deviation of the added noise, about 1.003 against lost
            detail.

    Raises:
        ValueError: If an option is out of range.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        known = self.s_churn >= 0 and self.s_noise >= 0 and 0 <= self.s_tmin <= self.s_tmax
        if not known:  # also of NaN
            raise ValueError(
                "s_churn and s_noise must not be negative, and 0 ≤ s_tmin ≤ s_tmax; got"
                f" s_churn={self.s_churn}, s_noise={self.s_noise}, s_tmin={self.s_tmin},"
                f" s_tmax={self.s_tmax}."
            )

    def step(
        self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History
    ) -> Tensor:
        """Return x_s."""
        x, t = self.churn(x, t, noise, history)
        p = predict(x, t)
        return s.alpha * p.x0 + s.sigma * p.eps

    def churn(self, x: Tensor, t: Level, noise: Noise, history: History) -> tuple[Tensor, Level]:
        """Return x and its level after noise was added; both as they are where there is no
        churn.
        """
        if self.s_churn == 0 or t.alpha == 0 or not self.s_tmin <= t.sigma / t.alpha <= self.s_tmax:
            return x, t
        gamma = min(self.s_churn / history.steps, math.sqrt(2.0) - 1.0)
        raised = history.between(t.log_snr - 2.0 * math.log1p(gamma))
        if raised.log_snr >= t.log_snr:
            return x, t
        # σ̃_raised² − σ̃_t², times α_raised².
        added = raised.sigma * scalars.sqrt(-scalars.expm1(raised.log_snr - t.log_snr))
        return (raised.alpha / t.alpha) * x + (self.s_noise * added) * noise(), raised


@dataclass(frozen=True)
class Heun(Euler):
    """Heun's second-order method in σ̃ with optional churn (Karras et al. 2022, alg. 1 and 2).

    Euler's x_s' is corrected with the x̂_0' found there, x_s = x_s' + α_s·½(σ̃_t/σ̃_s − 1)(x̂_0' −
    x̂_0), which is the average of the slopes at both ends. Of second order, with or without churn.
    Two network calls per step, one in the last to clean data. Choose it with spacing="karras" and
    18 … 40 steps, where accuracy matters more than time.

    Where σ̃ falls by a large factor in one step, as from nearly pure noise, the factor ½(σ̃_t/σ̃_s
    − 1) extrapolates wildly. Above `limit` the weight 1 − (1 − e^{−h})/h of the exponential form of
    the same method takes its place, which never exceeds 1 and is 1 from pure noise (h = ∞).

    Args:
        s_churn: As for Euler, like the other three.
        s_tmin: As for Euler.
        s_tmax: As for Euler.
        s_noise: As for Euler.
        limit: Largest factor, 2 for σ̃ falling five-fold; inf is the published algorithm.

    Raises:
        ValueError: If an option is out of range.
    """

    limit: float = 2.0

    def step(
        self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History
    ) -> Tensor:
        """Return x_s."""
        x, t = self.churn(x, t, noise, history)
        p = predict(x, t)
        straight = s.alpha * p.x0 + s.sigma * p.eps
        if s.sigma == 0:
            return straight
        h = half_log_snr_step(t, s)
        # Compared in h, because e^h overflows from pure noise.
        factor = (
            0.5 * scalars.expm1(h)
            if h <= min(math.log1p(2.0 * self.limit), 700.0)
            else 1.0 - moments(h, 1)[0] / h
        )
        return straight + (s.alpha * factor) * (predict(straight, s).x0 - p.x0)
