"""Which levels are visited, and what lies between the levels of a schedule."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.spacing import SPACINGS, sampling_levels
from process_tools import load

COSINE = {timesteps: Schedule.make("cosine", timesteps) for timesteps in (2, 5, 50, 1000)}
ZERO = {
    timesteps: Schedule.make("linear", timesteps, {"zero_terminal_snr": True})
    for timesteps in (2, 5, 50, 1000)
}


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(), spacing=st.sampled_from(list(SPACINGS)), kind=st.sampled_from([COSINE, ZERO])
)
def test_every_spacing(data: st.DataObject, spacing: str, kind: dict[int, Schedule]) -> None:
    timesteps = data.draw(st.sampled_from(list(kind)))
    num_steps = data.draw(st.integers(1, timesteps))
    levels = sampling_levels(kind[timesteps], num_steps, spacing)
    assert len(levels) == num_steps + 1
    assert all(a > b for a, b in pairwise(levels))
    assert all(isinstance(t, int) for t in levels)
    assert levels[-1] == 0
    assert levels[0] == timesteps or (spacing == "leading" and levels[0] < timesteps)
    if num_steps == timesteps:
        assert levels == list(range(timesteps, -1, -1))


@pytest.mark.parametrize("spacing", ["log_snr", "karras"])
def test_fractional_levels_lie_on_the_grid(spacing: str) -> None:
    schedule = Schedule.make("linear", 1000)
    levels = [
        schedule.level(t) for t in sampling_levels(schedule, 18, spacing, {"fractional": True})
    ]
    noise = torch.tensor([lv.sigma / lv.alpha for lv in levels[:-1]], dtype=torch.float64)
    assert len(levels) == 19
    assert levels[0].t == 1000
    assert levels[-2].t == pytest.approx(1, abs=1e-6)
    even = noise.log() if spacing == "log_snr" else noise ** (1 / 7)
    steps = even.diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-9, atol=1e-9)
    rounded = sampling_levels(schedule, 18, spacing)
    assert all(abs(a - b.t) <= 1 for a, b in zip(rounded[:8], levels[:8], strict=True))


@pytest.mark.parametrize("spacing", ["log_snr", "karras"])
def test_the_noise_range_can_be_chosen(spacing: str) -> None:
    schedule = Schedule.make("cosine", 1000)  # Ends at σ/α = 20,291.
    options = {"sigma_min": 0.02, "sigma_max": 80.0, "fractional": True}
    levels = [schedule.level(t) for t in sampling_levels(schedule, 12, spacing, options)]
    noise = [lv.sigma / lv.alpha for lv in levels[:-1]]
    assert (levels[0].t, len(noise)) == (1000, 12)
    assert (noise[1], noise[-1]) == (pytest.approx(80, rel=1e-9), pytest.approx(0.02, rel=1e-9))
    assert sampling_levels(schedule, 1, spacing, options) == [1000, 0]
    assert sampling_levels(schedule, 2, spacing, {"sigma_max": 80.0})[0] == 1000
    for wrong in ({"sigma_min": 1e-5}, {"sigma_max": 1e9}, {"sigma_min": 2.0, "sigma_max": 1.0}):
        with pytest.raises(ValueError, match="must lie within the noise"):
            sampling_levels(schedule, 5, spacing, wrong)


@pytest.mark.parametrize("index", [0, 1])
def test_karras_grid_of_the_papers_code(shared: Path, index: int) -> None:
    """σ̃ between given ends, on a schedule fine enough to hold them, against k-diffusion and
    edm.
    """
    data, meta = load(shared, "A_schedules/sigmas")
    params = meta["values"][f"params{index}"]
    wide = torch.linspace(14, -14, 400, dtype=torch.float64)  # log SNR, from σ̃ = e^−7 to e^7
    alpha_bar = torch.sigmoid(wide)
    schedule = Schedule.from_betas(
        1 - alpha_bar / torch.cat([torch.ones(1).double(), alpha_bar[:-1]])
    )
    options = {"sigma_min": params["smin"], "sigma_max": params["smax"], "fractional": True}
    grids = {"karras": ("karras", {"rho": params["rho"]}), "exponential": ("log_snr", {})}
    for theirs, (name, extra) in grids.items():
        # One step more: the first goes from level T, which is noisier, to the grid.
        visited = sampling_levels(schedule, params["n"] + 1, name, {**options, **extra})[1:-1]
        ours = [lv.sigma / lv.alpha for lv in map(schedule.level, visited)]
        expected = data[f"k_diffusion/{theirs}{index}/f64"]
        torch.testing.assert_close(
            torch.tensor([*ours, 0.0], dtype=torch.float64), expected, rtol=1e-9, atol=1e-12
        )
        if theirs == "karras":
            torch.testing.assert_close(
                torch.tensor(ours, dtype=torch.float64),
                data[f"edm/karras{index}/t_steps"],
                rtol=1e-9,
                atol=0,
            )


def test_sections_of_improved_diffusion(shared: Path) -> None:
    values = json.loads((shared / "fixtures/A_schedules/timesteps.json").read_text())["values"]
    seen = 0
    for case in values["improved_diffusion"]:
        if not isinstance(case["steps"], list):
            continue
        ours = sampling_levels(case["T"], None, str(case["spec"]))
        assert [t - 1 for t in reversed(ours[:-1])] == case["steps"], case["spec"]
        seen += 1
    assert seen >= 5


def test_lists_and_sections() -> None:
    assert sampling_levels(10, None, [7.5, 3]) == [7.5, 3, 0]
    assert sampling_levels(100, 45, "10,15,20")[0] == 100
    assert sampling_levels(10, 2, "ddim2") == [6, 1, 0]
    for spacing, options, message in [
        ("10,15,20", {"rho": 1}, "takes no options"),
        ([5, 1], {"rho": 1}, "takes no options"),
        ("ddim11", {}, "No whole stride makes 11 steps of 50"),
        ("60", {}, "wants 60 of the 50 levels"),
        ("0,5", {}, "wants 0 of the 25"),
        ("karras", {"rh": 1}, "Did you mean 'rho'"),
        ("karras", {"rho": 0}, "rho > 0"),
        ("trailing", {"rho": 1}, "takes no options"),
        ("karas", {}, "Did you mean 'karras'"),
        ("10;20", {}, "Unknown spacing"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampling_levels(COSINE[50], None, spacing, options)
    with pytest.raises(ValueError, match="contradicts a list of 45"):
        sampling_levels(100, 44, "10,15,20")
    with pytest.raises(ValueError, match="Pass the schedule"):
        sampling_levels(100, 10, "karras")


@settings(max_examples=100, deadline=None)
@given(t=st.floats(0.001, 50.0), kind=st.sampled_from([COSINE, ZERO]))
def test_fractional_levels(t: float, kind: dict[int, Schedule]) -> None:
    """Between the entries of the table, level_at inverts level, the noise grows with t, and α² + σ²
    = 1.
    """
    schedule = kind[50]
    level = schedule.level(t)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1, rel=1e-14)
    above, below = schedule.level(math.ceil(t)), schedule.level(math.floor(t))
    assert below.sigma <= level.sigma <= above.sigma
    back = schedule.level_at(level.log_snr)
    # One percent of a level of 20,000-fold noise is all in the last digits of a log-SNR.
    assert back.t == pytest.approx(t, rel=1e-6)
    assert back.sigma == pytest.approx(level.sigma, rel=1e-9)
    if t == int(t):
        assert level == Level(int(t), float(schedule.alpha[int(t)]), float(schedule.sigma[int(t)]))


def test_level_at_the_ends() -> None:
    for schedule in (COSINE[50], ZERO[50]):
        assert schedule.level_at(math.inf) == schedule.level(0)
        assert schedule.level_at(-math.inf) == schedule.level_at(
            -1e6 if schedule is COSINE[50] else -math.inf
        )
        assert schedule.level_at(-math.inf).t == 50
        assert schedule.level_at(schedule.level(7).log_snr) == schedule.level(7)
    with pytest.raises(ValueError, match="does not exist"):
        COSINE[50].level(50.5)


@pytest.mark.parametrize("name", ["cosine", "linear", "const"])
def test_mixed_lies_between_log_snr_and_linspace(name: str) -> None:
    schedule = Schedule.make(name, 200)
    free = {"sigma_min": 1e-9, "sigma_max": 1e9, "fractional": True}
    even = sampling_levels(schedule, 12, "mixed", {"share": 0.0, "sigma_min": 1e-9})
    assert even == sampling_levels(schedule, 12, "linspace")
    noise = sampling_levels(schedule, 12, "mixed", {"share": 1.0, **free})
    steps = [schedule.level_at(schedule.level(t).log_snr).log_snr for t in noise[:-1]]
    apart = [b - a for a, b in pairwise(steps)]
    assert max(apart) < 1.02 * min(apart)  # even in log-SNR, which is linear between whole levels
    between = sampling_levels(schedule, 12, "mixed", free)
    pairs = zip(between, noise, even, strict=True)
    assert all(min(a, b) - 2 <= t <= max(a, b) + 2 for t, a, b in pairs)


@pytest.mark.parametrize("steps", [1, 2, 20, 199, 200])
def test_mixed_begins_at_the_noisiest_level(steps: int) -> None:
    levels = sampling_levels(Schedule.make("cosine", 200), steps, "mixed")
    assert (levels[0], levels[-1], len(levels)) == (200, 0, steps + 1)


def test_what_mixed_refuses() -> None:
    with pytest.raises(ValueError, match="depends on the noise"):
        sampling_levels(100, 10, "mixed")
    for wrong in ({"share": 1.5}, {"sigma_min": 0.0}, {"sigma_min": 2.0, "sigma_max": 1.0}):
        with pytest.raises(ValueError, match="needs 0 <= share <= 1"):
            sampling_levels(Schedule.make("cosine", 100), 10, "mixed", wrong)
