"""What high order buys: few steps on a two-dimensional mixture of Gaussians with its exact
denoiser.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise

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


@dataclass(frozen=True)
class Mixture:
    """Gaussians of one diagonal covariance with their exact denoiser: centres (k, d), spread (d,)
    in variances, and where n trajectories start, (n, d).
    """

    centres: Tensor
    spread: Tensor
    start: Tensor

    def denoise(self, x: Tensor, level: Level) -> Prediction:
        variance = level.alpha**2 * self.spread + level.sigma**2
        away = x[:, None] - level.alpha * self.centres
        share = torch.softmax(-0.5 * (away.square() / variance).sum(-1), -1)
        x0 = (share[..., None] * (self.centres + level.alpha * self.spread / variance * away)).sum(
            1
        )
        return Prediction(x0, (x - level.alpha * x0) / level.sigma, FixedSmall())

    def draw(self, **options: object) -> Tensor:
        """Draw as `GaussianDiffusion.sample` does with these arguments."""
        plan = SamplingPlan.make(COSINE, **options)  # type: ignore[arg-type]
        noise = partial(torch.randn, *self.start.shape, dtype=torch.float64)
        return sample_loop(
            plan.sampler, self.start, plan.levels, self.denoise, noise, level_at=COSINE.level_at
        )

    @cached_property
    def end(self) -> Tensor:
        """Where the probability-flow ODE ends."""
        fine = {"sampler": UniPC(order=3), "spacing": "log_snr", "num_steps": 200}
        return self.draw(**fine, spacing_options={"fractional": True})

    def error(self, **options: object) -> float:
        """Return the mean over trajectories of the root mean square error of the end."""
        return float((self.draw(**options) - self.end).square().mean(1).sqrt().mean())


def like_images() -> Mixture:
    """Return a mixture whose spectrum falls as that of images does."""
    spread = 0.2 * torch.arange(1.0, 65.0, dtype=torch.float64) ** -2
    generator = torch.Generator().manual_seed(0)
    centres = 3 * spread.sqrt() * torch.randn(8, 64, generator=generator, dtype=torch.float64)
    start = torch.randn(100, 64, generator=generator, dtype=torch.float64)
    return Mixture(centres, spread, start)


def moons() -> Mixture:
    """Return two interleaved half moons of narrow Gaussians."""
    turn = torch.linspace(0, math.pi, 20, dtype=torch.float64)
    upper = torch.stack([turn.cos(), turn.sin()], 1)
    lower = torch.stack([1.0 - turn.cos(), 0.5 - turn.sin()], 1)
    centres = 0.55 * (torch.cat([upper, lower]) - torch.tensor([0.5, 0.25]))
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    return Mixture(centres, torch.full((2,), 0.05**2, dtype=torch.float64), start)


def ring() -> Mixture:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    return Mixture(CENTRES, torch.full((2,), SPREAD**2, dtype=torch.float64), start)


def test_the_default_in_twenty_steps_beats_ddim_in_a_hundred() -> None:
    """On data of two numbers too, which are finer than pictures are."""
    for data in (like_images(), moons(), ring()):
        usual = data.error()
        assert usual < 0.95 * data.error(sampler="ddim", num_steps=100)
        assert usual < 0.5 * data.error(sampler="dpmpp_2m", num_steps=20)


SOLVERS = ("ddim", "dpmpp_2m", UniPC(order=2), UniPC(order=3))
NARROW = {"sigma_min": 0.02, "sigma_max": 80.0}
FIXED = [("trailing", None), ("linspace", None), ("log_snr", NARROW), ("karras", NARROW)]


@pytest.mark.parametrize("calls", [4, 6, 8, 10, 14])
def test_no_fixed_choice_is_as_good_everywhere_as_the_default(calls: int) -> None:
    """Each is worse on one of the sets, or hardly better: what serves points of two numbers does
    not serve images, and what serves many steps not few.
    """
    sets = (like_images(), moons(), ring())
    usual = [data.error(num_steps=calls) for data in sets]
    for solver in SOLVERS:
        for spacing, options in FIXED:
            how = {"sampler": solver, "spacing": spacing, "spacing_options": options}
            found = [data.error(**how, num_steps=calls) for data in sets]
            worst = max(other / own for other, own in zip(found, usual, strict=True))
            assert worst > 0.9, (solver, spacing, found, usual)


@pytest.mark.parametrize("calls", [5, 6, 8, 10])
def test_the_last_step_is_no_leap(calls: int) -> None:
    """Levels that end at level 1 whatever their number leave a last noisy step that is several
    times as long as the one before: extrapolation over it is what made few steps bad.
    """
    to_one = {"sampler": "unipc", "num_steps": calls, "spacing": "mixed"}
    far = {"share": 0.75, "sigma_min": 0.006}
    for data in (moons(), ring()):
        assert data.error(num_steps=calls) < 0.75 * data.error(**to_one, spacing_options=far)
    steps = [level.log_snr for level in SamplingPlan.make(COSINE, num_steps=calls).levels[1:-1]]
    apart = [b - a for a, b in pairwise(steps)]
    assert apart[-1] < 1.5 * apart[-2]


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
