"""Every combination of parts trains and samples; published libraries ship options that crash when combined."""

import warnings
from itertools import product

import pytest
import torch

from ddpm_lib.clipping import CLIPS
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.parametrization import PARAMETRIZATIONS
from ddpm_lib.samplers import SAMPLERS
from ddpm_lib.schedules import SCHEDULES
from ddpm_lib.spacing import SPACINGS
from ddpm_lib.time_sampling import TIME_SAMPLERS
from ddpm_lib.variance import VARIANCES
from ddpm_lib.weighting import WEIGHTINGS
from process_tools import TinyNet

T = 8
REQUIRED = {"betas": {"betas": [0.1 * k for k in range(1, T + 1)]}}
"""Options without which an entry cannot be built."""


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_combination(schedule: str, parametrization: str, zero_terminal_snr: bool) -> None:
    options = {**REQUIRED.get(schedule, {}), "zero_terminal_snr": zero_terminal_snr}
    if zero_terminal_snr and PARAMETRIZATIONS[parametrization].needs_signal:
        with pytest.raises(ValueError, match="zero terminal SNR"):
            build(schedule, options, parametrization, "simple", "fixed_small", "uniform", "static")
        return
    torch.manual_seed(0)
    images = torch.rand(2, 3, 3, 3)
    for i, (weighting, variance) in enumerate(product(WEIGHTINGS, VARIANCES)):
        # These two meet every variance and parametrization; the way they are reached does not depend on the weighting.
        clip, time_sampler = list(CLIPS)[i % len(CLIPS)], list(TIME_SAMPLERS)[i % len(TIME_SAMPLERS)]
        diffusion = build(schedule, options, parametrization, weighting, variance, time_sampler, clip)
        optimizer = torch.optim.SGD(diffusion.parameters(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            loss = diffusion(images)
            loss.backward()
            # Some weights on some schedules span thirty orders of magnitude.
            torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
            optimizer.step()
            assert torch.isfinite(loss)
        for sampler, spacing in product(SAMPLERS, SPACINGS):
            result = diffusion.sample(1, sampler=sampler, spacing=spacing, num_steps=3)
            assert torch.isfinite(result).all(), (weighting, variance, sampler, spacing)


def build(
    schedule: str, options: dict, parametrization: str, weighting: str, variance: str, time_sampler: str, clip: str
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
        )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_every_way_to_sample(parametrization: str, variance: str, sampler: str) -> None:
    for spacing, clip in product([*SPACINGS, [7, 3, 1]], CLIPS):
        diffusion = build("cosine", {}, parametrization, "flat", variance, "uniform", clip)
        steps = None if isinstance(spacing, list) else 3
        assert torch.isfinite(diffusion.sample(2, sampler=sampler, spacing=spacing, num_steps=steps)).all()
