"""A noise schedule: two tables (α_t, σ_t), t = 0 … T."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.options import build, option_names
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.schedules.families import SCHEDULES
from ddpm_lib.schedules.interpolation import log_snr_between, times_of
from ddpm_lib.schedules.levels import Level


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """The noise levels 0 … T of a discrete diffusion process; immutable.

    Args:
        name: The entry of `SCHEDULES` that built it.
        options: The options it was built with, JSON-able.
        alpha: Signal scales α_0 … α_T, float64 on the CPU; α_0 = 1.
        sigma: Noise scales σ_0 … σ_T, float64 on the CPU; σ_0 = 0.

    Raises:
        ValueError: If there are fewer than two levels, or the SNR does not strictly decrease from
            ∞.

    >>> Schedule.make("cosine", 1000)
    Schedule.make('cosine', 1000)
    """

    name: str
    options: Mapping[str, Any] = field(repr=False)
    alpha: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        alpha, sigma = self.alpha, self.sigma
        if alpha.shape != sigma.shape or alpha.ndim != 1 or len(alpha) < 3:
            raise ValueError(
                f"A schedule needs timesteps ≥ 2; got tables of shapes {tuple(alpha.shape)} and"
                f" {tuple(sigma.shape)}."
            )
        if alpha.dtype != torch.float64 or sigma.dtype != torch.float64:
            raise TypeError(
                f"Schedule tables must be float64; got {alpha.dtype} and {sigma.dtype}."
            )
        if (
            alpha[0] != 1
            or sigma[0] != 0
            or not torch.all(torch.isfinite(alpha) & torch.isfinite(sigma))
        ):
            raise ValueError(
                "A schedule starts with clean data, (α, σ) = (1, 0), and all its levels are finite."
            )
        if not torch.all(self.snr[1:] < self.snr[:-1]):
            raise ValueError(
                f"The signal-to-noise ratio of a schedule must strictly decrease; {self.name!r}"
                f" with options {dict(self.options)} does not. Choose less extreme options."
            )

    @classmethod
    def make(
        cls, name: str, timesteps: int = 1000, options: Mapping[str, Any] | None = None
    ) -> Schedule:
        """Build a named schedule.

        Args:
            name: An entry of `SCHEDULES`.
            timesteps: Number of noise levels T ≥ 2.
            options: Options of that entry; for each of them also `zero_terminal_snr` (bool): shift
                and scale α so that α_T = 0 exactly and α_1 stays (Lin et al. 2024, algorithm 1).

        Raises:
            ValueError: If the name or an option is unknown or out of range.
        """
        if not isinstance(timesteps, int) or timesteps < 2:
            raise ValueError(
                f"timesteps must be an integer ≥ 2, got {timesteps!r}. Usual values are 100 … 4000."
            )
        given = dict(options or {})
        known = [*option_names(SCHEDULES[name]), "zero_terminal_snr"]
        for key in given:
            if key not in known:
                raise ValueError(unknown_name(f"option of the schedule {name!r}", key, known))
        build_options = {k: v for k, v in given.items() if k != "zero_terminal_snr"}
        alpha, sigma = _tables(
            build(SCHEDULES, name, build_options, timesteps), bool(given.get("zero_terminal_snr"))
        )
        return cls(name, given, alpha, sigma)

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> Schedule:
        """Build a schedule from β_1 … β_T in (0, 1); the last may be 1."""
        values = [float(b) for b in betas]
        return cls.make("betas", len(values), {"betas": values})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """Rebuild a schedule from what `to_config` returned."""
        return cls.make(config["name"], config["timesteps"], config["options"])

    def to_config(self) -> dict[str, Any]:
        """Return a JSON-able dict from which `from_config` builds the same schedule."""
        return {"name": self.name, "timesteps": self.timesteps, "options": dict(self.options)}

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels above clean data."""
        return len(self.alpha) - 1

    @property
    def snr(self) -> Tensor:
        """SNR_t = α_t²/σ_t² for t = 0 … T, float64; infinite at 0."""
        return (self.alpha / self.sigma).square()

    @property
    def betas(self) -> Tensor:
        """β_t = 1 − α_t²/α_{t−1}² for t = 1 … T (Ho et al. 2020, eq. 2), float64."""
        previous = self.alpha[:-1]
        return (previous - self.alpha[1:]) * (previous + self.alpha[1:]) / previous.square()

    @cached_property
    def log_snr(self) -> Tensor:
        """Log SNR_t for t = 0 … T, float64; ∞ at 0."""
        return 2.0 * (self.alpha.log() - self.sigma.log())

    def level(self, t: float) -> Level:
        """Return level t in 0 … T as Python floats; between two levels the log-SNR is linear (see
        `interpolation`).
        """
        if not 0 <= t <= self.timesteps:
            raise ValueError(
                f"Level {t} does not exist; the levels of this schedule are 0 … {self.timesteps}."
            )
        if t == int(t):
            return Level(int(t), float(self.alpha[int(t)]), float(self.sigma[int(t)]))
        return Level.of_log_snr(
            t, float(log_snr_between(self.log_snr, torch.tensor(t, dtype=torch.float64))[0])
        )

    def level_at(self, log_snr: float) -> Level:
        """Return the level, fractional in general, with a given log-SNR: the inverse of
        `level(t).log_snr`.

        A log-SNR below that of level T gives level T: a network knows nothing noisier.
        """
        if log_snr <= float(self.log_snr[-1]):
            return self.level(self.timesteps)
        if log_snr == math.inf:
            return self.level(0)
        t = float(times_of(self.log_snr, torch.tensor(log_snr, dtype=torch.float64)))
        return self.level(t) if t == int(t) else Level.of_log_snr(t, log_snr)

    def gather(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t), float64 on the CPU, for levels t on the CPU: int64, or float64 in (0,
        T] between levels.
        """
        if not t.is_floating_point():
            return self.alpha[t], self.sigma[t]
        log_snr, _ = log_snr_between(self.log_snr, t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def snr_between(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the SNR at real t in (0, T], and how fast it falls, −dSNR/d(t/T): what weights in
        continuous time need.
        """
        log_snr, fall = log_snr_between(self.log_snr, t)
        snr = log_snr.exp()
        # Towards pure noise the SNR vanishes faster than its logarithm falls.
        return snr, torch.where(snr > 0, snr * fall * self.timesteps, 0.0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return torch.equal(self.alpha, other.alpha) and torch.equal(self.sigma, other.sigma)

    def __hash__(self) -> int:
        return hash((self.timesteps, float(self.alpha[-1]), float(self.alpha[1])))

    def __repr__(self) -> str:
        shown = {k: "[…]" if isinstance(v, list) else v for k, v in self.options.items()}
        return f"Schedule.make({self.name!r}, {self.timesteps}{f', {shown}' if shown else ''})"


def _tables(log_alpha_bar: Tensor, zero_terminal_snr: bool) -> tuple[Tensor, Tensor]:
    """Turn log α̅_1 … log α̅_T into (α, σ) with level 0 in front."""
    alpha, sigma = torch.exp(log_alpha_bar / 2), torch.sqrt(-torch.expm1(log_alpha_bar))
    if zero_terminal_snr and float(alpha[-1]) > 0:
        first, last = alpha[0], alpha[-1]
        away = -torch.expm1(
            log_alpha_bar / 2
        )  # 1 − α, which the rescaling below needs to full relative precision
        away = (first * away - last * away[0]) / (first - last)
        alpha = (alpha - last) * first / (first - last)
        sigma = torch.sqrt(away * (2 - away))
    return torch.cat([alpha.new_ones(1), alpha]), torch.cat([sigma.new_zeros(1), sigma])
