"""The step that DPM-Solver++ and UniPC share: the linear part of the ODE exactly, x̂_0 as a
polynomial.

With λ = ½·log SNR = log(α/σ), h = λ_s − λ_t and u ∈ [0, 1] the place in the step, the
probability-flow ODE has the solution (Lu et al. 2022b, eq. 8)

    x_s = (σ_s/σ_t)·x_t + α_s·∫_0^1 h·e^{−h(1−u)}·x̂_0(u) du,

and the reverse SDE with η times its noise the same with (1 + η)·h in the kernel, e^{−ηh} in front
of x_t and Gaussian noise of variance σ_s²·(1 − e^{−2ηh}). A solver says which x̂_0 stand for
x̂_0(u). Clean data (λ = ∞) and pure noise (λ = −∞) are the limit h → ∞, in which the kernel is a
point mass at u = 1 and only first order makes sense.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ddpm_lib.samplers.base import Noise, Past
from ddpm_lib.schedules import scalars
from ddpm_lib.schedules.levels import Level


def half_log_snr_step(t: Level, s: Level) -> float:
    """Return h = λ_s − λ_t, infinite where s is clean or t pure noise."""
    return 0.5 * (s.log_snr - t.log_snr)


def moments(h: float, count: int) -> list[float]:
    """Return w_j = ∫_0^1 h·e^{−h(1−u)}·u^j du for j = 0 … count − 1; a negative h is the kernel for
    ε̂.

    >>> moments(math.inf, 3)
    [1.0, 1.0, 1.0]
    """
    if abs(h) < 1.0:
        # The recursion below would cancel; the series is h·Σ_m (−h)^m·j!/(m + j + 1)!.
        return [
            h * sum((-h) ** m * _factorial(j) / _factorial(m + j + 1) for m in range(20))
            for j in range(count)
        ]
    values = [-scalars.expm1(-h)]
    for j in range(1, count):
        values.append(1.0 - j / h * values[-1])  # by parts
    return values


def _factorial(n: int) -> float:
    return float(math.factorial(n))  # which a tensor takes; whole numbers may be too large for it


def quadrature(nodes: Sequence[float], h: float) -> list[float]:
    """Return the a_i with Σ a_i·f(u_i) = ∫_0^1 h·e^{−h(1−u)}·f(u) du for polynomials f of degree <
    len(nodes).

    >>> quadrature([0.0, -1.0], math.inf)
    [2.0, -1.0]
    """
    known, weights = moments(h, len(nodes)), []
    for i, node in enumerate(nodes):
        basis = [
            1.0
        ]  # Lagrange's polynomial, 1 at this node and 0 at the others, by its coefficients.
        for other in (n for j, n in enumerate(nodes) if j != i):
            raised, same = [0.0, *basis], [*basis, 0.0]
            basis = [(a - other * b) / (node - other) for a, b in zip(raised, same, strict=True)]
        weights.append(sum(c * w for c, w in zip(basis, known, strict=True)))
    return weights


def usable(
    past: Sequence[Past], t: Level, h: float, count: int
) -> tuple[list[float], list[Tensor]]:
    """Return the places (in units of the step, newest first) and x̂_0 of up to `count` earlier
    levels of finite λ.
    """
    found = [p for p in reversed(past) if scalars.isfinite(p.level.log_snr)][:count]
    return [-half_log_snr_step(p.level, t) / h for p in found], [p.x0 for p in found]


def advance(
    x: Tensor,
    t: Level,
    s: Level,
    terms: Sequence[tuple[float, Tensor]],
    noise: Noise,
    eta: float = 0.0,
) -> Tensor:
    """Return (σ_s/σ_t)·e^{−ηh}·x + α_s·Σ a·x̂_0 + σ_s·√(1 − e^{−2ηh})·z; no noise is drawn where
    its factor is 0.
    """
    shrink = (
        t.alpha * s.sigma / (s.alpha * t.sigma)
    ) ** eta  # e^{−ηh}; 1 for η = 0 even where h is infinite
    x = (s.sigma / t.sigma * shrink) * x
    for weight, x0 in terms:
        x = x + (s.alpha * weight) * x0
    if eta == 0 or s.sigma == 0:
        return x
    return (
        x + s.sigma * scalars.sqrt(-scalars.expm1(-2.0 * eta * half_log_snr_step(t, s))) * noise()
    )
