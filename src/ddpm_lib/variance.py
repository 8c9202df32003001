"""The variance of the reverse kernel p(x_s | x_t), a function of a pair of levels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ddpm_lib.core.registry import Registry
from ddpm_lib.schedules.levels import Level, tau

N = TypeVar("N", float, Tensor)


def log_bounds(t: Level, s: Level, before: Level | None = None) -> tuple[float, float]:
    """Return (log σ_s²τ, log σ_t²τ), between which the best variance of a step lies (Nichol &
    Dhariwal 2021, §3.1).

    Args:
        t: The level of the step.
        s: The cleaner level it goes to. Where that is clean data the first bound is −∞ …
        before: … unless the level visited before t is given: then it is that of the step before →
            t, which makes a decoder of positive width (Ho et al. 2020, code).
    """
    large = _log(t.sigma**2 * tau(t, s))
    if s.sigma > 0:
        return _log(s.sigma**2 * tau(t, s)), large
    return (-math.inf if before is None else log_bounds(before, t)[0]), large


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


@dataclass(frozen=True)
class Variance(ABC):
    """The variance of a step from level t to a cleaner level s."""

    outputs: ClassVar[int] = 1
    """How many output channels the network needs for each image channel; those after the first set
    are `raw`.
    """

    def __call__(self, t: Level, s: Level, raw: Tensor | None = None) -> float | Tensor:
        """Return the variance for levels t > s; `raw` is the network's word on it, None unless
        `outputs` is above 1.
        """
        log = self.log(*log_bounds(t, s), raw)
        return log.exp() if isinstance(log, Tensor) else math.exp(log)

    @abstractmethod
    def log(self, small: N, large: N, raw: Tensor | None = None) -> N | Tensor:
        """Return the log-variance from its bounds, which are floats, or tensors that broadcast
        against images.
        """

    def decoder_log(self, small: N, large: N, raw: Tensor | None = None) -> N | Tensor:
        """Return the log-variance of the last step, to data, with the lower bound of the step
        before.
        """
        return self.log(small, large, raw)


@dataclass(frozen=True)
class FixedSmall(Variance):
    """β̃ = σ_s² τ, the variance of the posterior q(x_s | x_t, x_0) (Ho et al. 2020, eq. 7): exact
    for one-point data.
    """

    def log(self, small: N, large: N, raw: Tensor | None = None) -> N:
        """Return log σ_s² τ."""
        return small


@dataclass(frozen=True)
class FixedLarge(Variance):
    """σ_t² τ, which is β_t for neighbouring levels (Ho et al. 2020, §3.2): exact for data ~ N(0,
    1).
    """

    def log(self, small: N, large: N, raw: Tensor | None = None) -> N:
        """Return log σ_t² τ."""
        return large

    def decoder_log(self, small: N, large: N, raw: Tensor | None = None) -> N:
        """Return the lower bound: at the cleanest level the upper one is far too wide (Ho et al.
        2020, code).
        """
        return small


@dataclass(frozen=True)
class LearnedRange(Variance):
    """exp(f·log σ_t²τ + (1 − f)·log σ_s²τ), f = (v + 1)/2 with v from the network (Nichol &
    Dhariwal 2021, eq. 15).

    v is not clamped; the bounds are those of any data of variance ≤ 1, and training finds them by
    itself.
    """

    outputs: ClassVar[int] = 2

    def __call__(self, t: Level, s: Level, raw: Tensor | None = None) -> Tensor:
        """Return the variance; 0 where s is clean data, for the range has no lower end there."""
        assert raw is not None
        small, large = log_bounds(t, s)
        return torch.zeros_like(raw) if math.isinf(small) else self.log(small, large, raw).exp()

    def log(self, small: N, large: N, raw: Tensor | None = None) -> Tensor:
        """Return log σ_s²τ + f·(log σ_t²τ − log σ_s²τ)."""
        assert raw is not None
        return small + (raw + 1.0) * 0.5 * (large - small)


VARIANCES: Registry[type[Variance]] = Registry(
    "variance",
    {"fixed_small": FixedSmall, "fixed_large": FixedLarge, "learned_range": LearnedRange},
)
