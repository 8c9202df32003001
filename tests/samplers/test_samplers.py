"""Theory: for Gaussian data the exact denoiser is linear, so a sampler is an affine map that can be
read off.
"""

import itertools
import math
import warnings
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.parametrization import PARAMETRIZATIONS
from ddpm_lib.samplers import (
    DDIM,
    DDPM,
    OF_DENOISERS,
    SAMPLERS,
    DPMSolver2M,
    DPMSolver2MSDE,
    DPMSolver2S,
    DPMSolver3M,
    Euler,
    Heun,
    Prediction,
    Sampler,
    UniPC,
    make_sampler,
    sample_loop,
)
from ddpm_lib.schedules import SCHEDULES, Schedule
from ddpm_lib.schedules.levels import Level, tau
from ddpm_lib.spacing import SPACINGS, sampling_levels
from ddpm_lib.variance import FixedSmall
from process_tools import TinyNet
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


@pytest.mark.parametrize("name", OF_DENOISERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_one_point_data_comes_out_exactly(name: str, steps: int) -> None:
    diffusion = one_pixel(Schedule.make("linear", 50), s=0.0)
    levels = [diffusion.schedule.level(t) for t in sampling_levels(50, steps)]
    mean, std = moments(
        SAMPLERS[name](), diffusion.denoise, levels, diffusion.schedule.level_at, s=0.0
    )
    # Networks get t in float32, which a fractional level shows.
    tolerance = 1e-6 if name == "dpmpp_2s" else 1e-12
    assert mean == pytest.approx(MU, abs=tolerance)
    assert std == pytest.approx(0, abs=tolerance)


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading", "quadratic"])
@pytest.mark.parametrize("steps", [2, 3, 10, 60])
@pytest.mark.parametrize("zero", [False, True])
def test_ancestral_sampling_with_the_exact_variance_is_exact(
    spacing: str, steps: int, zero: bool
) -> None:
    """p(x_s | x_t) of Gaussian data is Gaussian: with its true variance the chain is exact at any
    step count.
    """
    diffusion = one_pixel(Schedule.make("linear", 60, {"zero_terminal_snr": zero}))

    def predict(x: Tensor, level: Level) -> Prediction:
        def variance(t: Level, s: Level) -> float:
            spread = S**2 * t.sigma**2 / (t.alpha**2 * S**2 + t.sigma**2)  # Var[x_0 | x_t]
            on_x0 = s.alpha - s.sigma * math.sqrt(1 - tau(t, s)) * t.alpha / t.sigma
            return s.sigma**2 * tau(t, s) + on_x0**2 * spread

        return diffusion.denoise(x, level)._replace(variance=variance)

    # The last step draws no noise by construction, so the claim is about the level before.
    levels = [diffusion.schedule.level(t) for t in sampling_levels(60, steps, spacing)[:-1]]
    mean, std = moments(DDPM(), predict, levels)
    last = levels[-1]
    assert mean == pytest.approx(last.alpha * MU, abs=1e-12)
    assert std == pytest.approx(math.sqrt(last.alpha**2 * S**2 + last.sigma**2), rel=1e-12)


def test_fixed_variances_are_exact_in_their_limits() -> None:
    """fixed_large is the reverse variance of data ~ N(0, 1), at any step count (Ho et al. 2020,
    §3.2).
    """
    diffusion = one_pixel(Schedule.make("linear", 60), mu=0.0, s=1.0, variance="fixed_large")
    for steps in (2, 5, 60):
        levels = [diffusion.schedule.level(t) for t in sampling_levels(60, steps)[:-1]]
        mean, std = moments(DDPM(), diffusion.denoise, levels, mu=0.0, s=1.0)
        assert (mean, std) == (pytest.approx(0, abs=1e-12), pytest.approx(1, rel=1e-12))


def test_ddim_eta_1_is_ancestral_sampling() -> None:
    diffusion = one_pixel(Schedule.make("cosine", 40))
    levels = [diffusion.schedule.level(t) for t in sampling_levels(40, 13)]
    noise = torch.randn(
        13, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    runs = [
        sample_loop(s, noise[0], levels, diffusion.denoise, iter(noise).__next__)
        for s in (DDPM(), DDIM(1.0))
    ]
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_pure_noise_at_the_end_is_no_special_case(name: str) -> None:
    diffusion = one_pixel(Schedule.make("linear", 1000, {"zero_terminal_snr": True}))
    levels = [diffusion.schedule.level(t) for t in sampling_levels(1000, 250)]
    mean, std = moments(SAMPLERS[name](), diffusion.denoise, levels, diffusion.schedule.level_at)
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


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_deterministic_samplers_draw_nothing(name: str) -> None:
    diffusion, x = one_pixel(Schedule.make("cosine", 10)), torch.zeros(1, 1, 1).double()
    levels, level_at = (
        [diffusion.schedule.level(t) for t in range(10, -1, -1)],
        diffusion.schedule.level_at,
    )
    if name not in RANDOM:
        sample_loop(SAMPLERS[name](), x, levels, diffusion.denoise, refuse, level_at=level_at)
    # One step to clean data has no noise in it, whatever the sampler.
    for sampler in (SAMPLERS[name](), DDIM(1.0), DPMSolver2S(1.0)):
        sample_loop(
            sampler, x, [levels[0], levels[-1]], diffusion.denoise, refuse, level_at=level_at
        )


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", OF_DENOISERS)
def test_the_last_step_is_the_predicted_image(name: str, zero: bool) -> None:
    """At σ = 0 nothing is left of x but x̂_0 (but for UniPC, whose last x is corrected before)."""
    diffusion, seen = one_pixel(Schedule.make("cosine", 20, {"zero_terminal_snr": zero})), []
    levels = [diffusion.schedule.level(t) for t in (20, 13, 5, 1, 0)]

    def predict(x: Tensor, level: Level) -> Prediction:
        seen.append((level.t, diffusion.denoise(x, level)))
        return seen[-1][1]

    generator = torch.Generator().manual_seed(0)
    noise = partial(torch.randn, 3, 1, 1, dtype=torch.float64, generator=generator)
    x = sample_loop(
        SAMPLERS[name](), noise(), levels, predict, noise, level_at=diffusion.schedule.level_at
    )
    assert seen[-1][0] == 1  # No call at clean data.
    torch.testing.assert_close(x, seen[-1][1].x0, rtol=1e-14, atol=1e-14)
    if name in ("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc", "deis", "euler"):
        assert [t for t, _ in seen] == [20, 13, 5, 1]


def test_solvers_reduce_to_one_another() -> None:
    levels = [*log_snr_grid(-6.0, 5.0, 9), Level(0, 1.0, 0.0)]
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    noise = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(sampler: Sampler) -> Tensor:
        return sample_loop(
            sampler, x, levels, mixture_predict, iter(noise).__next__, level_at=between
        )

    for a, b in [
        (Euler(), DDIM()),
        (UniPC(order=1, corrector=False), DDIM()),
        (UniPC(order=2, corrector=False), DPMSolver2M()),
        (UniPC(order=3, corrector=False), DPMSolver3M(solver="midpoint")),
        (DPMSolver2MSDE(eta=0.0), DPMSolver2M()),
    ]:
        torch.testing.assert_close(run(a), run(b), rtol=1e-11, atol=1e-11)


def test_noise_of_the_right_amount() -> None:
    """Data ~ N(0, 1) have that law at every level; solvers of the reverse SDE and churn must keep
    it nearly.
    """

    def predict(x: Tensor, level: Level) -> Prediction:
        return Prediction(level.alpha * x, level.sigma * x, FixedSmall())

    for sampler in (
        DPMSolver2MSDE(),
        DPMSolver3M(eta=1.0),
        DPMSolver2S(1.0),
        Euler(s_churn=40.0),
        Heun(s_churn=40.0),
    ):
        levels = log_snr_grid(-10.0, 8.0, 300)
        assert moments(sampler, predict, levels, mu=0.0, s=1.0) == pytest.approx(
            (0, 1), abs=0.05
        ), sampler


def test_heun_keeps_its_head_near_pure_noise() -> None:
    """Few even steps from a schedule that ends at σ/α = 20,000: the published factor extrapolates
    wildly.
    """
    diffusion = one_pixel(Schedule.make("cosine", 1000))
    levels = [diffusion.schedule.level(t) for t in sampling_levels(1000, 10)]
    ours, published = (
        moments(s, diffusion.denoise, levels)[1] for s in (Heun(), Heun(limit=math.inf))
    )
    assert abs(ours - S) < 0.05
    assert abs(published - S) > 1


def test_churn_needs_to_know_the_levels_in_between() -> None:
    levels = log_snr_grid(-6.0, 5.0, 9)
    for sampler in (Euler(s_churn=10.0), DPMSolver2S()):
        with pytest.raises(ValueError, match=r"Pass level_at=schedule\.level_at"):
            sample_loop(
                sampler, torch.zeros(1).double(), levels, gaussian_predict, partial(torch.zeros, 1)
            )


def test_churn_stays_within_the_schedule() -> None:
    schedule = Schedule.make("linear", 50)
    diffusion, seen = one_pixel(schedule), []

    def predict(x: Tensor, level: Level) -> Prediction:
        seen.append(level)
        return diffusion.denoise(x, level)

    levels = [schedule.level(t) for t in (50, 30, 10, 0)]
    noise = partial(torch.zeros, 1, 1, 1, dtype=torch.float64)
    sample_loop(Euler(s_churn=100.0), noise(), levels, predict, noise, level_at=schedule.level_at)
    assert seen[0].t == 50
    for level, below in zip(seen[1:], (30, 10), strict=True):
        assert level.t > below
        raised = (
            level.sigma / level.alpha / (schedule.level(below).sigma / schedule.level(below).alpha)
        )
        assert raised == pytest.approx(math.sqrt(2), rel=1e-9)
    seen.clear()
    sample_loop(
        Euler(100.0, s_tmax=0.5), noise(), levels, predict, noise, level_at=schedule.level_at
    )
    assert [level.t == int(level.t) for level in seen] == [
        not lv.sigma / lv.alpha <= 0.5 or lv.t == 50 for lv in levels[:-1]
    ]


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_images_do_not_depend_on_the_batch(name: str) -> None:
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(TinyNet(), image_size=4, timesteps=40)
    whole = diffusion.sample(4, sampler=name, num_steps=6, seed=3)
    parts = diffusion.sample(4, sampler=name, num_steps=6, seed=3, batch_size=3)
    torch.testing.assert_close(whole, parts, rtol=0, atol=0)
    torch.testing.assert_close(
        whole[2:], diffusion.sample(2, sampler=name, num_steps=6, seed=3, first_index=2)
    )
    assert whole.shape == (4, 3, 4, 4)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", OF_DENOISERS)
def test_every_schedule_parametrization_and_spacing(name: str) -> None:
    """With and without pure noise at the end, and few steps of very different size."""
    needed = {"betas": {"betas": [0.1 * k for k in range(1, 9)]}, "shifted_cosine": {"size": 128}}
    spacings = itertools.cycle([*SPACINGS, "2,3", [8, 7, 2.5, 1]])
    for schedule, parametrization, zero in itertools.product(
        SCHEDULES, PARAMETRIZATIONS, (False, True)
    ):
        if (zero or schedule == "jsd") and PARAMETRIZATIONS[parametrization].needs_signal:
            continue
        options = {**needed.get(schedule, {}), "zero_terminal_snr": zero}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            diffusion = GaussianDiffusion(
                TinyNet(),
                image_size=3,
                schedule=Schedule.make(schedule, 8, options),
                parametrization=parametrization,
                weighting="flat",
                clip="none",
            )
        # Twice, so that each spacing meets every sampler with many schedules.
        for spacing in (next(spacings), next(spacings)):
            images = diffusion.sample(
                1, sampler=name, spacing=spacing, num_steps=5 if spacing in list(SPACINGS) else None
            )
            assert torch.isfinite(images).all(), (schedule, parametrization, zero, spacing)


def test_sample_takes_options_of_samplers_and_spacings() -> None:
    diffusion = GaussianDiffusion(TinyNet(), image_size=4, timesteps=40)
    a = diffusion.sample(
        2, sampler="unipc", sampler_options={"order": 3}, num_steps=6, spacing="karras"
    )
    b = diffusion.sample(
        2, sampler=UniPC(order=3), num_steps=6, spacing="karras", spacing_options={"rho": 7.0}
    )
    assert torch.equal(a, b)
    for options in (
        {"s_churn": 20.0, "s_noise": 1.003},
        {"s_tmin": 0.1, "s_tmax": 10.0, "s_churn": 5.0},
    ):
        x = diffusion.sample(
            2, sampler="heun", sampler_options=options, num_steps=6, spacing="karras"
        )
        assert torch.isfinite(x).all()


def test_loop_reports_every_state() -> None:
    diffusion = one_pixel(Schedule.make("cosine", 10))
    levels, seen = [diffusion.schedule.level(t) for t in (10, 5, 0)], []
    x = sample_loop(
        DDIM(),
        torch.ones(1, 1, 1).double(),
        levels,
        diffusion.denoise,
        torch.empty,
        on_state=partial(_see, seen),
    )
    assert [i for i, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][1], x)


def _see(seen: list, i: int, x: Tensor) -> None:
    seen.append((i, x))


def test_make_sampler() -> None:
    assert make_sampler("ddim", eta=0.3) == DDIM(0.3)
    assert make_sampler("ddim", {"eta": 0.3}) == DDIM(0.3)
    assert make_sampler("ddpm", eta=None) == DDPM()
    assert make_sampler(DDIM(0.5)) == DDIM(0.5)
    assert make_sampler("unipc", {"order": 3, "variant": "bh1"}) == UniPC(3, "bh1")
    with pytest.raises(
        ValueError, match=r"'ddpm' has no option 'eta'\. Leave it out, or use 'ddim'"
    ):
        make_sampler("ddpm", eta=0.0)
    with pytest.raises(ValueError, match="Did you mean 'ddim'"):
        make_sampler("dimm")
    with pytest.raises(ValueError, match="Did you mean 'dpmpp_2m'"):
        make_sampler("dpm++_2m", eta=0.5)
    with pytest.raises(ValueError, match="Did you mean 's_churn'"):
        make_sampler("heun", {"churn": 1.0})
    with pytest.raises(ValueError, match=r"DDIM\(eta=0.1\)"):
        make_sampler(DDIM(), eta=0.1)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (DDIM, {"eta": 1.5}, r"eta must be in \[0, 1\]"),
        (DPMSolver2M, {"eta": -0.1}, r"eta must be in \[0, 1\]"),
        (DPMSolver3M, {"solver": "euler"}, "'midpoint' or 'heun'"),
        (DPMSolver2S, {"eta": 2}, r"eta must be in \[0, 1\]"),
        (UniPC, {"order": 5}, "order must be 1, 2, 3 or 4"),
        (UniPC, {"variant": "bh3"}, "'bh1' or 'bh2'"),
        (Heun, {"s_churn": -1}, "must not be negative"),
        (Euler, {"s_tmin": 2, "s_tmax": 1}, "0 ≤ s_tmin ≤ s_tmax"),
    ],
)
def testrefused_options(cls: type[Sampler], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**options)
