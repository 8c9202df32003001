"""Theory: for Gaussian data the exact denoiser is linear, so a sampler is an affine map whose coefficients can be read off."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.levels import Level, tau
from ddpm_lib.samplers import DDIM, DDPM, SAMPLERS, Prediction, Sampler, make_sampler, sample_loop
from ddpm_lib.schedules import Schedule
from ddpm_lib.spacing import sampling_levels
from process_tools import gaussian_diffusion

MU, S = 0.3, 0.5


def _pixel(value: float) -> Tensor:
    return torch.full((1, 1), value, dtype=torch.float64)


def one_pixel(schedule: Schedule, mu: float = MU, s: float = S, **options: object) -> GaussianDiffusion:
    return gaussian_diffusion(_pixel(mu), _pixel(s), schedule, "v", **options)


def moments(sampler: Sampler, diffusion: GaussianDiffusion, levels: list[Level], predict=None) -> tuple[float, float]:
    """Return the exact mean and standard deviation of what a sampler makes, in float64, without Monte Carlo.

    Row 0 has neither start nor noise and gives the constant, row 1 starts at 1, row 2 + k gets 1 as the k-th noise.
    """
    rows = 2 + 2 * len(levels)
    start = torch.zeros(rows, 1, 1, dtype=torch.float64)
    start[1] = 1
    drawn = 0

    def noise() -> Tensor:
        nonlocal drawn
        z = torch.zeros(rows, 1, 1, dtype=torch.float64)
        z[2 + drawn] = 1
        drawn += 1
        return z

    x = sample_loop(sampler, start, levels, predict or diffusion.denoise, noise).flatten()
    response = x[1:] - x[0]
    first = levels[0]
    net = diffusion.model
    mu, s = float(net.mu), float(net.s)
    mean = float(x[0] + response[0] * first.alpha * mu)
    variance = float(response[0] ** 2 * (first.alpha**2 * s**2 + first.sigma**2) + response[1:].square().sum())
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_order_of_convergence(name: str, schedule: str) -> None:
    """The error of the standard deviation falls with num_steps^-order: the slope over five step counts says so."""
    diffusion = one_pixel(Schedule.make(schedule, 4096))
    counts, errors = [32, 64, 128, 256, 512], []
    sampler = SAMPLERS[name]()
    for count in counts:
        levels = [diffusion.schedule.level(t) for t in sampling_levels(4096, count)]
        errors.append(abs(moments(sampler, diffusion, levels)[1] - S))
    x, y = torch.tensor(counts).double().log(), torch.tensor(errors).double().log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    # The asymptotic slope is −order; at these counts the next term of the expansion still moves it.
    assert -slope == pytest.approx(sampler.order, abs=0.2)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_one_point_data_comes_out_exactly(name: str, steps: int) -> None:
    diffusion = one_pixel(Schedule.make("linear", 50), s=0.0)
    levels = [diffusion.schedule.level(t) for t in sampling_levels(50, steps)]
    mean, std = moments(SAMPLERS[name](), diffusion, levels)
    assert mean == pytest.approx(MU, abs=1e-12)
    assert std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading", "quadratic"])
@pytest.mark.parametrize("steps", [2, 3, 10, 60])
@pytest.mark.parametrize("zero", [False, True])
def test_ancestral_sampling_with_the_exact_variance_is_exact(spacing: str, steps: int, zero: bool) -> None:
    """p(x_s | x_t) of Gaussian data is Gaussian: with its true variance the chain has the true law of x_s at any step count."""
    diffusion = one_pixel(Schedule.make("linear", 60, {"zero_terminal_snr": zero}))

    def predict(x: Tensor, level: Level) -> Prediction:
        def variance(t: Level, s: Level) -> float:
            spread = S**2 * t.sigma**2 / (t.alpha**2 * S**2 + t.sigma**2)  # Var[x_0 | x_t]
            on_x0 = s.alpha - s.sigma * math.sqrt(1 - tau(t, s)) * t.alpha / t.sigma
            return s.sigma**2 * tau(t, s) + on_x0**2 * spread

        return diffusion.denoise(x, level)._replace(variance=variance)

    # The last step draws no noise by construction, so the claim is about the level before.
    levels = [diffusion.schedule.level(t) for t in sampling_levels(60, steps, spacing)[:-1]]
    mean, std = moments(DDPM(), diffusion, levels, predict)
    last = levels[-1]
    assert mean == pytest.approx(last.alpha * MU, abs=1e-12)
    assert std == pytest.approx(math.sqrt(last.alpha**2 * S**2 + last.sigma**2), rel=1e-12)


def test_fixed_variances_are_exact_in_their_limits() -> None:
    """fixed_large is the reverse variance of data ~ N(0, 1), at any step count (Ho et al. 2020, §3.2)."""
    diffusion = one_pixel(Schedule.make("linear", 60), mu=0.0, s=1.0, variance="fixed_large")
    for steps in (2, 5, 60):
        levels = [diffusion.schedule.level(t) for t in sampling_levels(60, steps)[:-1]]
        mean, std = moments(DDPM(), diffusion, levels)
        assert (mean, std) == (pytest.approx(0, abs=1e-12), pytest.approx(1, rel=1e-12))


def test_ddim_eta_1_is_ancestral_sampling() -> None:
    diffusion = one_pixel(Schedule.make("cosine", 40))
    levels = [diffusion.schedule.level(t) for t in sampling_levels(40, 13)]
    noise = torch.randn(13, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    runs = [sample_loop(s, noise[0], levels, diffusion.denoise, iter(noise).__next__) for s in (DDPM(), DDIM(1.0))]
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_pure_noise_at_the_end_is_no_special_case(name: str) -> None:
    diffusion = one_pixel(Schedule.make("linear", 1000, {"zero_terminal_snr": True}))
    levels = [diffusion.schedule.level(t) for t in sampling_levels(1000, 250)]
    mean, std = moments(SAMPLERS[name](), diffusion, levels)
    assert mean == pytest.approx(MU, abs=0.01)
    assert std == pytest.approx(S, abs=0.02)


def test_encoding_inverts_sampling_to_first_order() -> None:
    diffusion = one_pixel(Schedule.make("cosine", 1024))
    images = torch.linspace(0.2, 0.9, 5).double().view(5, 1, 1)
    errors = []
    for steps in (64, 128, 256, 512):
        x_t = diffusion.encode(images, steps)
        assert x_t.dtype == torch.float64
        assert not x_t.is_inference()
        errors.append(float((diffusion.decode(x_t, num_steps=steps) - images).abs().max()))
    ratios = [a / b for a, b in pairwise(errors)]
    # Euler's method: half the step, half the error.
    assert all(1.7 < r < 2.3 for r in ratios), ratios


def test_deterministic_samplers_draw_nothing() -> None:
    diffusion = one_pixel(Schedule.make("cosine", 10))
    levels = [diffusion.schedule.level(t) for t in range(10, -1, -1)]

    def refuse() -> Tensor:
        raise AssertionError("drew noise")

    sample_loop(DDIM(), torch.zeros(1, 1, 1).double(), levels, diffusion.denoise, refuse)
    # One step to clean data has no noise in it, whatever the sampler.
    for sampler in (DDPM(), DDIM(1.0)):
        sample_loop(sampler, torch.zeros(1, 1, 1).double(), [levels[0], levels[-1]], diffusion.denoise, refuse)


def test_loop_reports_every_state() -> None:
    diffusion = one_pixel(Schedule.make("cosine", 10))
    levels, seen = [diffusion.schedule.level(t) for t in (10, 5, 0)], []
    x = sample_loop(
        DDIM(), torch.ones(1, 1, 1).double(), levels, diffusion.denoise, torch.empty, on_state=partial(_see, seen)
    )
    assert [i for i, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][1], x)


def _see(seen: list, i: int, x: Tensor) -> None:
    seen.append((i, x))


def test_make_sampler() -> None:
    assert make_sampler("ddim", eta=0.3) == DDIM(0.3)
    assert make_sampler("ddpm", eta=None) == DDPM()
    assert make_sampler(DDIM(0.5)) == DDIM(0.5)
    with pytest.raises(ValueError, match=r"'ddpm' has no option 'eta'\. Leave it out, or use 'ddim'"):
        make_sampler("ddpm", eta=0.0)
    with pytest.raises(ValueError, match="Did you mean 'ddim'"):
        make_sampler("dimm")
    with pytest.raises(ValueError, match=r"DDIM\(eta=0.1\)"):
        make_sampler(DDIM(), eta=0.1)
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\]"):
        DDIM(1.5)
