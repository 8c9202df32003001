"""One noise level, and the one quantity of a pair of levels that every reverse step is written
in.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ddpm_lib.schedules import scalars


class Level(NamedTuple):
    """A noise level: x_t = α·x_0 + σ·ε with α² + σ² = 1.

    `t` counts from 0 (clean data) to T. It is an integer on the levels of a schedule and may be
    fractional in between.
    """

    t: float
    alpha: float
    sigma: float

    @classmethod
    def of_log_snr(cls, t: float, log_snr: float) -> Level:
        """Return the level with a given finite log-SNR: α² = 1/(1 + e^−λ), σ² = 1/(1 + e^λ),
        without cancellation.
        """
        # e^(−|λ|) cannot overflow.
        small = scalars.exp(-abs(log_snr))
        large, little = scalars.sqrt(1.0 / (1.0 + small)), scalars.sqrt(small / (1.0 + small))
        return cls(t, large, little) if log_snr >= 0 else cls(t, little, large)

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio α²/σ²: infinite for clean data, 0 for pure noise."""
        return (self.alpha / self.sigma) ** 2 if self.sigma else math.inf

    @property
    def log_snr(self) -> float:
        """Natural logarithm of the signal-to-noise ratio, in [-∞, ∞]."""
        if not self.sigma:
            return math.inf
        return (
            2.0 * (scalars.log(self.alpha) - scalars.log(self.sigma)) if self.alpha else -math.inf
        )


def tau(t: Level, s: Level) -> float:
    """Return τ = 1 − (α_t σ_s / (α_s σ_t))² = 1 − SNR_t/SNR_s, the share of new noise in a step
    from t to a cleaner s.

    Every reverse kernel is written in it: the posterior variance is σ_s² τ, and σ_t² τ is β_t for
    neighbouring levels (Ho et al. 2020, eq. 7). It is 1 when s is clean and when t is pure noise.

    >>> tau(Level(2, 0.0, 1.0), Level(1, 0.6, 0.8)), tau(Level(1, 0.6, 0.8), Level(0, 1.0, 0.0))
    (1.0, 1.0)
    """
    if t.alpha == 0:
        return 1.0
    return 1.0 - (t.alpha * s.sigma / (s.alpha * t.sigma)) ** 2
