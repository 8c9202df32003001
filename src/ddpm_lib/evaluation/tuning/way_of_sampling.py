"""One way of sampling among those that are compared, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ddpm_lib.evaluation.tuning.tune_options import CALLS_PER_STEP

WHOLE = (0.0, 1.0)


@dataclass(frozen=True)
class Way:
    """A sampler with its levels, an average, and what guides.

    Attributes:
        sampler: Its name.
        spacing: The noisy levels, decreasing; or the name of a spacing.
        steps: How many steps.
        weights: "ema 0.999", "ema sigma_rel=0.1" or "model".
        scale: Of classifier-free guidance; 1 for none.
        interval: Where what guides does so, of t/T.
        partner: What guides as a worse version, as `guide_by` names it; None for none.
        partner_scale: How far from it.
        end: σ/α of the last noisy level of a spacing by name; None for what it is by default.
    """

    sampler: str
    spacing: str | tuple[float, ...]
    steps: int
    weights: str
    scale: float = 1.0
    interval: tuple[float, float] = WHOLE
    partner: str | None = None
    partner_scale: float = 1.0
    end: float | None = None

    @property
    def is_guided(self) -> bool:
        """Whether anything guides."""
        return self.scale != 1.0 or self.partner is not None

    @property
    def spacing_options(self) -> dict[str, float]:
        """Options of its spacing."""
        return {} if self.end is None else {"sigma_min": self.end}

    def unguided(self) -> Way:
        """Return the same without guidance."""
        return replace(self, scale=1.0, interval=WHOLE, partner=None, partner_scale=1.0)

    def calls(self, levels: Sequence[float], timesteps: int) -> int:
        """Return the network calls for an image, those of guidance included.

        Args:
            levels: The noisy levels that it visits, decreasing.
            timesteps: T.
        """
        each = 1 + (self.scale != 1.0) + (self.partner is not None)
        low, high = self.interval
        calls = 0
        for k, t in enumerate(levels):
            calls += each if low < t / timesteps <= high else 1
            if CALLS_PER_STEP.get(self.sampler, 1) == 2 and k + 1 < len(levels):
                second = levels[k + 1]  # of heun; that of dpmpp_2s lies between, no cleaner
                calls += each if low < second / timesteps <= high else 1
        return calls

    def arguments(self) -> dict[str, Any]:
        """Return what `sample` is to be told, but for what guides as a worse version."""
        found: dict[str, Any] = {"sampler": self.sampler, "spacing": self.spacing}
        if isinstance(self.spacing, str):
            found |= {"num_steps": self.steps, "spacing_options": self.spacing_options}
        return {**found, "guidance_scale": self.scale, "guidance_interval": self.interval}

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able values, which name it among others."""
        spacing = self.spacing if isinstance(self.spacing, str) else list(self.spacing)
        return {**vars(self), "spacing": spacing, "interval": list(self.interval)}

    def words(self) -> str:
        """Say it in a line."""
        where = self.spacing if isinstance(self.spacing, str) else "learned levels"
        where += f" to {self.end:g}" if self.end is not None else ""
        parts = [f"{self.sampler} in {self.steps}, {where}", self.weights]
        inside = "" if self.interval == WHOLE else f" in {self.interval[0]:g}…{self.interval[1]:g}"
        if self.scale != 1.0:
            parts.append(f"guidance {self.scale:g}{inside}")
        if self.partner is not None:
            parts.append(f"by {self.partner} {self.partner_scale:g}{inside}")
        return ", ".join(parts)
