"""What the network predicts: x̂_0 = c_skip·x_t + c_out·F(x_t, t), and the target of F in terms of
(x_0, ε).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from torch import Tensor

from ddpm_lib.core.registry import Registry

N = TypeVar("N", float, Tensor)


@dataclass(frozen=True)
class Parametrization(ABC):
    """How the output F of a network stands for the clean image.

    α and σ are Python floats, or tensors that broadcast against images.
    """

    needs_signal: ClassVar[bool] = False
    """True if x̂_0 cannot be had from F where α = 0."""

    @abstractmethod
    def c_skip(self, alpha: N, sigma: N) -> N:
        """Return the factor of x_t in x̂_0."""

    @abstractmethod
    def c_out(self, alpha: N, sigma: N) -> N:
        """Return the factor of F in x̂_0."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return what F should be: (x_0 − c_skip·x_t)/c_out, written in (x_0, ε) so that nothing
        cancels.
        """

    def scale_input(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """Return what the network sees for x_t (c_in·x_t; here x_t has unit variance already)."""
        return x


@dataclass(frozen=True)
class Eps(Parametrization):
    """F predicts the noise ε (Ho et al. 2020, eq. 14): x̂_0 = (x_t − σ·F)/α."""

    needs_signal: ClassVar[bool] = True

    def c_skip(self, alpha: N, sigma: N) -> N:
        """Return 1/α."""
        return 1.0 / alpha

    def c_out(self, alpha: N, sigma: N) -> N:
        """Return −σ/α."""
        return -sigma / alpha

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return ε."""
        return eps


@dataclass(frozen=True)
class X0(Parametrization):
    """F predicts the clean image x_0: x̂_0 = F, or with skip = s > 0 a mean of x_t/α and F, weighted
    as two measurements of x_0 with errors of σ/α and s are.

    Without it x̂_0 is not x_t where there is no noise, which consistency tuning rests on (Song et
    al. 2023, §3); `for_consistency` asks for it.

    Args:
        skip: s ≥ 0, the noise σ/α at which x_t and the network count alike.
    """

    skip: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.skip < math.inf:
            raise ValueError(
                f"The parametrization 'x0' needs skip ≥ 0, got {self.skip}. 0 is usual; students of"
                " consistency tuning have 0.1."
            )

    def c_skip(self, alpha: N, sigma: N) -> N:
        """Return αs²/(σ² + α²s²), 0 for s = 0."""
        if not self.skip:
            return 0.0 * alpha
        return alpha * self.skip**2 / (sigma**2 + alpha**2 * self.skip**2)

    def c_out(self, alpha: N, sigma: N) -> N:
        """Return σ²/(σ² + α²s²), 1 for s = 0."""
        if not self.skip:
            return 0.0 * alpha + 1.0
        return sigma**2 / (sigma**2 + alpha**2 * self.skip**2)

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return x_0 − (αs²/σ)·ε."""
        return x0 - alpha * self.skip**2 / sigma * eps if self.skip else x0


@dataclass(frozen=True)
class V(Parametrization):
    """F predicts v = α·ε − σ·x_0 (Salimans & Ho 2022, app. D): x̂_0 = α·x_t − σ·F."""

    def c_skip(self, alpha: N, sigma: N) -> N:
        """Return α."""
        return alpha

    def c_out(self, alpha: N, sigma: N) -> N:
        """Return −σ."""
        return -sigma

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return α·ε − σ·x_0."""
        return alpha * eps - sigma * x0


@dataclass(frozen=True)
class EDM(Parametrization):
    """F and its input have unit variance for data of standard deviation σ_d (Karras et al. 2022,
    table 1).

    Theirs in terms of σ/α with x = x_t/α. With σ_d = 1 it is −v. The network is told the level, not
    ¼·ln(σ/α).

    Args:
        sigma_data: σ_d, the standard deviation of the data in [-1, 1], > 0.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(
                f"The parametrization 'edm' needs sigma_data > 0, got {self.sigma_data}. 0.5 is"
                " usual."
            )

    def _spread(self, alpha: N, sigma: N) -> N:
        """Return α²σ_d² + σ², the variance of x_t."""
        return alpha**2 * self.sigma_data**2 + sigma**2

    def c_skip(self, alpha: N, sigma: N) -> N:
        """Return ασ_d²/(α²σ_d² + σ²)."""
        return alpha * self.sigma_data**2 / self._spread(alpha, sigma)

    def c_out(self, alpha: N, sigma: N) -> N:
        """Return σσ_d/√(α²σ_d² + σ²)."""
        return sigma * self.sigma_data * self._spread(alpha, sigma) ** -0.5

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return (σ·x_0 − ασ_d²·ε)/(σ_d·√(α²σ_d² + σ²))."""
        scale = self._spread(alpha, sigma) ** -0.5
        return scale * (sigma / self.sigma_data * x0 - alpha * self.sigma_data * eps)

    def scale_input(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """Return x_t/√(α²σ_d² + σ²)."""
        return x * (alpha**2 * self.sigma_data**2 + sigma**2) ** -0.5


PARAMETRIZATIONS: Registry[type[Parametrization]] = Registry(
    "parametrization", {"eps": Eps, "x0": X0, "v": V, "edm": EDM}
)
