import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_lib.schedules import SCHEDULES, Schedule
from ddpm_lib.schedules.levels import Level, tau
from ddpm_lib.spacing import sampling_levels

NAMED = [
    name for name in SCHEDULES if name not in ("betas", "shifted_cosine")
]  # These two need an option.


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(NAMED), timesteps=st.integers(2, 1500), zero=st.booleans())
def test_any_length_is_a_valid_schedule(name: str, timesteps: int, zero: bool) -> None:
    schedule = Schedule.make(name, timesteps, {"zero_terminal_snr": zero})
    assert schedule.timesteps == timesteps
    assert (schedule.alpha[0], schedule.sigma[0]) == (1, 0)
    assert torch.all(schedule.snr[1:] < schedule.snr[:-1])
    # Rescaling a schedule of few levels to zero SNR divides by a small difference.
    torch.testing.assert_close(
        schedule.alpha**2 + schedule.sigma**2,
        torch.ones(timesteps + 1).double(),
        rtol=0,
        atol=1e-13,
    )
    assert (float(schedule.alpha[-1]) == 0) == (zero or name == "jsd")


@settings(max_examples=40, deadline=None)
@given(
    timesteps=st.integers(2, 300),
    start=st.floats(-8, 0.5),
    width=st.floats(0.5, 8),
    tau_option=st.floats(0.3, 3),
    max_beta=st.floats(0.5, 1),
)
def test_sigmoid_options(
    timesteps: int, start: float, width: float, tau_option: float, max_beta: float
) -> None:
    options = {"start": start, "end": start + width, "tau": tau_option, "max_beta": max_beta}
    schedule = Schedule.make("sigmoid", timesteps, options)
    assert schedule == Schedule.from_config(json.loads(json.dumps(schedule.to_config())))


@settings(max_examples=40, deadline=None)
@given(betas=st.lists(st.floats(1e-6, 0.5), min_size=2, max_size=200))
def test_betas_survive_the_round_trip(betas: list[float]) -> None:
    schedule = Schedule.from_betas(betas)
    again = Schedule.from_config(json.loads(json.dumps(schedule.to_config())))
    assert again == schedule
    assert hash(again) == hash(schedule)
    # The rounding of a log α̅ of up to 140 is an absolute error of β.
    torch.testing.assert_close(
        schedule.betas, torch.tensor(betas, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_small_noise_is_not_lost_to_cancellation() -> None:
    # σ² of one step of β = 1e-12 is β itself; computed as 1 − α̅ it would have four digits.
    schedule = Schedule.from_betas([1e-12, 0.5])
    assert float(schedule.sigma[1] ** 2) == pytest.approx(1e-12, rel=1e-14)


def test_zero_terminal_snr_keeps_the_first_level() -> None:
    plain, zero = (
        Schedule.make("linear", 1000),
        Schedule.make("linear", 1000, {"zero_terminal_snr": True}),
    )
    assert float(zero.alpha[-1]) == 0
    assert float(zero.sigma[-1]) == 1
    assert float(zero.alpha[1]) == pytest.approx(float(plain.alpha[1]), rel=1e-15)
    assert float(zero.sigma[1]) == pytest.approx(float(plain.sigma[1]), rel=1e-12)
    assert float(Schedule.make("cosine", 100, {"max_beta": 1.0}).alpha[-1]) == 0


def test_levels() -> None:
    schedule = Schedule.make("cosine", 10)
    clean, middle, noise = schedule.level(0), schedule.level(5), Level(3, 0.0, 1.0)
    assert clean == (0, 1.0, 0.0)
    assert (clean.snr, clean.log_snr) == (math.inf, math.inf)
    assert (noise.snr, noise.log_snr) == (0.0, -math.inf)
    assert math.exp(middle.log_snr) == pytest.approx(middle.snr)
    assert float(schedule.snr[5]) == pytest.approx(middle.snr)
    alpha, sigma = schedule.gather(torch.tensor([5, 0]))
    assert (float(alpha[0]), float(sigma[1])) == (middle.alpha, 0.0)
    with pytest.raises(ValueError, match="levels of this schedule are 0 … 10"):
        schedule.level(11)


@pytest.mark.parametrize("name", NAMED)
def test_tau_against_the_textbook(name: str) -> None:
    """σ_s² τ and σ_t² τ of neighbours are β̃_t and β_t of Ho et al. 2020, eq. 7; so are the mean's
    coefficients.
    """
    schedule = Schedule.make(name, 50)
    betas, alpha_bar = schedule.betas.tolist(), (schedule.alpha**2).tolist()
    for t in range(1, 51):
        now, prev, beta = schedule.level(t), schedule.level(t - 1), betas[t - 1]
        share = tau(now, prev)
        assert prev.sigma**2 * share == pytest.approx(
            beta * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]), rel=1e-9
        )
        assert now.sigma**2 * share == pytest.approx(beta, rel=1e-9)
        on_eps = prev.sigma * math.sqrt(1 - share)
        coef_x0 = alpha_bar[t - 1] ** 0.5 * beta / (1 - alpha_bar[t])
        coef_xt = (1 - beta) ** 0.5 * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
        assert prev.alpha - on_eps * now.alpha / now.sigma == pytest.approx(coef_x0, rel=1e-8)
        assert on_eps / now.sigma == pytest.approx(coef_xt, rel=1e-8, abs=1e-14)


def test_schedules_by_log_snr() -> None:
    """Their definitions, read back from the tables."""
    linear = (
        Schedule.make("log_linear", 11, {"log_snr_max": 10.0, "log_snr_min": -10.0}).snr[1:].log()
    )
    torch.testing.assert_close(linear, torch.linspace(10, -10, 11).double(), rtol=1e-12, atol=1e-12)
    laplace = Schedule.make("laplace", 999, {"mu": 1.0, "b": 0.7}).snr[1:].log()
    quantiles = torch.distributions.Laplace(1.0, 0.7).icdf(
        1 - torch.arange(1, 1000, dtype=torch.float64) / 1000
    )
    torch.testing.assert_close(laplace, quantiles, rtol=1e-5, atol=1e-6)
    sigma = (Schedule.make("karras", 18).snr[1:]) ** -0.5
    torch.testing.assert_close(
        sigma[[0, -1]], torch.tensor([0.002, 80.0]).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        (sigma ** (1 / 7)).diff().std(), torch.zeros(()).double(), rtol=0, atol=1e-9
    )
    jsd = Schedule.make("jsd", 10)
    torch.testing.assert_close(
        jsd.alpha[1:] ** 2, 1 - torch.arange(1, 11).double() / 10, rtol=0, atol=1e-15
    )
    assert Schedule.make("scaled_linear", 1000).betas[[0, -1]].tolist() == pytest.approx(
        [0.00085, 0.012]
    )


def test_shifted_cosine() -> None:
    cosine = Schedule.make("cosine", 100).snr[1:].log()
    shifted = Schedule.make("shifted_cosine", 100, {"size": 256}).snr[1:].log()
    shift = torch.full((100,), 2 * math.log(0.25), dtype=torch.float64)
    torch.testing.assert_close(shifted - cosine, shift, rtol=1e-9, atol=1e-9)
    same = Schedule.make("shifted_cosine", 100, {"size": 64}).snr[1:].log()
    torch.testing.assert_close(same, cosine, rtol=1e-9, atol=1e-9)
    options = {"size": 256, "reference": 32, "reference_low": 256}
    interpolated = Schedule.make("shifted_cosine", 100, options).snr[1:].log() - cosine
    u = torch.arange(1, 101).double() / 100
    torch.testing.assert_close(interpolated, 2 * math.log(32 / 256) * u, rtol=1e-9, atol=1e-9)


def test_linear_is_rescaled_and_capped() -> None:
    assert Schedule.make("linear", 10).betas.tolist()[-1] == pytest.approx(0.999)
    fixed = Schedule.make("linear", 10, {"rescale": False}).betas
    torch.testing.assert_close(fixed, torch.linspace(1e-4, 0.02, 10).double(), rtol=1e-6, atol=0)


def test_spacing_lists() -> None:
    assert sampling_levels(10) == list(range(10, -1, -1))
    assert sampling_levels(1000, 4) == [1000, 750, 500, 250, 0]
    assert sampling_levels(1000, 4, "leading") == [751, 501, 251, 1, 0]
    assert (
        sampling_levels(1000, None, [900, 5])
        == sampling_levels(1000, 2, [900, 5, 0])
        == [900, 5, 0]
    )
    for wrong in ([], [0], [5, 5], [5, 6], [1001, 1], [5, -1]):
        with pytest.raises(ValueError, match="must decrease strictly"):
            sampling_levels(1000, None, wrong)
    with pytest.raises(ValueError, match="contradicts a list of 2"):
        sampling_levels(1000, 3, [900, 5])
    for steps in (0, 11):
        with pytest.raises(ValueError, match=r"num_steps must be in 1 … 10"):
            sampling_levels(10, steps)
    with pytest.raises(ValueError, match="Did you mean 'trailing'"):
        sampling_levels(10, 5, "trailin")


@pytest.mark.parametrize(
    ("name", "timesteps", "options", "message"),
    [
        ("cosin", 10, {}, "Did you mean 'cosine'"),
        ("cosine", 1, {}, "timesteps must be an integer ≥ 2"),
        ("cosine", 10.0, {}, "timesteps must be an integer ≥ 2"),
        ("cosine", 10, {"S": 1}, "Unknown option of the schedule 'cosine'"),
        ("cosine", 10, {"s": -1}, "needs s ≥ 0"),
        ("cosine", 10, {"max_beta": 0}, r"max_beta in \(0, 1\]"),
        ("linear", 10, {"beta_start": 0.5, "beta_end": 0.1}, "0 < beta_start ≤ beta_end < 1"),
        ("linear", 10, {"beta_stat": 0.5}, "Did you mean 'beta_start'"),
        ("sigmoid", 10, {"start": 3, "end": -3}, "start < end"),
        ("laplace", 10, {"b": 0}, "needs b > 0"),
        ("log_linear", 10, {"log_snr_min": 20}, "log_snr_min < log_snr_max"),
        ("karras", 10, {"sigma_min": 100}, "sigma_min < sigma_max"),
        ("shifted_cosine", 10, {"size": 0}, "{'size': 256}"),
        ("const", 10, {"beta": 1.5}, "strictly between 0 and 1"),
        ("betas", 3, {"betas": [0.1, 0.2]}, r"one beta per timestep \(3\), got 2"),
        ("betas", 3, {}, "needs the option 'betas'"),
        ("betas", 3, {"betas": [0.1, 1.0, 0.1]}, "strictly between 0 and 1"),
    ],
)
def test_refusals(name: str, timesteps: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.make(name, timesteps, options)


def test_tables_are_checked() -> None:
    one = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="starts with clean data"):
        Schedule("mine", {}, one, one)
    with pytest.raises(TypeError, match="must be float64"):
        Schedule("mine", {}, one.float(), one.float())
    with pytest.raises(ValueError, match="timesteps ≥ 2"):
        Schedule("mine", {}, one[:2], one[:2])
    with pytest.raises(ValueError, match="strictly decrease"):
        Schedule(
            "mine", {}, torch.tensor([1, 0.8, 0.8]).double(), torch.tensor([0, 0.6, 0.6]).double()
        )
    with pytest.raises(AttributeError):
        Schedule.make("cosine", 5).name = "other"  # type: ignore[misc]
