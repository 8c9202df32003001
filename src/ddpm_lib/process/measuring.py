"""Guidance by a measurement y = A·x_0 + noise: how p(y | x_t) is approximated, and what that adds
to x̂_0.

By Bayes' rule ∇log p(x_t | y) = ∇log p(x_t) + ∇log p(y | x_t), and the second term moves the
denoiser's x̂_0 by (σ²/α)·∇log p(y | x_t). As y depends on x_t through x_0 alone, p(y | x_t) follows
from p(x_0 | x_t), of which the network knows the mean x̂_0. The methods differ in what they take
for its covariance C_t; for Gaussian data and the true C_t the answer is exact.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ddpm_lib.core.options import build
from ddpm_lib.core.registry import Registry
from ddpm_lib.core.text import short
from ddpm_lib.process.linear_maps import Operator
from ddpm_lib.schedules.levels import Level

Covariance = Callable[[Tensor, Level], Tensor]
"""v, (b, c, *spatial), and a level → C_t·v, C_t the covariance of p(x_0 | x_t) in [-1, 1] units."""


class Problem(NamedTuple):
    """What was measured, in the units of the model.

    Args:
        operator: A, prepared.
        y: The measurement, (b, *out_shape), of images in [-1, 1].
        noise_std: Standard deviation r of its noise, in these units.
        shape: Of one image.
    """

    operator: Operator
    y: Tensor
    noise_std: float
    shape: tuple[int, ...]

    def residual(self, x0: Tensor) -> Tensor:
        """Return y − A x̂_0, 0 where y says nothing."""
        found = self.y - self.operator.apply(x0)
        known = self.operator.known()
        return found if known is None else torch.where(known.to(found.device), found, 0.0)

    def rows(self, start: int, stop: int) -> Problem:
        """Return the measurements start … stop − 1."""
        return self._replace(operator=self.operator.rows(start, stop), y=self.y[start:stop])

    def solve(
        self, residual: Tensor, spread: Callable[[Tensor], Tensor], iterations: int
    ) -> Tensor:
        """Return (A C Aᵀ + r²)⁻¹ residual by conjugate gradients, for each image.

        Args:
            residual: (b, *out_shape).
            spread: C, from images to images.
            iterations: How many steps, each with one C, one A and one Aᵀ.
        """
        a, ridge = self.operator, self.noise_std**2

        def system(v: Tensor) -> Tensor:
            return a.apply(spread(a.adjoint(v, self.shape))) + ridge * v

        return conjugate_gradients(system, residual, iterations)


def conjugate_gradients(system: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Solve K v = b for a symmetric positive K (Hestenes & Stiefel 1952), a system for each row.

    A row that is solved stays as it is. Nothing is read back, so that a GPU is not waited for.

    Args:
        system: v → K v.
        b: (n, …).
        iterations: How many steps.
    """

    def dot(u: Tensor, w: Tensor) -> Tensor:
        return (u * w).flatten(1).sum(1).view(-1, *[1] * (b.ndim - 1))

    v, r, p = torch.zeros_like(b), b, b
    first = size = dot(r, r)
    done = torch.finfo(b.dtype).eps * first
    for _ in range(iterations):
        k = system(p)
        curvature = dot(p, k)
        going = (size > done) & (curvature > 0)
        step = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
        v, r = v + step * p, r - step * k
        new = dot(r, r)
        p = torch.where(going, r + new / torch.where(going, size, 1.0) * p, p)
        size = torch.where(going, new, size)
    return v


class Method(ABC):
    """How p(y | x_t) is approximated; the fields of a subclass are its options."""

    differentiates: ClassVar[bool] = True
    """Whether it needs the derivative of x̂_0 by x_t."""

    @abstractmethod
    def shift(self, problem: Problem, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """Return (σ²/α)·∇log p(y | x_t), (b, c, *spatial).

        Args:
            problem: What was measured.
            x: x_t, (b, c, *spatial), with a gradient where the method needs one.
            x0: x̂_0 before clipping, a function of x.
            level: Their level, with α > 0 and σ > 0.
        """


@dataclass(frozen=True)
class DPS(Method):
    """Diffusion posterior sampling (Chung et al. 2023): p(y | x_t) ≈ N(A x̂_0, ρ²), with the mean
    square of the residual for ρ².

    It takes C_t for 0, so that what x̂_0 is wrong by must hide in ρ. Chung et al. (alg. 1) move x_s
    by −ζ·∇‖y − A x̂_0‖ in each of T steps, whatever they are; ρ² as measured makes that a property
    of the level, with the same strength for any number of steps. Good for a first look, since
    nothing is solved; exact for no data.
    """

    def shift(self, problem: Problem, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """Return its (σ²/α)·∇log p(y | x_t)."""
        residual = problem.residual(x0)
        square = residual.square().flatten(1)
        known = problem.operator.known()
        share = 1.0 if known is None else known.expand_as(residual).flatten(1).float().mean(1)
        variance = (square.detach().mean(1) / share).clamp(min=problem.noise_std**2 + 1e-12)
        (gradient,) = torch.autograd.grad(-0.5 * (square.sum(1) / variance).sum(), x)
        return level.sigma**2 / level.alpha * gradient


@dataclass(frozen=True)
class PiGDM(Method):
    """Pseudoinverse-guided diffusion (ΠGDM, Song et al. 2023): p(x_0 | x_t) ≈ N(x̂_0, r_t²), hence
    p(y | x_t) ≈ N(A x̂_0, r_t² A Aᵀ + r²).

    r_t² = s²σ²/(α²s² + σ²) is what is left of a pixel's variance s² at a level. Song et al. take s
    = 1. With the true covariance of p(x_0 | x_t) in the place of r_t², Gaussian data are restored
    exactly.

    Args:
        data_std: s, the standard deviation of pixels in [-1, 1] units, above 0.
        covariance: v, level → C_t·v instead.
        iterations: Of conjugate gradients, at least 1, where A Aᵀ has no eigenvalues at hand: for
            masks after other operators and maps of a caller's own. They cost no network calls.

    Raises:
        ValueError: If an option is out of range.
    """

    data_std: float = 0.5
    covariance: Covariance | None = None
    iterations: int = 50

    def __post_init__(self) -> None:
        if not 0.0 < self.data_std < math.inf:
            raise ValueError(
                f"data_std must be above 0, got {self.data_std}. Pixels in [-1, 1] have about 0.5."
            )
        check_iterations(self.iterations)

    def shift(self, problem: Problem, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """Return its (σ²/α)·∇log p(y | x_t)."""
        (gradient,) = torch.autograd.grad(x0, x, self.back(problem, x0, level))
        return level.sigma**2 / level.alpha * gradient

    def back(self, problem: Problem, x0: Tensor, level: Level) -> Tensor:
        """Return Aᵀ (A C_t Aᵀ + r²)⁻¹ (y − A x̂_0)."""
        residual, a = problem.residual(x0.detach()), problem.operator
        v = None
        if self.covariance is None:
            ridge = problem.noise_std**2
            v = a.gram_inverse(residual, problem.shape, self.variance(level), ridge)
        if v is None:
            v = problem.solve(residual, partial(self.spread, level=level), self.iterations)
        return problem.operator.adjoint(v, problem.shape)

    def spread(self, v: Tensor, level: Level) -> Tensor:
        """Return C_t v."""
        return self.variance(level) * v if self.covariance is None else self.covariance(v, level)

    def variance(self, level: Level) -> float:
        """Return r_t²."""
        known, unknown = (level.alpha * self.data_std) ** 2, level.sigma**2
        return self.data_std**2 * unknown / (known + unknown)


@dataclass(frozen=True)
class DDNM(PiGDM):
    """x̂_0 + A⁺(y − A x̂_0) (Wang et al. 2023, eq. 13): ΠGDM with the network's derivative, too,
    taken from r_t², so that nothing is differentiated.

    With noise A⁺ becomes r_t² Aᵀ (r_t² A Aᵀ + r²)⁻¹. What x̂_0 says of directions that are not
    measured stays as it is, where ΠGDM lets the network carry the correction over to them.
    """

    differentiates: ClassVar[bool] = False

    def shift(self, problem: Problem, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """Return its (σ²/α)·∇log p(y | x_t)."""
        return self.spread(self.back(problem, x0, level), level)


@dataclass(frozen=True)
class MomentMatching(Method):
    """ΠGDM with the covariance that the network itself implies (Rozet et al. 2024): C_t =
    (σ²/α)·∂x̂_0/∂x_t, Tweedie's second moment.

    Exact for Gaussian data of which nothing is known but the network. Each iteration differentiates
    the network once more.

    Args:
        iterations: Of conjugate gradients, at least 1.

    Raises:
        ValueError: If they are fewer.
    """

    iterations: int = 3

    def __post_init__(self) -> None:
        check_iterations(self.iterations)

    def shift(self, problem: Problem, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """Return its (σ²/α)·∇log p(y | x_t)."""

        def spread(v: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(x0, x, v, retain_graph=True)
            return level.sigma**2 / level.alpha * found

        v = problem.solve(problem.residual(x0.detach()), spread, self.iterations)
        return spread(problem.operator.adjoint(v, problem.shape))


def check_iterations(iterations: int) -> None:
    """Refuse a number of iterations that is none.

    Raises:
        ValueError: If it is below 1.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations must be a whole number of at least 1; got {iterations!r}.")


METHODS: Registry[type[Method]] = Registry(
    "method of restoration", {"pigdm": PiGDM, "mmps": MomentMatching, "ddnm": DDNM, "dps": DPS}
)


def make_method(method: str | Method, options: Mapping[str, Any] | None = None) -> Method:
    """Return a method from its name and options, or the method itself.

    Raises:
        ValueError: If a name or an option is unknown, or an object comes with options.
        TypeError: If it is neither.
    """
    if isinstance(method, str):
        found: Method = build(METHODS, method, options)
        return found
    if not isinstance(method, Method):
        raise TypeError(
            f"method is a name ({', '.join(METHODS)}) or an object of process.measuring; got"
            f" {short(method)}."
        )
    if options:
        raise ValueError("method_options go with a name; an object has its own. Leave them out.")
    return method


@dataclass(frozen=True, eq=False)
class Measured:
    """Guidance by a measurement; see `Guidance.measured`.

    Args:
        problem: What was measured.
        method: How p(y | x_t) is approximated.
        strength: Factor of its gradient; 1 is Bayes' rule.
    """

    problem: Problem
    method: Method
    strength: float = 1.0

    @property
    def differentiates(self) -> bool:
        """Whether x̂_0 must be differentiable in x_t."""
        return self.method.differentiates and self.strength != 0

    def rows(self, start: int, stop: int) -> Measured:
        """Return the part that belongs to the images start … stop − 1."""
        return replace(self, problem=self.problem.rows(start, stop))

    def shift(self, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """Return what the measurement adds to x̂_0, (b, c, *spatial).

        Args:
            x: x_t, with a gradient where `differentiates`.
            x0: x̂_0 before clipping, a function of x.
            level: Their level, noisy.
        """
        # Pure noise knows nothing of what was measured.
        if level.alpha == 0 or self.strength == 0:
            return torch.zeros_like(x0)
        # Mixed precision would round pixels to three digits.
        with torch.autocast(x.device.type, enabled=False):
            return self.strength * self.method.shift(self.problem, x, x0, level).detach()
