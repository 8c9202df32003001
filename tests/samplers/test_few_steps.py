"""What high order buys: few steps on a two-dimensional mixture of Gaussians with its exact
denoiser.
"""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from ddpm_lib.samplers import SAMPLERS, Prediction, make_sampler, sample_loop
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.spacing import sampling_levels
from ddpm_lib.variance import FixedSmall

COSINE = Schedule.make("cosine", 1000)
CENTRES = (
    0.7
    * torch.tensor(
        [[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)]
    ).double()
)
SPREAD = 0.08


def predict(x: Tensor, level: Level) -> Prediction:
    """The exact denoiser of eight round Gaussians on a circle; x is (b, 2)."""
    variance = level.alpha**2 * SPREAD**2 + level.sigma**2
    away = x[:, None] - level.alpha * CENTRES
    share = torch.softmax(-0.5 * away.square().sum(-1) / variance, -1)
    x0 = (share[..., None] * (CENTRES + level.alpha * SPREAD**2 / variance * away)).sum(1)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma, FixedSmall())


def draw(
    name: str, steps: int, spacing: str, options: dict | None = None, **sampler_options: object
) -> Tensor:
    levels = [COSINE.level(t) for t in sampling_levels(COSINE, steps, spacing, options)]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1000, 2, generator=generator, dtype=torch.float64)

    def noise() -> Tensor:
        return torch.randn(start.shape, generator=generator, dtype=torch.float64)

    return sample_loop(
        make_sampler(name, sampler_options), start, levels, predict, noise, level_at=COSINE.level_at
    )


@cache
def truth() -> Tensor:
    """Where the probability-flow ODE ends."""
    return draw("heun", 600, "log_snr", {"fractional": True})


def endpoint_error(x: Tensor) -> float:
    """Return the mean distance from the end points of the ODE; a median would hide those gone to
    another blob.
    """
    return float((x - truth()).norm(dim=1).mean())


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return 2·E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖, 0 only for equal distributions (Székely & Rizzo
    2013).
    """
    n, m = len(x), len(y)
    within = torch.pdist(x).sum() * 2 / (n * (n - 1)) + torch.pdist(y).sum() * 2 / (m * (m - 1))
    return float(2 * torch.cdist(x, y).mean() - within)


GRID = {"sigma_max": 10.0, "sigma_min": 0.02}
"""The noise range in which anything happens for data of this size."""


@pytest.mark.parametrize(("name", "ratio"), [("dpmpp_2m", 1.0), ("dpmpp_3m", 1.0), ("unipc", 0.55)])
def test_ten_steps_of_a_solver_beat_twenty_of_ddim(name: str, ratio: float) -> None:
    solver, ddim = (
        endpoint_error(draw(n, steps, "log_snr", GRID)) for n, steps in ((name, 10), ("ddim", 20))
    )
    assert solver < ratio * ddim, (solver, ddim)


@pytest.mark.parametrize(("name", "ratio"), [("dpmpp_2m", 0.8), ("dpmpp_3m", 0.6), ("unipc", 0.3)])
def test_twenty_steps_of_a_solver_beat_fifty_of_ddim(name: str, ratio: float) -> None:
    """On a wider range of noise, as for images."""
    solver, ddim = (
        endpoint_error(draw(n, steps, "log_snr", {"sigma_max": 80.0}))
        for n, steps in ((name, 20), ("ddim", 50))
    )
    assert solver < ratio * ddim, (solver, ddim)


@pytest.mark.parametrize(("name", "calls"), [("dpmpp_2s", 2), ("heun", 2)])
def test_two_calls_per_step_pay_off(name: str, calls: int) -> None:
    """At the same number of network calls as DDIM, once that is 40."""
    solver, ddim = (
        endpoint_error(draw(n, steps, "log_snr", GRID))
        for n, steps in ((name, 40 // calls), ("ddim", 40))
    )
    assert solver < 0.8 * ddim, (solver, ddim)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_samples_are_the_data(name: str) -> None:
    """Energy distance to fresh data after 30 steps, against that of 10 steps of DDIM."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(8, (1000,), generator=generator)
    data = CENTRES[chosen] + SPREAD * torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    distance = energy_distance(draw(name, 30, "log_snr", {"sigma_max": 80.0}), data)
    # Two draws of 1,000 are about 0.001 apart.
    assert distance < 0.003
    assert distance < 0.5 * energy_distance(draw("ddim", 10, "log_snr", {"sigma_max": 80.0}), data)
