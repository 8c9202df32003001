"""Training between the levels: what t means there, what it weighs, and that it learns what it
should.
"""

import math

import pytest
import torch

from ddpm_lib import GaussianDiffusion
from ddpm_lib.schedules import SCHEDULES, Schedule
from ddpm_lib.schedules.interpolation import log_snr_between, times_of
from ddpm_lib.schedules.levels import Level
from ddpm_lib.time_sampling import Continuous, UniformAlphaBar
from ddpm_lib.weighting import WEIGHTINGS
from process_tools import REQUIRED, TinyNet, gaussian_diffusion

CONTINUOUS = ("continuous", "uniform_alpha_bar", "log_normal_sigma")


def make(name: str, timesteps: int, zero: bool = False) -> Schedule:
    options = dict(REQUIRED.get(name, {}))
    if name == "betas":
        options = {"betas": [0.9 * k / timesteps for k in range(1, timesteps + 1)]}
    return Schedule.make(name, timesteps, {**options, "zero_terminal_snr": zero})


@pytest.mark.every(3)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_between_levels(name: str, zero: bool) -> None:
    """The vectorised levels are the single ones, meet the table, decrease, and have an inverse."""
    schedule = make(name, 20, zero)
    t = torch.linspace(0.05, 20, 400, dtype=torch.float64)
    alpha, sigma = schedule.gather(t)
    singles = [schedule.level(float(v)) for v in t]
    torch.testing.assert_close(
        alpha, torch.tensor([s.alpha for s in singles], dtype=torch.float64), rtol=1e-12, atol=1e-15
    )
    torch.testing.assert_close(
        sigma, torch.tensor([s.sigma for s in singles], dtype=torch.float64), rtol=1e-12, atol=1e-15
    )
    grid = torch.arange(1, 21, dtype=torch.float64)
    for ours, table in zip(schedule.gather(grid), schedule.gather(grid.long())):
        torch.testing.assert_close(ours, table, rtol=1e-12, atol=1e-15)
    log_snr, fall = log_snr_between(schedule.log_snr, t)
    assert (log_snr.diff() < 0).all()
    assert (fall > 0).all()
    torch.testing.assert_close(times_of(schedule.log_snr, log_snr), t, rtol=1e-9, atol=1e-9)
    # The fall is the derivative.
    inner = t[:-1] + 0.011
    step = 1e-6
    ahead, behind = (log_snr_between(schedule.log_snr, inner + s)[0] for s in (step, -step))
    same = (inner + step).floor() == (inner - step).floor()
    slope = log_snr_between(schedule.log_snr, inner)[1]
    torch.testing.assert_close(
        ((behind - ahead) / (2 * step))[same], slope[same], rtol=1e-5, atol=1e-5
    )


def test_continuous_cosine_is_the_cosine() -> None:
    """Between 1,000 levels the interpolated log-SNR is that of cos² (Nichol & Dhariwal 2021, eq.
    17).
    """
    t = torch.linspace(10, 900, 891, dtype=torch.float64) + 0.5
    log_snr, _ = log_snr_between(Schedule.make("cosine", 1000).log_snr, t)
    angle = (t / 1000 + 0.008) / 1.008 * (math.pi / 2)
    alpha_bar = torch.cos(angle).square() / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    # Near clean data λ ≈ −2·ln t, and a chord of it is off by at most ¼/t² in the middle.
    error = (log_snr - torch.logit(alpha_bar)).abs()
    assert (error < 0.3 / t.square() + 1e-4).all()
    linear, _ = log_snr_between(Schedule.make("log_linear", 1000).log_snr, t)
    torch.testing.assert_close(linear, 13.3 - 20.3 * (t - 1) / 999, rtol=0, atol=1e-9)


def test_what_is_uniform() -> None:
    u = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    schedule = Schedule.make("cosine", 1000)
    t, weights = Continuous(stratified=False)(u, 1000)
    assert weights is None
    torch.testing.assert_close(t, 1 + 999 * u)
    sampler = UniformAlphaBar()
    sampler.bind(schedule)
    alpha, _ = schedule.gather(sampler(u, 1000)[0])
    first, last = schedule.alpha[1] ** 2, schedule.alpha[-1] ** 2
    torch.testing.assert_close(alpha.square(), torch.lerp(first, last, u), rtol=1e-9, atol=1e-12)
    shifted, _ = Continuous()(torch.full((10,), 0.73).double(), 1000)
    torch.testing.assert_close(shifted.sort().values.diff(), torch.full((9,), 99.9).double())


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_between_levels_are_those_of_ever_finer_levels(name: str) -> None:
    """At T = 4,000 the weight of the table and the continuous one agree."""
    schedule = Schedule.make("log_linear", 4000)
    table = WEIGHTINGS[name]()(schedule.snr[1:])
    t = torch.arange(2, 4000, dtype=torch.float64)
    # The table's differences look back from t; halfway there is where the continuous weight
    # belongs.
    exact = WEIGHTINGS[name]().between(*schedule.snr_between(t - 0.5))
    torch.testing.assert_close(exact, table[1:-1], rtol=4e-3, atol=0)


def test_the_continuous_bound_is_the_limit_of_the_bound() -> None:
    """½∫−SNR′(u)·‖x_0 − x̂_0‖² du of Gaussian data with its exact denoiser, against the sum over
    2,000 steps.
    """
    mu, s = (
        torch.full((1, 1), 0.2, dtype=torch.float64),
        torch.full((1, 1), 0.5, dtype=torch.float64),
    )
    d = gaussian_diffusion(
        mu,
        s,
        Schedule.make("log_linear", 2000),
        "v",
        weighting="vlb",
        time_sampler="continuous",
        loss="simple",
    )
    # E‖x_0 − x̂_0‖² = s²/(1 + s²·SNR), so that ½∫ dSNR s²/(1 + s² SNR) = ½ ln((1 + s²·SNR_1)/(1 +
    # s²·SNR_T)).
    first, last = float(d.schedule.snr[1]), float(d.schedule.snr[-1])
    closed = 0.5 * math.log((1 + 0.25 * first) / (1 + 0.25 * last)) / math.log(2)
    t = torch.linspace(1, 2000, 40_001, dtype=torch.float64)
    weight = d.weighting.between(*d.schedule.snr_between(t))
    snr = d.schedule.snr_between(t)[0]
    integral = torch.trapezoid(weight * 0.25 / (1 + 0.25 * snr), t / 2000)
    assert float(integral) == pytest.approx(closed, rel=1e-6)
    # And the loss is an estimate of it.
    images = (
        mu + s * torch.randn(20_000, 1, 1, generator=torch.Generator().manual_seed(0)).double() + 1
    ) / 2
    u = torch.full((20_000,), 0.37, dtype=torch.float64)
    noise = torch.randn(20_000, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    d._range_checked, d.check_images = True, lambda images: None  # Gaussian data leaves [0, 1]
    per_image = d(images, uniform=u, noise=noise, reduction="none")
    # u/t falls one level short of T: (T − 1)/T of the range is drawn from.
    estimate = float(per_image.mean()) * 1999 / 2000
    assert estimate == pytest.approx(closed, abs=4 * float(per_image.std()) / math.sqrt(20_000))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_training_and_what_is_refused(name: str) -> None:
    torch.manual_seed(0)
    d = GaussianDiffusion(TinyNet(), image_size=4, timesteps=50, time_sampler=name)
    d(torch.rand(4, 3, 4, 4)).backward()
    assert all(torch.isfinite(p.grad).all() for p in d.parameters())
    assert torch.isfinite(d.sample(2, num_steps=4, sampler="dpmpp_2m", spacing="log_snr")).all()
    again = GaussianDiffusion(TinyNet(), **d.config)
    assert again.config == d.config
    with pytest.raises(ValueError, match=f"'{name}' draws times between.*weighting='vlb'"):
        GaussianDiffusion(TinyNet(), image_size=4, time_sampler=name, loss="vlb")


def test_real_times_can_be_given() -> None:
    d = GaussianDiffusion(TinyNet(), image_size=4, timesteps=50)
    images, noise = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    whole = d(images, t=torch.tensor([3, 50]), noise=noise)
    torch.testing.assert_close(
        d(images, t=torch.tensor([3.0, 50.0]), noise=noise), whole, rtol=1e-5, atol=1e-6
    )
    assert d(images, t=torch.tensor([3.4, 49.5]), noise=noise) != whole
    with pytest.raises(ValueError, match=r"1 … 50; got .* 0.5 … 3"):
        d(images, t=torch.tensor([0.5, 3.0]), noise=noise)


def test_a_network_hears_the_real_time() -> None:
    class Listener(TinyNet):
        def forward(self, x, t, cond=None):
            self.heard = t
            return super().forward(x, t, cond)

    d = GaussianDiffusion(Listener(), image_size=4, timesteps=50, time_sampler="continuous")
    d(torch.rand(2, 3, 4, 4), uniform=torch.tensor([0.25, 0.5]).double())
    torch.testing.assert_close(d.model.heard, torch.tensor([12.25, 36.75]))
    level = d.schedule.level(13.25)
    assert isinstance(level, Level)
    x_t = d.q_sample(torch.full((1, 3, 4, 4), 0.75), torch.tensor([13.25]), torch.zeros(1, 3, 4, 4))
    assert float(x_t.mean()) == pytest.approx(0.5 * level.alpha)
