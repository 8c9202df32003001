"""RePaint: its walk, its forward kernel, known pixels exact, and what resampling does to the law of
the painted ones.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.images import to_uint8
from ddpm_lib.process.inpainting import diffuse, jump_schedule, repaint_loop, to_mask
from ddpm_lib.samplers import (
    DDIM,
    DDPM,
    OF_DENOISERS,
    SAMPLERS,
    DPMSolver2S,
    Euler,
    Heun,
    Prediction,
    Sampler,
    make_sampler,
)
from ddpm_lib.schedules import SCHEDULES, Schedule
from ddpm_lib.schedules.levels import Level
from ddpm_lib.spacing import sampling_levels
from ddpm_lib.variance import FixedSmall
from process_tools import TinyNet


def tiny(
    size: int | tuple[int, ...] = 4, channels: int = 3, **options: object
) -> GaussianDiffusion:
    return GaussianDiffusion(
        TinyNet(channels), image_size=size, timesteps=20, weighting="flat", **options
    )


def test_the_published_walk() -> None:
    """T = 250, jumps of 10, 10 resamples; the paper's t is our position − 1, and −1 is clean
    data.
    """
    times = [k - 1 for k in jump_schedule(250, 10, 10)]
    assert times[0] == 249
    assert times[-2:] == [0, -1]
    # 24 places to jump from (0, 10, …, 230), each 9 times 10 up and 10 down, and 250 down.
    assert len(times) - 1 == 250 + 24 * 9 * 20
    assert times[:31] == [*range(249, 229, -1), *range(231, 241), 239]
    assert sum(b > a for a, b in pairwise(times)) == 24 * 9 * 10
    jumps = [a for z, a, b in zip(times, times[1:], times[2:], strict=False) if z > a < b]
    assert jumps == [t for t in range(230, -1, -10) for _ in range(9)]


@pytest.mark.parametrize(
    ("arguments", "walk"),
    [
        ((3, 1, 1), [3, 2, 1, 0]),
        ((3, 1, 3), [3, 2, 3, 2, 3, 2, 1, 2, 1, 2, 1, 0]),
        ((4, 2, 2), [4, 3, 2, 1, 2, 3, 2, 1, 0]),
        ((5, 2, 2), [5, 4, 3, 4, 5, 4, 3, 2, 1, 2, 3, 2, 1, 0]),
        ((1, 1, 1), [1, 0]),
        ((4, 9, 1), [4, 3, 2, 1, 0]),
    ],
)
def test_short_walks(arguments: tuple[int, int, int], walk: list[int]) -> None:
    assert jump_schedule(*arguments) == walk


def test_walks_that_make_no_sense() -> None:
    for arguments, message in [
        ((10, 10, 2), "does not fit into 10 steps"),
        ((10, 0, 2), "at least 1"),
        ((10, 2, 0), "at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            jump_schedule(*arguments)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid", "jsd", "laplace"])
def test_the_forward_kernel(name: str) -> None:
    """q(x_t|x_s) between any two levels: it carries the marginal of s to that of t, and between
    neighbours it is β_t.
    """
    schedule = Schedule.make(name, 100)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for s, t in [(1, 2), (0, 1), (0, 100), (3, 50), (50, 100), (2.5, 7.25), (99, 100)]:
        low, high = schedule.level(s), schedule.level(t)
        scale, spread = float(diffuse(one, low, high, zero)), float(diffuse(zero, low, high, one))
        assert scale * low.alpha == pytest.approx(high.alpha, rel=1e-12)
        assert scale**2 * low.sigma**2 + spread**2 == pytest.approx(high.sigma**2, rel=1e-12)
        if t - s == 1 and s > 0:
            assert spread**2 == pytest.approx(float(schedule.betas[t - 1]), rel=1e-9)


MU = torch.tensor([0.2, -0.3], dtype=torch.float64)
C = torch.tensor([[0.25, 0.2], [0.2, 0.3]], dtype=torch.float64)
KNOWN = 0.9
MEAN = float(MU[1] + C[0, 1] / C[0, 0] * (KNOWN - MU[0]))
VARIANCE = float(C[1, 1] - C[0, 1] ** 2 / C[0, 0])


def covariance(level: Level) -> Tensor:
    return level.alpha**2 * C + level.sigma**2 * torch.eye(2, dtype=torch.float64)


def exact(x: Tensor, level: Level) -> Prediction:
    """The denoiser of two correlated pixels N(MU, C)."""
    away = torch.linalg.solve(covariance(level), (x.flatten(1) - level.alpha * MU).T).T
    return Prediction(
        (MU + level.alpha * away @ C).view_as(x), (level.sigma * away).view_as(x), FixedSmall()
    )


@dataclass(frozen=True)
class Exact(Sampler):
    """Draws x_s from the true reverse kernel q(x_s | x_t) of N(MU, C), whose noise is
    correlated.
    """

    def step(self, x: Tensor, t: Level, s: Level, predict, noise, history) -> Tensor:
        gain = t.alpha / s.alpha * torch.linalg.solve(covariance(t), covariance(s)).T
        rest = covariance(s) - gain @ covariance(t) @ gain.T
        values, vectors = torch.linalg.eigh(rest)
        root = vectors * values.clamp(min=0).sqrt()
        mean = s.alpha * MU + (x.flatten(1) - t.alpha * MU) @ gain.T
        return (mean + noise().flatten(1) @ root.T).view_as(x)


def painted_law(
    sampler: Sampler, steps: int, jump_length: int, num_resamples: int
) -> tuple[float, float]:
    """Return the exact mean and variance of the painted pixel, from the response to each single
    draw.
    """
    schedule = Schedule.make("cosine", 1000)
    ladder = sampling_levels(schedule, steps)[::-1]
    levels = [schedule.level(ladder[k]) for k in jump_schedule(steps, jump_length, num_resamples)]
    rows, drawn = 1 + 6 * len(levels), 0

    def noise() -> Tensor:
        nonlocal drawn
        z = torch.zeros(rows, 1, 1, 2, dtype=torch.float64)
        z[1 + drawn, 0, 0, 0] = z[2 + drawn, 0, 0, 1] = 1
        drawn += 2
        return z

    known = torch.tensor([KNOWN, math.nan], dtype=torch.float64).view(1, 1, 1, 2)
    mask = torch.tensor([False, True]).view(1, 1, 1, 2)
    draw = {"known": known, "mask": mask, "level_at": schedule.level_at}
    x = repaint_loop(sampler, noise(), levels, exact, noise, **draw).flatten(1)
    assert drawn < rows
    assert torch.equal(x[:, 0], torch.full((rows,), KNOWN, dtype=torch.float64))
    response = x[1:, 1] - x[0, 1]
    return float(x[0, 1]), float(response.square().sum())


def test_resampling_brings_the_painted_pixel_to_its_conditional_law() -> None:
    """With the true reverse kernel only RePaint's own error is left: the model sees noisy known
    pixels, not the pixels.
    """
    laws = [painted_law(Exact(), 50, 2, r) for r in (1, 2, 5, 20)]
    bias = [abs(mean - MEAN) for mean, _ in laws]
    excess = [abs(variance / VARIANCE - 1) for _, variance in laws]
    assert all(b < 0.75 * a for a, b in pairwise(bias))
    assert all(b < 0.75 * a for a, b in pairwise(excess))
    # One walk leaves a quarter of a standard deviation too wide and most of the correlation unused.
    assert bias[0] == pytest.approx(0.26, abs=0.02)
    assert excess[0] == pytest.approx(0.33, abs=0.02)
    assert bias[-1] < 0.15 * bias[0]
    assert excess[-1] < 0.15 * excess[0]


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(), Euler(s_churn=5), Heun(), DPMSolver2S()])
def test_resampling_helps_every_single_step_sampler(sampler: Sampler) -> None:
    once, often = (painted_law(sampler, 20, 2, r)[0] for r in (1, 10))
    assert abs(often - MEAN) < 0.5 * abs(once - MEAN)


@pytest.mark.parametrize("name", [name for name in OF_DENOISERS if not SAMPLERS[name].multistep])
@pytest.mark.parametrize("schedule", ["cosine", "jsd"])
def test_known_pixels_come_back_bit_for_bit(name: str, schedule: str) -> None:
    d, g = tiny(schedule=schedule), torch.Generator().manual_seed(0)
    images, mask = torch.rand(3, 3, 4, 4, generator=g), torch.rand(3, 1, 4, 4, generator=g) < 0.5
    out = d.inpaint(images, mask, sampler=name, num_steps=6, jump_length=2, num_resamples=2)
    painted = mask.expand_as(images)
    assert out.dtype == torch.float32
    assert torch.equal(out[~painted], images[~painted])
    assert not torch.any(out[painted] == images[painted])
    assert torch.isfinite(out).all()
    assert 0 <= out.min() <= out.max() <= 1


def test_known_pixels_of_bytes_and_halves() -> None:
    d, g = tiny(), torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 4, 4), generator=g, dtype=torch.uint8)
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[1:3] = 1
    out = d.inpaint(images, mask, num_steps=4, num_resamples=1)
    keep = (mask == 0).expand_as(images)
    assert torch.equal(to_uint8(out)[keep], images[keep])
    assert torch.equal(out[keep], images[keep].float() / 255)
    half = torch.rand(2, 3, 4, 4, generator=g).half()
    assert torch.equal(
        d.inpaint(half, mask, num_steps=4, num_resamples=1)[keep], half[keep].float()
    )


def test_what_is_masked_has_no_influence() -> None:
    d, mask = tiny(), torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 2:] = True
    a = torch.rand(1, 3, 4, 4)
    b = torch.where(mask, torch.rand(1, 3, 4, 4), a)
    options = {"num_steps": 5, "jump_length": 1, "num_resamples": 2}
    assert torch.equal(d.inpaint(a, mask, **options), d.inpaint(b, mask, **options))


def test_everything_masked_is_sampling_with_other_noise() -> None:
    d, images = tiny(), torch.rand(2, 3, 4, 4)
    everything = torch.ones(4, 4, dtype=torch.bool)
    out = d.inpaint(images, everything, num_steps=5, num_resamples=1)
    other = d.inpaint(torch.zeros_like(images), everything, num_steps=5, num_resamples=1)
    assert torch.equal(out, other)
    assert not torch.equal(out, d.sample(2, num_steps=5))


@pytest.mark.parametrize(
    "shape", [(4, 4), (1, 4, 4), (3, 4, 4), (1, 1, 4, 4), (2, 1, 4, 4), (1, 3, 4, 4), (2, 3, 4, 4)]
)
def test_shapes_of_masks(shape: tuple[int, ...]) -> None:
    d, images = tiny(), torch.rand(2, 3, 4, 4)
    mask = torch.rand(shape) < 0.5
    out = d.inpaint(images, mask, num_steps=3, num_resamples=1, batch_size=1)
    keep = ~torch.broadcast_to(mask, images.shape)
    assert torch.equal(out[keep], images[keep])
    assert torch.equal(
        to_mask(mask.float(), 2, (3, 4, 4), images.device),
        to_mask(mask, 2, (3, 4, 4), images.device),
    )


@pytest.mark.parametrize("size", [(6,), (4, 6), (2, 3, 4)])
def test_sequences_and_volumes(size: tuple[int, ...]) -> None:
    d, images, mask = tiny(size, 2), torch.rand(2, 2, *size), torch.rand(size) < 0.5
    out = d.inpaint(images, mask, num_steps=4, jump_length=2, num_resamples=2)
    keep = (~mask).expand_as(images)
    assert torch.equal(out[keep], images[keep])


def test_an_image_depends_on_its_number_alone() -> None:
    d, images, mask = tiny(), torch.rand(5, 3, 4, 4), torch.rand(5, 1, 4, 4) < 0.5
    options = {"num_steps": 5, "jump_length": 2, "num_resamples": 2}
    whole = d.inpaint(images, mask, seed=3, **options)
    torch.testing.assert_close(whole, d.inpaint(images, mask, seed=3, batch_size=2, **options))
    torch.testing.assert_close(
        whole[3:], d.inpaint(images[3:], mask[3:], seed=3, first_index=3, **options)
    )
    seeds = d.inpaint(images, mask, seeds=[9, 8, 7, 6, 5], **options)
    torch.testing.assert_close(seeds[2:3], d.inpaint(images[2:3], mask[2:3], seed=7, **options))
    assert not torch.allclose(whole, seeds)


def test_the_number_of_network_calls() -> None:
    d, calls = tiny(), []
    d.model.register_forward_pre_hook(lambda module, args: calls.append(1))
    d.inpaint(torch.rand(1, 3, 4, 4), torch.ones(4, 4), num_steps=8, jump_length=2, num_resamples=3)
    walk = jump_schedule(8, 2, 3)
    assert len(calls) == sum(b < a for a, b in pairwise(walk)) == 8 + 3 * 2 * 2
    calls.clear()
    d.inpaint(torch.rand(1, 3, 4, 4), torch.ones(4, 4), num_resamples=1)
    assert len(calls) == 20  # all, because 250 is more than there are
    calls.clear()
    d.inpaint(torch.rand(1, 3, 4, 4), torch.ones(4, 4), num_resamples=1, spacing=[20, 9, 4])
    assert len(calls) == 3


def test_refusals() -> None:
    d, images, mask = tiny(), torch.rand(2, 3, 4, 4), torch.ones(4, 4)
    for wrong, message in [
        ({"mask": torch.full((4, 4), 0.5)}, "True or 1 where to paint"),
        ({"mask": torch.full((4, 4), 255, dtype=torch.uint8)}, "True or 1 where to paint"),
        ({"mask": torch.ones(4, 5)}, "The mask must have the shape"),
        ({"mask": torch.ones(3, 1, 4, 4)}, "The mask must have the shape"),
        ({"mask": torch.ones(())}, "The mask must have the shape"),
        ({"images": images[:, :1]}, "Images must have shape"),
        ({"jump_length": 20}, "does not fit into 20 steps"),
        ({"seeds": [1]}, "1 seeds for 2 images"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            d.inpaint(**{"images": images, "mask": mask, **wrong})
    for name, cls in SAMPLERS.items():
        if cls.multistep:
            with pytest.raises(ValueError, match="single-step sampler"):
                d.inpaint(images, mask, sampler=name)
    # What the table says of itself is true: exactly these remember earlier steps.
    remembering = {name for name in SAMPLERS if remembers(make_sampler(name))}
    assert remembering == {name for name, cls in SAMPLERS.items() if cls.multistep}


def remembers(sampler: Sampler) -> bool:
    from ddpm_lib.samplers import History

    schedule, history = Schedule.make("cosine", 20), History(steps=20, remaining=9)
    history.level_at = schedule.level_at
    x = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    sampler.step(
        x, schedule.level(10), schedule.level(9), exact, lambda: torch.zeros_like(x), history
    )
    return bool(history.past)


def test_every_schedule_has_its_way_back_up() -> None:
    images, mask = torch.rand(1, 3, 4, 4), torch.ones(4, 4)
    for name in SCHEDULES:
        own = {
            "betas": {"betas": [0.02 * (t + 1) for t in range(20)]},
            "shifted_cosine": {"size": 64},
        }.get(name, {})
        for zero in (False, True):
            d = tiny(schedule=name, schedule_options={**own, "zero_terminal_snr": zero})
            assert torch.isfinite(
                d.inpaint(images, mask, num_steps=6, jump_length=3, num_resamples=2)
            ).all()
