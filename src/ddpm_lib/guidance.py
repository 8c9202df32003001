"""Classifier-free guidance (Ho & Salimans 2022) on the raw output of the network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """F = F_null + scale·(F_cond − F_null).

    x̂_0 and ε̂ are linear in F with the same x_t, so that guiding F guides them alike. Both halves run as one batch
    of twice the size; where guidance is off the network runs once, on the condition.

    Args:
        scale: 1 is no guidance, 0 ignores the condition.
        interval: Guide only at levels with lo < t/T ≤ hi (Kynkäänniemi et al. 2024).
        rescale: φ in [0, 1]: pull the standard deviation of the guided output back to that of the conditional one,
            against over-exposure (Lin et al. 2024, §3.4). 0.7 is their choice.

    Raises:
        ValueError: If the interval is not 0 ≤ lo < hi ≤ 1 or rescale is outside [0, 1].
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"guidance_interval must be 0 ≤ lo < hi ≤ 1 (fractions of T), got {self.interval}.")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"guidance_rescale must be in [0, 1], got {self.rescale}. 0.7 is a common value.")

    def active(self, fraction: float) -> bool:
        """Say whether to guide at a level with t/T = fraction."""
        return self.scale != 1.0 and self.interval[0] < fraction <= self.interval[1]

    def combine(self, cond: Tensor, null: Tensor) -> Tensor:
        """Combine the outputs with and without the condition, both (b, c, *spatial)."""
        guided = null + self.scale * (cond - null)
        if not self.rescale:
            return guided
        dims = tuple(range(1, cond.ndim))
        # A constant output has no spread to restore.
        ratio = cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True).clamp_min(1e-12)
        return guided * (self.rescale * ratio + (1.0 - self.rescale))
