"""Every sampler converges with its order, to the exact solution of the ODE and to the law of the
data.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddpm_lib.samplers import (
    DDIM,
    DEIS,
    OF_DENOISERS,
    SAMPLERS,
    DPMSolver2M,
    DPMSolver2S,
    DPMSolver3M,
    Euler,
    Heun,
    Prediction,
    Sampler,
    UniPC,
    sample_loop,
)
from ddpm_lib.samplers.exponential import quadrature
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.spacing import sampling_levels
from sampler_tools import (
    MU,
    RANDOM,
    S,
    between,
    gaussian_predict,
    log_snr_grid,
    mixture_predict,
    moments,
    one_pixel,
    refuse,
)

ORDERS = {
    "ddpm": 1,
    "ddim": 1,
    "dpmpp_2m": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_3m": 3,
    "dpmpp_2s": 2,
    "unipc": 3,
    "deis": 3,
    "heun": 2,
    "euler": 1,
}
"""Order of every sampler with its default options: of the end point, or of the law of samples if it
is random.
"""

VARIANTS = [
    (DPMSolver2M(solver="heun"), 2),
    (DPMSolver3M(solver="midpoint"), 3),
    (UniPC(order=1), 2),
    (UniPC(order=1, corrector=False), 1),
    (UniPC(order=2, variant="bh1"), 3),
    (UniPC(order=2, corrector=False), 2),
    (UniPC(order=3), 3),
    (UniPC(order=3, variant="bh1"), 3),
    (Heun(limit=math.inf), 2),
    (DEIS(order=2), 2),
    (DEIS(order=1), 1),
]
"""Other options. The first steps, which have no past, hold the third order of UniPC(order=3)."""


def test_the_table_of_orders_is_complete() -> None:
    assert set(ORDERS) == set(OF_DENOISERS)


@cache
def exact_end(predict: Callable[[Tensor, Level], Prediction]) -> Tensor:
    """Return where the ODE takes a few starting points over the range."""
    return flow(predict, torch.linspace(-2, 2, 9, dtype=torch.float64), *RANGES[predict])


def flow(
    predict: Callable[[Tensor, Level], Prediction], x: Tensor, first: float, last: float
) -> Tensor:
    """Solve the probability-flow ODE by fourth-order Runge-Kutta on y = x/α: dy/dλ = x̂_0 − y, λ =
    ½·log SNR.
    """

    def slope(log_snr: float, y: Tensor) -> Tensor:
        level = between(log_snr)
        return 0.5 * (predict(level.alpha * y, level).x0 - y)

    steps, y = 600, x / between(first).alpha
    h = (last - first) / steps
    for k in range(steps):
        at = first + k * h
        k1 = slope(at, y)
        k2 = slope(at + h / 2, y + h / 2 * k1)
        k3 = slope(at + h / 2, y + h / 2 * k2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(at + h, y + h * k3))
    return between(last).alpha * y


def slope_of(counts: Sequence[int], errors: Sequence[float]) -> float:
    """Return −d log(error)/d log(count) by least squares."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (counts, errors))
    return -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


COUNTS = (64, 96, 128, 192, 256)
RANGES = {gaussian_predict: (-10.0, 8.0), mixture_predict: (-10.0, 4.0)}


def end_error(
    sampler: Sampler, predict: Callable[[Tensor, Level], Prediction], steps: int
) -> float:
    """Return the error at the last noisy level of an even log-SNR grid; the step to clean data is
    special.
    """
    levels, states = [*log_snr_grid(*RANGES[predict], steps), Level(0, 1.0, 0.0)], []
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    sample_loop(
        sampler,
        start,
        levels,
        predict,
        refuse,
        level_at=between,
        on_state=lambda i, x: states.append(x),
    )
    return float((states[-2] - exact_end(predict)).abs().max())


@pytest.mark.every(3)
@pytest.mark.parametrize("predict", [gaussian_predict, mixture_predict])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(SAMPLERS[name](), ORDERS[name]) for name in OF_DENOISERS if name not in RANDOM] + VARIANTS,
)
def test_order_of_convergence(
    sampler: Sampler, order: int, predict: Callable[[Tensor, Level], Prediction]
) -> None:
    """The error of the end point falls with num_steps^-order: the slope over five step counts says
    so.
    """
    slope = slope_of(COUNTS, [end_error(sampler, predict, count) for count in COUNTS])
    # The next term of the expansion still moves the slope; in third order it dominates for simple
    # data.
    assert order - 0.25 < slope < (order + 0.2 if order < 3 else 7), slope


def test_the_published_third_order_is_second() -> None:
    """With half the curvature, as published code has it, 3M loses an order."""
    ours, published = (
        [end_error(DPMSolver3M(curvature=c), gaussian_predict, count) for count in COUNTS]
        for c in (1.0, 0.5)
    )
    assert slope_of(COUNTS, published) == pytest.approx(2, abs=0.2)
    assert slope_of(COUNTS, ours) > 2.9
    assert all(a < 0.5 * b for a, b in zip(ours, published, strict=True))


def test_the_reference_solution_is_exact() -> None:
    x, (first, last) = torch.linspace(-2, 2, 9, dtype=torch.float64), RANGES[gaussian_predict]
    a, b = between(first), between(last)
    spread = math.sqrt((b.alpha**2 * S**2 + b.sigma**2) / (a.alpha**2 * S**2 + a.sigma**2))
    ours = flow(gaussian_predict, x, first, last)
    torch.testing.assert_close(
        ours, b.alpha * MU + (x - a.alpha * MU) * spread, rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(SAMPLERS[name](), ORDERS[name]) for name in OF_DENOISERS if ORDERS[name] < 3]
    + [
        (DDIM(0.5), 1),
        (DPMSolver2S(0.5), 2),
        (DPMSolver3M(eta=1.0), 2),
        (Euler(s_churn=20.0), 1),
        (Heun(s_churn=20.0), 2),
    ],
)
def test_order_of_the_law_of_samples(sampler: Sampler, order: int) -> None:
    """For Gaussian data mean and standard deviation of the samples are known without Monte Carlo
    (see `moments`).

    At third order they are so exact that errors of both signs cancel; the end points above say more
    there.
    """
    first, last = RANGES[gaussian_predict]
    counts, errors = (32, 64, 128, 256, 512), []
    for count in counts:
        levels = log_snr_grid(first, last, count)
        mean, std = moments(sampler, gaussian_predict, levels)
        end = levels[-1]
        wanted = math.sqrt(end.alpha**2 * S**2 + end.sigma**2)
        errors.append(abs(mean - end.alpha * MU) + abs(std - wanted))
    assert order - 0.2 < slope_of(counts, errors) < order + 0.3, errors
    assert errors[-1] < 0.01


def test_ddim_and_ddpm_converge_on_the_default_spacing() -> None:
    """Down to clean data, on the levels that `sample` visits."""
    for schedule, name in itertools.product(("linear", "cosine"), ("ddpm", "ddim")):
        diffusion = one_pixel(Schedule.make(schedule, 4096))
        counts, errors = [32, 64, 128, 256, 512], []
        for count in counts:
            levels = [diffusion.schedule.level(t) for t in sampling_levels(4096, count)]
            errors.append(abs(moments(SAMPLERS[name](), diffusion.denoise, levels)[1] - S))
        # The asymptotic slope is −1; at these counts the next term of the expansion still moves it.
        assert slope_of(counts, errors) == pytest.approx(1, abs=0.2)
        assert errors[-1] < 0.01


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_every_sampler_is_accurate_on_the_default_spacing(name: str) -> None:
    """Down to clean data the last step limits high orders; no sampler may be worse than DDIM for
    it.
    """
    for schedule, zero in itertools.product(("linear", "cosine"), (False, True)):
        diffusion = one_pixel(Schedule.make(schedule, 1000, {"zero_terminal_snr": zero}))
        levels = [diffusion.schedule.level(t) for t in sampling_levels(1000, 50)]
        error, ddim = (
            abs(moments(s, diffusion.denoise, levels, diffusion.schedule.level_at)[1] - S)
            for s in (SAMPLERS[name](), DDIM())
        )
        assert error < (1.01 if name not in RANDOM else 4.0) * ddim, (schedule, zero, error, ddim)


@settings(max_examples=60, deadline=None)
@given(h=st.floats(1e-4, 30.0), places=st.lists(st.floats(0.2, 3.0), min_size=0, max_size=3))
def test_quadrature_is_exact_for_polynomials(h: float, places: list[float]) -> None:
    nodes = [0.0, *(-x for x in itertools.accumulate(places))]
    weights = quadrature(nodes, h)
    # ∫_0^1 h·e^{−h(1−u)} u^j du by Gauss-Legendre on 200 pieces.
    u = (
        torch.arange(200, dtype=torch.float64)[:, None] + 0.5 * (1 + torch.tensor([-1, 1]) / 3**0.5)
    ) / 200
    kernel = h * torch.exp(-h * (1 - u)) / 400
    scale = sum(abs(w) * max(1.0, abs(n)) ** 3 for w, n in zip(weights, nodes, strict=True))
    for j in range(len(nodes)):
        ours = sum(w * n**j for w, n in zip(weights, nodes, strict=True))
        assert ours == pytest.approx(float((kernel * u**j).sum()), abs=1e-6 * max(1.0, scale))
