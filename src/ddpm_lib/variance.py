"""The variance of the reverse kernel p(x_s | x_t), a function of a pair of levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ddpm_lib.levels import Level, tau
from ddpm_lib.registry import Registry


@dataclass(frozen=True)
class Variance(ABC):
    """The variance of a step from level t to a cleaner level s."""

    outputs: ClassVar[int] = 1
    """How many output channels the network needs for each image channel; those after the first set are `raw`."""

    @abstractmethod
    def __call__(self, t: Level, s: Level, raw: Tensor | None = None) -> float | Tensor:
        """Return the variance for levels t > s; `raw` is the network's word on it, None unless `outputs` is above 1."""


@dataclass(frozen=True)
class FixedSmall(Variance):
    """β̃ = σ_s² τ, the variance of the posterior q(x_s | x_t, x_0) (Ho et al. 2020, eq. 7): exact for one-point data."""

    def __call__(self, t: Level, s: Level, raw: Tensor | None = None) -> float:
        """Return σ_s² τ."""
        return s.sigma**2 * tau(t, s)


@dataclass(frozen=True)
class FixedLarge(Variance):
    """σ_t² τ, which is β_t for neighbouring levels (Ho et al. 2020, §3.2): exact for data ~ N(0, 1)."""

    def __call__(self, t: Level, s: Level, raw: Tensor | None = None) -> float:
        """Return σ_t² τ."""
        return t.sigma**2 * tau(t, s)


VARIANCES: Registry[type[Variance]] = Registry("variance", {"fixed_small": FixedSmall, "fixed_large": FixedLarge})
