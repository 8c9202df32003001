"""DPM-Solver++: multistep solvers of second and third order, their SDE forms, and the single-step
second order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ddpm_lib.samplers.base import History, Noise, Predict, Sampler
from ddpm_lib.samplers.exponential import advance, half_log_snr_step, moments, quadrature, usable
from ddpm_lib.schedules import scalars
from ddpm_lib.schedules.levels import Level, tau


def check_eta(eta: float) -> None:
    """Refuse an η outside [0, 1].

    Raises:
        ValueError: If it is.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(
            f"eta must be in [0, 1], got {eta}. 0 follows the deterministic ODE, 1 the reverse SDE."
        )


def second_order(place: float, h: float, solver: str) -> list[float]:
    """Return the weights of (x̂_0 at t, x̂_0 at an earlier place < 0)."""
    if solver == "heun":
        return quadrature([0.0, place], h)
    whole = moments(h, 1)[0]
    return [whole * (1.0 - 0.5 / place), whole * 0.5 / place]


@dataclass(frozen=True)
class DPMSolver2M(Sampler):
    """DPM-Solver++ 2M: x_s = (σ_s/σ_t)·x + α_s(1 − e^{−h})·D, D = x̂_0 + ½(h/h′)(x̂_0 − x̂_0′) (Lu
    et al. 2022b, alg. 2).

    h = λ_s − λ_t with λ = log(α/σ); x̂_0′ and h′ are those of the step before. The one to choose
    for few steps: second order from one network call per step; 15 to 25 steps usually suffice, best
    with spacing="log_snr" and a sigma_max of 80 or less: steps of very different h spoil the
    extrapolation. The first step, and the last one to clean data, are of first order, so that pure
    noise at the start (λ = −∞) needs no special treatment.

    Args:
        eta: Noise, 0 (ODE) … 1 (reverse SDE).
        solver: "midpoint", the formula above, or "heun", which integrates the straight line through
            both x̂_0 exactly.

    Raises:
        ValueError: If an option is out of range.
    """

    multistep: ClassVar[bool] = True

    eta: float = 0.0
    solver: Literal["midpoint", "heun"] = "midpoint"

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_solver(self.solver)

    def step(
        self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History
    ) -> Tensor:
        """Return x_s."""
        x0, h = predict(x, t).x0, half_log_snr_step(t, s)
        places, earlier = usable(history.past, t, h, 1)
        reach = (1.0 + self.eta) * h
        if scalars.isinf(h) or not earlier:
            weights = moments(reach, 1)
        else:
            weights = second_order(places[0], reach, self.solver)
        history.remember(t, x, x0, 1)
        return advance(x, t, s, list(zip(weights, [x0, *earlier])), noise, self.eta)


@dataclass(frozen=True)
class DPMSolver2MSDE(DPMSolver2M):
    """DPM-Solver++ 2M for the reverse SDE: 2M with 2h in the kernel and fresh noise in each step
    (Lu et al. 2022b, §5).

    Choose it over "dpmpp_2m" where images of 20 … 50 steps look flat: noise corrects earlier
    errors. At eta=0 it is "dpmpp_2m".

    Args:
        eta: Noise, 0 (ODE) … 1 (reverse SDE).
        solver: As for DPMSolver2M.
    """

    eta: float = 1.0


def check_solver(solver: str) -> None:
    """Refuse an unknown second-order formula.

    Raises:
        ValueError: If it is.
    """
    if solver not in ("midpoint", "heun"):
        raise ValueError(
            f"solver must be 'midpoint' or 'heun', got {solver!r}. 'midpoint' is the usual one."
        )


@dataclass(frozen=True)
class DPMSolver3M(Sampler):
    """DPM-Solver++ 3M: the parabola through the last three x̂_0, integrated exactly (Lu et al.
    2022b, eq. 8 and §4.2).

    Third order from one network call per step; the first two steps are of first and second order.
    For unguided sampling with 15 steps or more; with strong guidance 2M is more stable.

    Args:
        eta: Noise, 0 (ODE) … 1 (reverse SDE).
        solver: The formula of second-order steps, as for DPMSolver2M.
        lower_order_final: Take the step before the last one with second order, for stability in few
            steps.
        curvature: Factor of the second-difference term. 1 integrates the parabola; 0.5 is what
            published code does, which leaves it of second order.

    Raises:
        ValueError: If an option is out of range.
    """

    multistep: ClassVar[bool] = True

    eta: float = 0.0
    solver: Literal["midpoint", "heun"] = "heun"
    lower_order_final: bool = True
    curvature: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)
        check_solver(self.solver)

    def step(
        self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History
    ) -> Tensor:
        """Return x_s."""
        x0, h = predict(x, t).x0, half_log_snr_step(t, s)
        reach = (1.0 + self.eta) * h
        places, earlier = usable(
            history.past, t, h, min(2, history.remaining) if self.lower_order_final else 2
        )
        if scalars.isinf(h) or not earlier:
            weights = moments(reach, 1)
        elif len(earlier) == 1:
            weights = second_order(places[0], reach, self.solver)
        else:
            a, b = places
            term = (self.curvature - 1.0) * moments(reach, 3)[2]
            differences = [1.0 / (a * b), 1.0 / (a * (a - b)), 1.0 / (b * (b - a))]
            weights = [
                w + term * d
                for w, d in zip(quadrature([0.0, a, b], reach), differences, strict=True)
            ]
        history.remember(t, x, x0, 2)
        return advance(x, t, s, list(zip(weights, [x0, *earlier])), noise, self.eta)


@dataclass(frozen=True)
class DPMSolver2S(Sampler):
    """DPM-Solver++ 2S: x̂_0 at the middle (in λ) of the step stands for the whole step (Lu et al.
    2022b, alg. 1, r = ½).

    With v the level in the middle and x_v from a first-order step, x_s = (σ_s/σ_t)·x + α_s(1 −
    e^{−h})·x̂_0(x_v, v). Two network calls per step and no memory: for guidance that changes from
    step to step. The level v lies between those of the schedule; the network gets its fractional t.
    Steps from pure noise and to clean data are of first order.

    Args:
        eta: Noise of ancestral sampling as in DDIM(η): go to the level σ_s√(1 − η²τ) and add noise
            back, which costs nothing in order.

    Raises:
        ValueError: If eta is outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    def step(
        self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History
    ) -> Tensor:
        """Return x_s."""
        x0, new = predict(x, t).x0, self.eta**2 * tau(t, s)
        kept = scalars.sqrt(1.0 - new)
        ratio = (
            t.alpha * s.sigma / (s.alpha * t.sigma) * kept
        )  # e^{−h} to the level that noise is added to
        if ratio > 0:
            middle = history.between(t.log_snr - scalars.log(ratio))
            x_middle = (middle.sigma / t.sigma) * x + (
                middle.alpha * (1.0 - scalars.sqrt(ratio))
            ) * x0
            x0 = predict(x_middle, middle).x0
        x = (s.sigma / t.sigma * kept) * x + (s.alpha * (1.0 - ratio)) * x0
        return x + s.sigma * scalars.sqrt(new) * noise() if self.eta and s.sigma else x
