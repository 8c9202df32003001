"""Every combination of parts trains and samples; published libraries ship options that crash when combined."""

import warnings
from itertools import product

import pytest
import torch

from ddpm_lib.clipping import CLIPS
from ddpm_lib.diffusion import LOSSES, GaussianDiffusion
from ddpm_lib.parametrization import PARAMETRIZATIONS
from ddpm_lib.samplers import SAMPLERS
from ddpm_lib.schedules import SCHEDULES
from ddpm_lib.spacing import SPACINGS
from ddpm_lib.time_sampling import TIME_SAMPLERS
from ddpm_lib.variance import VARIANCES
from ddpm_lib.weighting import WEIGHTINGS
from process_tools import TinyNet

T = 8
REQUIRED = {"betas": {"betas": [0.1 * k for k in range(1, T + 1)]}, "shifted_cosine": {"size": 128}}
"""Options without which an entry cannot be built."""
FITTING = [
    (variance, loss)
    for variance, loss in product(VARIANCES, LOSSES)
    if loss != ("simple" if VARIANCES[variance].outputs > 1 else "hybrid")
]
"""A learned variance has to be trained, and a fixed one cannot be."""


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_combination(schedule: str, parametrization: str, zero_terminal_snr: bool) -> None:
    options = {**REQUIRED.get(schedule, {}), "zero_terminal_snr": zero_terminal_snr}
    if (zero_terminal_snr or schedule == "jsd") and PARAMETRIZATIONS[parametrization].needs_signal:
        with pytest.raises(ValueError, match="zero terminal SNR"):
            build(schedule, options, parametrization, "simple", "fixed_small", "uniform", "static")
        return
    torch.manual_seed(0)
    images = torch.rand(2, 3, 3, 3)
    ways = list(product(SAMPLERS, SPACINGS))
    # Where the walk through clips, time samplers and ways to sample begins; `test_every_way_to_sample` sees all of those.
    start = 5 * list(SCHEDULES).index(schedule) + 7 * list(PARAMETRIZATIONS).index(parametrization)
    for i, weighting in enumerate(WEIGHTINGS, start):
        # Any two parts meet somewhere on the walk over schedules and parametrizations.
        variance, loss = FITTING[i % len(FITTING)]
        clip, time_sampler = list(CLIPS)[i % len(CLIPS)], list(TIME_SAMPLERS)[i % len(TIME_SAMPLERS)]
        parts = (schedule, options, parametrization, weighting, variance, time_sampler, clip, loss)
        diffusion = build(*parts)
        optimizer = torch.optim.SGD(diffusion.parameters(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            value = diffusion(images)
            value.backward()
            # Some weights on some schedules span thirty orders of magnitude.
            torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
            optimizer.step()
            assert torch.isfinite(value), parts
        sampler, spacing = ways[i % len(ways)]
        result = diffusion.sample(1, sampler=sampler, spacing=spacing, num_steps=3)
        assert torch.isfinite(result).all(), (parts, sampler, spacing)
    assert torch.isfinite(diffusion.bits_per_dim(images, num_levels=3).total).all()


@pytest.mark.parametrize(("variance", "loss"), list(product(VARIANCES, LOSSES)))
def test_every_loss(variance: str, loss: str) -> None:
    parts = ("cosine", {}, "v", "flat", variance, "uniform", "static", loss)
    if (variance, loss) in FITTING:
        assert torch.isfinite(build(*parts)(torch.rand(2, 3, 3, 3)))
    else:
        with pytest.raises(ValueError, match=r"never train a learned variance|nothing to train"):
            build(*parts)


def build(
    schedule: str,
    options: dict,
    parametrization: str,
    weighting: str,
    variance: str,
    time_sampler: str,
    clip: str,
    loss: str | None = None,
) -> GaussianDiffusion:
    with warnings.catch_warnings():
        # A weighting may give level T no weight on a schedule of zero terminal SNR; that it is said is tested elsewhere.
        warnings.simplefilter("ignore", UserWarning)
        return GaussianDiffusion(
            TinyNet(outputs=VARIANCES[variance].outputs),
            image_size=3,
            timesteps=T,
            schedule=schedule,
            schedule_options=options,
            parametrization=parametrization,
            weighting=weighting,
            variance=variance,
            time_sampler=time_sampler,
            clip=clip,
            loss=loss,
        )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_every_way_to_sample(parametrization: str, variance: str, sampler: str) -> None:
    for spacing, clip in product([*SPACINGS, [7, 3, 1]], CLIPS):
        diffusion = build("cosine", {}, parametrization, "flat", variance, "uniform", clip)
        steps = None if isinstance(spacing, list) else 3
        assert torch.isfinite(diffusion.sample(2, sampler=sampler, spacing=spacing, num_steps=steps)).all()
