"""DEIS: the exponential integrator in terms of the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ddpm_lib.samplers.base import History, Noise, Predict, Sampler
from ddpm_lib.samplers.exponential import half_log_snr_step, quadrature, usable
from ddpm_lib.schedules import scalars
from ddpm_lib.schedules.levels import Level


@dataclass(frozen=True)
class DEIS(Sampler):
    """DEIS: x_s = (α_s/α_t)·x − σ_s·∫_0^1 h·e^{h(1−u)}·ε̂(u) du, ε̂ the polynomial in λ through the
    last ones (Zhang & Chen 2022).

    Their ρAB-DEIS in log ρ, ρ = σ/α = e^−λ; DPM-Solver (Lu et al. 2022a) is of the same family.
    DPM-Solver++ integrates x̂_0 instead of ε̂, which bears guidance and few steps better: this one
    is for comparing with published results. One network call per step. Steps from pure noise and to
    clean data are of first order, that is DDIM's.

    Args:
        order: How many ε̂ the polynomial goes through, 1 … 4. 1 is DDIM.
        lower_order_final: Lower the order towards the end, to 2 in the step before the last one.

    Raises:
        ValueError: If order is out of range.
    """

    multistep: ClassVar[bool] = True

    order: int = 3
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order must be 1, 2, 3 or 4, got {self.order!r}. 3 is the usual one.")

    def step(
        self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History
    ) -> Tensor:
        """Return x_s."""
        p, h = predict(x, t), half_log_snr_step(t, s)
        order = min(self.order, history.remaining + 1) if self.lower_order_final else self.order
        places, earlier = usable(history.past, t, h, order - 1)
        # The same memory as x̂_0 serves: what is kept of a step is one prediction, here ε̂.
        history.remember(t, x, p.eps, self.order)
        if scalars.isinf(h):
            return s.alpha * p.x0 + s.sigma * p.eps
        # With −h for h the kernel of x̂_0 is that of ε̂.
        x = (s.alpha / t.alpha) * x
        for weight, eps in zip(quadrature([0.0, *places], -h), [p.eps, *earlier], strict=True):
            x = x + (s.sigma * weight) * eps
        return x
