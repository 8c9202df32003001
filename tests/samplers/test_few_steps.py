"""What high order buys: few steps on a two-dimensional mixture of Gaussians with its exact
denoiser.
"""

from functools import cache, partial

import pytest
import torch
from torch import Tensor

from ddpm_lib.process.plan import SamplingPlan
from ddpm_lib.samplers import (
    DDIM,
    OF_DENOISERS,
    Prediction,
    UniPC,
    make_sampler,
    sample_loop,
)
from ddpm_lib.samplers.dpm_solver import DPMSolver2M
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.spacing import sampling_levels
from ddpm_lib.variance import FixedSmall
from sampler_tools import CENTRES, SPREAD
from sampler_tools import ring_predict as predict

COSINE = Schedule.make("cosine", 1000)


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


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_the_samples_are_the_data(name: str) -> None:
    """Energy distance to fresh data after 30 steps, against that of 10 steps of DDIM."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(8, (1000,), generator=generator)
    data = CENTRES[chosen] + SPREAD * torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    distance = energy_distance(draw(name, 30, "log_snr", {"sigma_max": 80.0}), data)
    # Two draws of 1,000 are about 0.001 apart.
    assert distance < 0.003
    assert distance < 0.5 * energy_distance(draw("ddim", 10, "log_snr", {"sigma_max": 80.0}), data)


def draw_like_images(**options: object) -> Tensor:
    """Draw as `GaussianDiffusion.sample` does with these arguments, from a mixture whose spectrum
    falls as that of images does, with its exact denoiser; x is (b, 64).
    """
    spread = 0.2 * torch.arange(1.0, 65.0, dtype=torch.float64) ** -2
    generator = torch.Generator().manual_seed(0)
    centres = 3 * spread.sqrt() * torch.randn(8, 64, generator=generator, dtype=torch.float64)
    start = torch.randn(200, 64, generator=generator, dtype=torch.float64)

    def denoise(x: Tensor, level: Level) -> Prediction:
        variance = level.alpha**2 * spread + level.sigma**2
        away = x[:, None] - level.alpha * centres
        share = torch.softmax(-0.5 * (away.square() / variance).sum(-1), -1)
        x0 = (share[..., None] * (centres + level.alpha * spread / variance * away)).sum(1)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma, FixedSmall())

    plan = SamplingPlan.make(COSINE, **options)  # type: ignore[arg-type]
    noise = partial(torch.randn, 200, 64, dtype=torch.float64)
    return sample_loop(plan.sampler, start, plan.levels, denoise, noise, level_at=COSINE.level_at)


def test_the_default_in_twenty_steps_beats_ddim_in_a_hundred() -> None:
    fine = {"sampler": UniPC(order=3), "spacing": "log_snr", "num_steps": 200}
    end = draw_like_images(**fine, spacing_options={"fractional": True})

    def error(**options: object) -> float:
        return float((draw_like_images(**options) - end).square().mean().sqrt())

    usual = error()
    assert usual < 0.7 * error(sampler="ddim", num_steps=100)
    assert usual < 0.5 * error(sampler="dpmpp_2m", num_steps=20)


@pytest.mark.parametrize(
    ("options", "sampler", "steps", "levels"),
    [
        ({}, UniPC(order=3), 20, "mixed"),
        ({"sampler": "unipc"}, UniPC(order=3), 20, "mixed"),
        ({"num_steps": 8}, UniPC(order=2), 8, "mixed"),
        ({"guidance_scale": 2.0}, UniPC(order=2), 20, "mixed"),
        ({"sampler_options": {"order": 1}}, UniPC(order=1), 20, "mixed"),
        ({"spacing": "karras"}, UniPC(order=3), 20, "karras"),
        ({"sampler": "ddim"}, DDIM(), 50, "trailing"),
        ({"eta": 0.5}, DDIM(eta=0.5), 50, "trailing"),
        ({"sampler": "dpmpp_2m"}, DPMSolver2M(), 50, "trailing"),
    ],
)
def test_what_sampling_does_where_little_is_said(
    options: dict, sampler: object, steps: int, levels: str
) -> None:
    plan = SamplingPlan.make(COSINE, **options)
    assert plan.sampler == sampler
    assert [level.t for level in plan.levels] == sampling_levels(COSINE, steps, levels)


def test_few_levels_are_all_visited() -> None:
    assert SamplingPlan.make(Schedule.make("cosine", 7)).num_steps == 7
