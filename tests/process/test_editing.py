"""Images from images: SDEdit and interpolation against closed forms of Gaussian data."""

import math

import pytest
import torch

from ddpm_lib import Unet
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.images import to_model_range
from ddpm_lib.process.streams import image_generator
from ddpm_lib.samplers import OF_DENOISERS
from ddpm_lib.schedules import Schedule
from process_tools import TinyNet, gaussian_diffusion

S = 0.5


def exact(schedule: str = "cosine", **options: object) -> GaussianDiffusion:
    """The denoiser of four independent pixels N(0, S²)."""
    zero = torch.zeros(1, 2, 2, dtype=torch.float64)
    return gaussian_diffusion(zero, zero + S, Schedule.make(schedule, 1000), "v", **options)


def tiny(**options: object) -> GaussianDiffusion:
    return GaussianDiffusion(TinyNet(), image_size=4, timesteps=20, **options)


@pytest.mark.every(3)
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "dpmpp_2s", "unipc", "heun"])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_edit_by_the_flow(sampler: str, fraction: float) -> None:
    """The probability flow shrinks x_t to S/√(α²S² + σ²)·x_t (Song et al. 2021), whatever made
    x_t.
    """
    d = exact()
    images = torch.rand(3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = d.edit(images, fraction, sampler=sampler, seed=5)
    level = d.schedule.level(1000 * fraction)
    draws = [image_generator(torch.device("cpu"), 5, None, 0, i, "edit") for i in range(3)]
    noise = torch.stack([torch.randn(1, 2, 2, generator=g, dtype=torch.float64) for g in draws])
    x_t = level.alpha * to_model_range(images) + level.sigma * noise
    flow = S / math.sqrt(level.alpha**2 * S**2 + level.sigma**2) * x_t
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, ((flow + 1) / 2).clamp(0, 1), rtol=0, atol=3e-3)


def test_edit_by_ancestral_sampling_draws_from_the_data_again() -> None:
    """x_0 → x_t → p(x_0|x_t) leaves N(0, S²) as it is; corr(x_0, x_0') = α²S²/(α²S² + σ²) falls
    with the fraction.
    """
    d, n = exact(), 3000
    images = (
        0.5 + 0.5 * S * torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    ).clamp(0, 1)
    x0 = to_model_range(images).flatten().double()
    for fraction in (0.3, 0.6):
        level = d.schedule.level(1000 * fraction)
        after = to_model_range(d.edit(images, fraction, num_steps=100)).flatten().double()
        kept = level.alpha**2 * S**2 / (level.alpha**2 * S**2 + level.sigma**2)
        found = float(torch.corrcoef(torch.stack([x0, after]))[0, 1])
        # 12,000 pixels, and 100 steps where the law is that of 1000.
        assert found == pytest.approx(kept, abs=0.03)
        assert float(after.mean()) == pytest.approx(0.0, abs=0.02)
        assert float(after.std()) == pytest.approx(float(x0.std()), rel=0.05)


@pytest.mark.parametrize("sampler", OF_DENOISERS)
@pytest.mark.parametrize("schedule", ["cosine", "jsd"])
def test_every_sampler_edits(sampler: str, schedule: str) -> None:
    d, images = tiny(schedule=schedule, weighting="flat"), torch.rand(2, 3, 4, 4)
    for fraction in (0.05, 0.5, 1.0):
        out = d.edit(images, fraction, sampler=sampler, num_steps=5)
        assert out.shape == images.shape
        assert torch.isfinite(out).all()
        assert 0 <= out.min() <= out.max() <= 1


def test_an_edited_image_depends_on_its_number_alone() -> None:
    d, images = tiny(), torch.rand(4, 3, 4, 4)
    whole = d.edit(images, num_steps=5, seed=3)
    torch.testing.assert_close(whole, d.edit(images, num_steps=5, seed=3, batch_size=3))
    torch.testing.assert_close(whole[2:], d.edit(images[2:], num_steps=5, seed=3, first_index=2))
    byte = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(d.edit(byte, num_steps=5), d.edit(byte / 255, num_steps=5))


def test_edit_never_adds_the_noise_that_an_image_was_sampled_from() -> None:
    """Else the noisy image would be (α·g(z) + σ·z) and not x_0 with fresh noise."""
    draws = [
        torch.randn(64, generator=image_generator(torch.device("cpu"), 0, None, 0, 0, word))
        for word in ("sample", "edit", "inpaint")
    ]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(3)
    assert float(correlation.abs().max()) < 0.4


def test_calls_and_refusals() -> None:
    d, images, calls = tiny(), torch.rand(1, 3, 4, 4), []
    d.model.register_forward_pre_hook(lambda module, args: calls.append(float(args[1][0]) + 1))
    d.edit(images, 0.5, num_steps=4)
    assert calls == [10, 5]
    for wrong, message in [
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\]"),
        ({"fraction": 1.1}, r"fraction must be in \(0, 1\]"),
        ({"images": images[..., :3]}, "Images must have shape"),
        ({"seeds": [1, 2]}, "2 seeds for 1 images"),
        ({"sampler": "ddimm"}, "Did you mean 'ddim'"),
    ]:
        with pytest.raises(ValueError, match=message):
            d.edit(**{"images": images, **wrong})


def test_interpolation_through_the_flow() -> None:
    """Encoding divides by S and decoding multiplies: a great circle between the images
    themselves.
    """
    d = exact("jsd")
    a, b = (
        torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1)
    )
    ours = d.interpolate(a, b, (0.0, 0.3, 1.0), method="ddim")
    for i in range(2):
        x, y = (to_model_range(v[i]).flatten() for v in (a, b))
        angle = torch.arccos((x @ y) / (x.norm() * y.norm()))
        between = (torch.sin(0.7 * angle) * x + torch.sin(0.3 * angle) * y) / torch.sin(angle)
        for k, truth in enumerate((x, between, y)):
            torch.testing.assert_close(
                ours[i, k].flatten().double(), (truth + 1) / 2, rtol=0, atol=5e-3
            )


def test_interpolation_at_a_noise_level() -> None:
    """With the flow as sampler and the same noise, everything is linear: the mix of the ends is the
    middle.
    """
    d = exact()
    a, b = torch.rand(2, 1, 2, 2), torch.rand(2, 1, 2, 2)
    ours = d.interpolate(a, b, (0.0, 0.25, 1.0), fraction=0.3, sampler="ddim", num_steps=100)
    inside = ((ours > 0) & (ours < 1)).all(1)
    mixed = 0.75 * ours[:, 0] + 0.25 * ours[:, 2]
    assert inside.sum() >= 4
    torch.testing.assert_close(ours[:, 1][inside], mixed[inside], rtol=0, atol=1e-5)


def test_noisy_small_images_and_estimates_of_itself_are_named_by_the_image() -> None:
    """A network with every kind of condition: whatever the batch, and without a draw from the
    global generator.
    """
    torch.manual_seed(0)
    net = Unet(
        dim=8,
        dim_mults=(1,),
        blocks_per_level=1,
        low_res_factor=2,
        low_res_max_noise=0.5,
        self_condition=True,
    )
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    d, images = GaussianDiffusion(net, image_size=8, timesteps=20), torch.rand(3, 3, 8, 8)
    cond = {"low_res": torch.rand(3, 3, 4, 4), "low_res_noise": torch.tensor([0.1, 0.3, 0.5])}
    mask = torch.ones(8, 8)
    before = torch.get_rng_state()
    runs = [
        lambda rows, **more: d.edit(
            images[rows], cond={k: v[rows] for k, v in cond.items()}, num_steps=4, **more
        ),
        lambda rows, **more: d.inpaint(
            images[rows],
            mask,
            cond={k: v[rows] for k, v in cond.items()},
            num_steps=4,
            num_resamples=1,
            **more,
        ),
    ]
    for run in runs:
        whole = run(slice(0, 3))
        torch.testing.assert_close(whole, run(slice(0, 3), batch_size=1), rtol=0, atol=1e-4)
        torch.testing.assert_close(whole[1:], run(slice(1, 3), first_index=1), rtol=0, atol=1e-4)
    d.interpolate(
        images[:1],
        images[1:2],
        method="ddim",
        cond={k: v[:1] for k, v in cond.items()},
        num_steps=2,
    )
    assert torch.equal(before, torch.get_rng_state())
