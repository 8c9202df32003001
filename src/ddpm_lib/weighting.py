"""The weight w of ‖x_0 − x̂_0‖² as a function of the signal-to-noise ratio, once for every parametrization.

The weight of the network's own error ‖F − target‖² follows as w·c_out²: w = SNR is L_simple for a network that
predicts ε (Ho et al. 2020, eq. 14), w = SNR + 1 weighs a network that predicts v uniformly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ddpm_lib.registry import Registry


@dataclass(frozen=True)
class Weighting(ABC):
    """w(SNR); the fields of a subclass are its options."""

    @abstractmethod
    def __call__(self, snr: Tensor) -> Tensor:
        """Return w for SNR in [0, ∞), float64."""


def _require_positive(weighting: Weighting, **options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"The weighting {type(weighting).__name__} needs {name} > 0, got {value}.")


@dataclass(frozen=True)
class Simple(Weighting):
    """w = SNR: uniform in the error of ε, L_simple (Ho et al. 2020, eq. 14)."""

    def __call__(self, snr: Tensor) -> Tensor:
        """Return SNR."""
        return snr


@dataclass(frozen=True)
class MinSNR(Weighting):
    """w = min(SNR, γ): L_simple that stops favouring nearly clean images (Hang et al. 2023, eq. 6).

    Args:
        gamma: The SNR from which on the weight is constant, > 0.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _require_positive(self, gamma=self.gamma)

    def __call__(self, snr: Tensor) -> Tensor:
        """Return min(SNR, γ)."""
        return snr.clamp(max=self.gamma)


@dataclass(frozen=True)
class Flat(Weighting):
    """w = 1: uniform in the error of x_0."""

    def __call__(self, snr: Tensor) -> Tensor:
        """Return 1."""
        return snr.new_ones(snr.shape)


@dataclass(frozen=True)
class P2(Weighting):
    """w = SNR/(k + SNR)^γ (Choi et al. 2022, eq. 8).

    Args:
        gamma: Exponent, ≥ 0; 0 is L_simple.
        k: Offset of the SNR, > 0.
    """

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, k=self.k)
        if self.gamma < 0:
            raise ValueError(f"The weighting P2 needs gamma ≥ 0, got {self.gamma}.")

    def __call__(self, snr: Tensor) -> Tensor:
        """Return SNR/(k + SNR)^γ."""
        return snr / (self.k + snr) ** self.gamma


@dataclass(frozen=True)
class SNRPlusOne(Weighting):
    """w = SNR + 1: uniform in the error of v (Salimans & Ho 2022, §4)."""

    def __call__(self, snr: Tensor) -> Tensor:
        """Return SNR + 1."""
        return snr + 1.0


WEIGHTINGS: Registry[type[Weighting]] = Registry(
    "weighting", {"simple": Simple, "min_snr": MinSNR, "flat": Flat, "p2": P2, "snr_plus_one": SNRPlusOne}
)
