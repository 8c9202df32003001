"""Classifier guidance of guided-diffusion (Dhariwal & Nichol 2021), in float64 and with its noise.

Its DDIM changes ε̂, as here; its ancestral sampler shifts the mean by variance·∇log p, which is
here a gradient of another size; and it clips before it guides, which is replayed.
"""

from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.guidance import Guidance
from ddpm_lib.samplers import DDIM, DDPM, Prediction, Sampler, sample_loop
from ddpm_lib.schedules import Schedule
from ddpm_lib.schedules.levels import Level, tau
from ddpm_lib.spacing import sampling_levels
from process_tools import gaussian_diffusion, load, replay

CASE = "C_samplers/guided_diffusion_linear_T100_ddim20"
VARIANCES = [("FIXED_SMALL", "fixed_small"), ("FIXED_LARGE", "fixed_large")]


def setup(shared: Path, variance: str) -> tuple[dict[str, Tensor], GaussianDiffusion, list[Level]]:
    data, meta = load(shared, CASE)
    schedule = Schedule.make("linear", 100)
    d = gaussian_diffusion(data["mu"], data["s"], schedule, "eps", variance=variance)
    levels = sampling_levels(schedule, spacing="ddim20")
    assert [t - 1 for t in levels[:-1]] == meta["values"]["timesteps"]
    return data, d, [schedule.level(t) for t in levels]


def log_prob(data: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    """Its gradient is weight·(target − x), that of the published numbers."""
    return -0.5 * (data["weight"].double() * (data["target"].double() - x) ** 2).flatten(1).sum(1)


def run(
    sampler: Sampler, data: dict, levels: list[Level], predict: object
) -> tuple[Tensor, list[Tensor]]:
    states, guesses = [], []

    def watched(x: Tensor, level: Level) -> Prediction:
        p = predict(x, level)  # type: ignore[operator]
        guesses.append(p.x0)
        return p

    sample_loop(
        sampler,
        data["x_T"].double(),
        levels,
        watched,
        replay(data["noise"]),
        on_state=lambda i, x: states.append(x),
    )
    return torch.stack(states), guesses


def clipped_first(d: GaussianDiffusion, guidance: Guidance, x: Tensor, level: Level) -> Prediction:
    """Clip, then guide: the order of the peer."""
    p = d.denoise(x, level, clip="static")
    x0 = p.x0 + guidance.shift(x, level, torch.full((len(x),), level.t - 1.0), 1.0)
    return p._replace(x0=x0, eps=(x - level.alpha * x0) / level.sigma)


@pytest.mark.parametrize(("theirs", "variance"), VARIANCES)
def test_ddim(shared: Path, theirs: str, variance: str) -> None:
    data, d, levels = setup(shared, variance)
    guidance = Guidance(classifier=partial(log_prob, data))
    runs = {
        "noclip": partial(d.denoise, guidance=guidance),
        "clip": partial(clipped_first, d, guidance),
    }
    for key, predict in runs.items():
        states, guesses = run(DDIM(0.5), data, levels, predict)
        prefix = f"f64/ddim/{theirs}/{key}"
        torch.testing.assert_close(states, data[f"{prefix}/traj"], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(
            torch.stack(guesses), data[f"{prefix}/pred_xstart"], rtol=1e-8, atol=1e-9
        )


@pytest.mark.parametrize(("theirs", "variance"), VARIANCES)
def test_ancestral(shared: Path, theirs: str, variance: str) -> None:
    """Our mean moves by (α_s/α_t)·σ_t²·τ·∇log p; scaled to their variance·∇log p it is their
    trajectory.
    """
    data, d, levels = setup(shared, variance)
    scales = {}
    for k, (t, s) in enumerate(pairwise(levels)):
        theirs_to = d.variance(t, s)
        # Their last step has no small variance, and for the large one the small one before.
        if s.sigma == 0:
            theirs_to = t.sigma**2 * tau(levels[k - 1], t) if variance == "fixed_large" else 0.0
        scales[t.t] = theirs_to / (s.alpha / t.alpha * t.sigma**2 * tau(t, s))

    def scaled(x: Tensor, t: Tensor) -> Tensor:
        return scales[float(t[0]) + 1] * log_prob(data, x, t)

    guidance = Guidance(classifier=scaled)
    runs = {
        "noclip": partial(d.denoise, guidance=guidance),
        "clip": partial(clipped_first, d, guidance),
    }
    for key, predict in runs.items():
        states, _ = run(DDPM(), data, levels, predict)
        torch.testing.assert_close(
            states, data[f"f64/ddpm/{theirs}/{key}/traj"], rtol=1e-8, atol=1e-10
        )
        # They leave x̂_0 as it was; so does ours where nothing guides.
        plain = [
            d.denoise(x, level, clip="static" if key == "clip" else "none").x0
            for x, level in zip(states, levels[:-1])
        ]
        torch.testing.assert_close(
            torch.stack(plain), data[f"f64/ddpm/{theirs}/{key}/pred_xstart"], rtol=1e-8, atol=1e-9
        )
