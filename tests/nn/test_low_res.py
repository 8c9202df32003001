"""Super-resolution: making images smaller, the condition on a smaller image, and training with
it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet, load_run
from ddpm_lib.data import tensor_dataset
from ddpm_lib.images import shrink, to_uint8
from ddpm_lib.nn import LowRes
from ddpm_lib.training import ConfigError
from ddpm_lib.training.sampling import sample_shared
from training_helpers import StopAt, assert_same_tensors, curve, final_tensors, tiny_trainer

TINY = {"dim": 8, "dim_mults": (1, 2), "blocks_per_level": 1}


def sr(
    seed: int = 0, size: int | tuple[int, ...] = 8, factor: int = 2, **model
) -> GaussianDiffusion:
    torch.manual_seed(seed)
    network = Unet(**TINY | {"low_res_factor": factor} | model)
    torch.nn.init.normal_(
        network.conv_out.weight, std=0.1
    )  # at initialisation nothing would reach the output
    return GaussianDiffusion(network, image_size=size, timesteps=50)


def test_shrink_is_pillows_bicubic() -> None:
    image = torch.randint(
        0, 256, (1, 3, 24, 36), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    ours = to_uint8(shrink(image.double() / 255, 3))[0]
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    theirs = torch.from_numpy(np.array(picture.resize((12, 8), Image.Resampling.BICUBIC))).permute(
        2, 0, 1
    )
    # Pillow rounds after each of its two passes.
    assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_shrink_is_torchs_antialiased_bicubic(factor: int) -> None:
    x = torch.randn(2, 3, 24, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    torch.testing.assert_close(shrink(x, factor), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_shrink_keeps_planes(dims: int) -> None:
    """Keys' cubic reproduces linear functions where it does not meet the border."""
    size, factor = 32, 4
    axes = torch.meshgrid(*[torch.arange(size, dtype=torch.float64) + 0.5] * dims, indexing="ij")
    plane = sum((k + 1) * axis for k, axis in enumerate(axes)) + 3
    small = shrink(plane[None, None], factor)[0, 0]
    centres = torch.meshgrid(
        *[(torch.arange(size // factor, dtype=torch.float64) + 0.5) * factor] * dims, indexing="ij"
    )
    inside = (slice(2, -2),) * dims
    wanted = sum((k + 1) * axis for k, axis in enumerate(centres)) + 3
    torch.testing.assert_close(small[inside], wanted[inside])
    assert torch.equal(
        shrink(torch.ones(1, 1, *[8] * dims, dtype=torch.float64), 8).round(decimals=12).flatten(),
        torch.ones(1),
    )


def test_shrink_is_exact_under_mixed_precision() -> None:
    x = torch.rand(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = shrink(x, 2)
    assert torch.equal(mixed, shrink(x, 2))


def test_shrink_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match=r"30×32 must be divisible by 4.*28×32 or 32×32"):
        shrink(torch.zeros(1, 1, 30, 32), 4)


def test_derive_is_the_stated_downsampling() -> None:
    low_res = LowRes(3, 4)
    x0 = torch.rand(2, 3, 16, 8) * 2 - 1
    torch.testing.assert_close(low_res.derive(x0), (shrink(x0, 4) * 0.5 + 0.5).clamp(0, 1))


def test_noise_preserves_variance_and_is_told() -> None:
    """√(1 − s²)·image + s·ε with s uniform in [0, s_max]; in eval mode the image as it is and s =
    0.
    """
    low_res = LowRes(1, 2, max_noise=0.8)
    torch.manual_seed(0)
    image = torch.full((400, 1, 16, 16), 0.75)  # 0.5 inside
    seen = low_res.prepare({"low_res": image})
    s = seen["low_res_noise"]
    assert 0 <= s.min() < 0.02 < 0.78 < s.max() <= 0.8
    assert s.mean().item() == pytest.approx(0.4, abs=4 * 0.8 / math.sqrt(12 * 400))
    flat = seen["low_res"].flatten(1)
    torch.testing.assert_close(flat.mean(1), 0.5 * (1 - s**2).sqrt(), rtol=0, atol=4 * 0.8 / 16)
    torch.testing.assert_close(flat.std(1), s, rtol=4 / math.sqrt(2 * 256), atol=1e-6)

    low_res.eval()
    seen = low_res.prepare({"low_res": image})
    assert torch.equal(seen["low_res"], torch.full_like(image, 0.5))
    assert torch.equal(seen["low_res_noise"], torch.zeros(400))


def test_without_noise_there_is_no_level() -> None:
    diffusion = sr(low_res_max_noise=0.0)
    assert list(diffusion.conditioners) == ["low_res"]
    small = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match="Unknown condition 'low_res_noise'"):
        diffusion.sample(cond={"low_res": small, "low_res_noise": 0.1}, num_steps=2)


def test_largest_noise_leaves_nothing_of_the_image() -> None:
    diffusion = sr(low_res_max_noise=1.0)
    a, b = (
        diffusion.sample(
            cond={"low_res": torch.full((2, 3, 4, 4), v), "low_res_noise": 1.0}, num_steps=2
        )
        for v in (0.0, 1.0)
    )
    assert torch.equal(a, b)


def test_the_image_and_its_level_reach_the_output() -> None:
    diffusion = sr()
    small = torch.rand(1, 3, 4, 4)

    def draw(**cond) -> torch.Tensor:
        return diffusion.sample(cond={"low_res": small, **cond}, num_steps=2)

    clean = draw()
    assert not torch.equal(clean, draw(low_res=1 - small))
    assert torch.equal(clean, draw(low_res_noise=0.0))
    assert not torch.equal(clean, draw(low_res_noise=0.3))
    assert torch.equal(draw(low_res_noise=0.3), draw(low_res_noise=torch.tensor([0.3])))


def test_uint8_and_unit_range_are_the_same_image() -> None:
    diffusion = sr()
    small = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    a, b = (diffusion.sample(cond={"low_res": s}, num_steps=2) for s in (small, small / 255))
    torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        diffusion.sample(cond={"low_res": small / 127.5 - 1}, num_steps=2)


def test_augmentation_is_a_function_of_seed_and_index() -> None:
    """Whatever the batch, the share of a process, or the way of naming seeds."""
    diffusion = sr()
    small = torch.rand(5, 3, 4, 4)
    options = {"num_steps": 2, "seed": 7}
    cond = {"low_res": small, "low_res_noise": torch.tensor([0.0, 0.1, 0.2, 0.3, 0.5])}
    whole = diffusion.sample(cond=cond, **options)
    torch.testing.assert_close(diffusion.sample(cond=cond, batch_size=2, **options), whole)
    last = {k: v[3:] for k, v in cond.items()}
    torch.testing.assert_close(diffusion.sample(cond=last, first_index=3, **options), whole[3:])

    class Rank:
        num_processes, process_index = 1, 0

    torch.testing.assert_close(sample_shared(diffusion, 5, Rank(), cond=cond, **options), whole)
    alone = [
        diffusion.sample(cond={k: v[i : i + 1] for k, v in cond.items()}, num_steps=2, seed=i)
        for i in (2, 4)
    ]
    together = diffusion.sample(
        cond={k: v[[2, 4]] for k, v in cond.items()}, num_steps=2, seeds=[2, 4]
    )
    torch.testing.assert_close(torch.cat(alone), together)
    assert not torch.equal(whole, diffusion.sample(cond=cond, num_steps=2, seed=8))


def test_augmentation_in_edits_is_a_function_of_seed_and_index_too() -> None:
    diffusion = sr()
    images, small = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 4, 4)

    def edited(rows: slice, **options) -> torch.Tensor:
        return diffusion.edit(
            images[rows],
            0.5,
            num_steps=4,
            cond={"low_res": small[rows], "low_res_noise": 0.4},
            **options,
        )

    whole = edited(slice(3), seed=1)
    torch.testing.assert_close(edited(slice(2, 3), seed=1, first_index=2), whole[2:])


def test_sampling_leaves_the_noise_of_the_small_image_out_of_its_own() -> None:
    """x_T is the same at every level of augmentation, so that levels can be compared."""
    diffusion = sr()
    small = torch.rand(1, 3, 4, 4)
    starts = [
        diffusion.sample(
            cond={"low_res": small, "low_res_noise": s}, num_steps=2, return_trajectory=2
        )[1][:, 0]
        for s in (0.0, 0.5)
    ]
    assert torch.equal(*starts)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (torch.rand(2, 3, 8, 8), ValueError, r"must be 4×4, 1/2 of the image size 8×8; got 8×8"),
        (torch.rand(2, 1, 4, 4), ValueError, r"shape \(2, 3, h, w\); got \(2, 1, 4, 4\)"),
        (torch.rand(2, 3, 4), ValueError, r"one small image per sample"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), TypeError, "uint8, or float"),
    ],
)
def test_wrong_images_are_refused(value: torch.Tensor, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        sr().sample(cond={"low_res": value}, num_steps=2)


@pytest.mark.parametrize(
    ("cond", "words"),
    [
        ({}, "needs the condition 'low_res'"),
        (
            {"low_res": torch.rand(1, 3, 4, 4), "low_res_noise": 0.6},
            r"\[0, 0.5\].*got 0.6.*larger low_res_max_noise",
        ),
        ({"low_res": torch.rand(1, 3, 4, 4), "low_res_noise": -0.1}, r"got -0.1"),
        ({"low_res_noise": 0.1}, "Give both"),
    ],
)
def test_wrong_conditions_are_refused(cond: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sr().sample(cond=cond, num_steps=2)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"low_res_factor": 1}, ValueError, "at least 2, got 1"),
        ({"low_res_factor": 2.0}, TypeError, "integer"),
        ({"low_res_max_noise": 1.5}, ValueError, r"must be in \[0, 1\], got 1.5"),
        ({"low_res_drop_prob": -1.0}, ValueError, r"drop_prob"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        Unet(**TINY | {"low_res_factor": 2} | options)


def test_sizes_without_a_smaller_copy_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"32×32 must be divisible by 3.*30×30 or 33×33"):
        Trainer(sr(size=32, factor=3), Shapes(size=32, n=10), progress=False)


@pytest.mark.parametrize(("dims", "channels"), [(1, 2), (2, 1), (2, 4), (3, 1)])
def test_sequences_images_and_volumes(dims: int, channels: int) -> None:
    size = (8, 12, 4)[:dims]
    diffusion = sr(size=size, dims=dims, channels=channels)
    images = torch.rand(2, channels, *size)
    diffusion(images).backward()
    drawn = diffusion.sample(
        cond={"low_res": shrink(images, 2).clamp(0, 1), "low_res_noise": 0.1}, num_steps=2
    )
    assert drawn.shape == images.shape
    assert diffusion.model.conv_in.in_channels == 2 * channels


def test_guidance_needs_a_hidden_image_and_keeps_an_image_that_is_not() -> None:
    small = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match="learned to do without"):
        sr().sample(cond={"low_res": small}, num_steps=2, guidance_scale=2.0)
    hidden = sr(low_res_drop_prob=0.5)
    one, two = (
        hidden.sample(cond={"low_res": small}, num_steps=2, guidance_scale=s) for s in (1.0, 2.0)
    )
    assert not torch.equal(one, two)
    # Without the image it samples as guidance's other half: grey at level 1.
    free = hidden.sample(2, num_steps=2)
    grey = {"low_res": torch.zeros(2, 3, 4, 4), "low_res_noise": torch.ones(2)}
    t = torch.tensor([9.0, 9.0])
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(hidden.model(x, t), hidden.model(x, t, grey))
    assert torch.isfinite(free).all()
    labelled = sr(num_classes=3)
    labels = torch.tensor([0, 2])
    assert (
        labelled.sample(
            cond={"low_res": small, "class_label": labels}, num_steps=2, guidance_scale=2.0
        ).shape[0]
        == 2
    )


def test_dropping_hides_image_and_level_together() -> None:
    diffusion = sr(low_res_drop_prob=0.5)
    seen = []
    diffusion.model.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    diffusion(torch.rand(4, 3, 8, 8), drop=torch.tensor([0.0, 0.4, 0.6, 0.9]))
    cond = seen[0]
    assert (cond["low_res"].flatten(1) == 0).all(1).tolist() == [True, True, False, False]
    assert (cond["low_res_noise"] == 1).tolist() == [True, True, False, False]


def test_one_small_image_for_all_samples() -> None:
    diffusion = sr()
    small = torch.rand(1, 3, 4, 4)
    several = diffusion.sample(3, cond={"low_res": small}, num_steps=2)
    assert torch.equal(
        several, diffusion.sample(3, cond={"low_res": small.expand(3, -1, -1, -1)}, num_steps=2)
    )
    with pytest.raises(ValueError, match=r"has 2 entries for 3 samples. Give one or 3"):
        diffusion.sample(3, cond={"low_res": torch.rand(2, 3, 4, 4)}, num_steps=2)


def test_samples_have_the_colour_of_their_small_images() -> None:
    """Data whose images are one colour each: the small image says everything, and the network
    learns to listen.
    """
    colours = torch.rand(64, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network = Unet(
        dim=16,
        dim_mults=(1,),
        blocks_per_level=1,
        mid_attention="none",
        low_res_factor=4,
        low_res_max_noise=0.2,
    )
    diffusion = GaussianDiffusion(
        network, image_size=4, timesteps=50, parametrization="x0", weighting="flat"
    )
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-2)
    for step in range(80):
        images = colours[torch.arange(16) + 16 * (step % 4)].expand(-1, -1, 4, 4)
        optimizer.zero_grad()
        diffusion(images).backward()
        optimizer.step()
    asked = torch.tensor([[0.1, 0.5, 0.9], [0.8, 0.2, 0.4]])
    drawn = diffusion.sample(
        cond={"low_res": asked[:, :, None, None]}, sampler="ddim", num_steps=10
    )
    assert (drawn.mean((2, 3)) - asked).abs().max() < 0.12


def run_options(**changes) -> dict:
    return {
        "val_every": 2,
        "val_fraction": 0.25,
        "sample_every": 3,
        "sample_count": 3,
        "sample_steps": 2,
    } | changes


def test_resuming_is_exact_and_the_config_comes_back(tmp_path: Path) -> None:
    """The random level and noise of each micro-batch are those of the uninterrupted run; validation
    has none.
    """

    def trainer(run: str, **changes) -> Trainer:
        data = Shapes(size=8, n=40)
        return tiny_trainer(
            tmp_path / run, sr(num_classes=data.num_classes), data, **run_options(**changes)
        )

    trainer("whole").train()
    trainer("cut", callbacks=[StopAt(3)]).train()
    trainer("cut").train()
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    grids = [
        (tmp_path / run / "samples" / "step-000000006.png").read_bytes() for run in ("whole", "cut")
    ]
    assert grids[0] == grids[1]

    loaded = load_run(tmp_path / "whole").diffusion
    config = loaded.model.config
    assert (config["low_res_factor"], config["low_res_max_noise"], config["low_res_drop_prob"]) == (
        2,
        0.5,
        0.0,
    )
    small = torch.rand(2, 3, 4, 4)
    assert loaded.sample(cond={"low_res": small, "class_label": 1}, num_steps=2).shape == (
        2,
        3,
        8,
        8,
    )


def test_validation_repeats_itself() -> None:
    diffusion = sr().eval()
    images = torch.rand(2, 3, 8, 8)
    t, noise = torch.tensor([10, 40]), torch.randn(2, 3, 8, 8)
    assert torch.equal(diffusion(images, t=t, noise=noise), diffusion(images, t=t, noise=noise))
    diffusion.train()
    assert not torch.equal(diffusion(images, t=t, noise=noise), diffusion(images, t=t, noise=noise))


def test_grids_show_small_image_sample_and_truth(tmp_path: Path) -> None:
    """Three tiles per held-out image: the first is the last made small, every pixel a square."""
    trainer = tiny_trainer(tmp_path, sr(), Shapes(size=8, n=40), **run_options(max_steps=3))
    trainer.train()
    picture = np.asarray(Image.open(tmp_path / "samples" / "step-000000003.png"))[
        ::16, ::16
    ]  # tiles are enlarged 16 times
    assert picture.shape == (3 * 10 + 2, 3 * 10 + 2, 3)
    held_out = trainer.held_out
    for row in range(3):
        small, _, truth = (
            picture[2 + 10 * row :, 2 + 10 * column :][:8, :8] for column in range(3)
        )
        image = held_out.batch([row * len(held_out) // 3])["image"][0]
        assert np.array_equal(truth, image.permute(1, 2, 0).numpy())
        made = to_uint8(shrink(image[None] / 127.5 - 1, 2) * 0.5 + 0.5)[0].permute(1, 2, 0).numpy()
        assert np.abs(small[::2, ::2].astype(int) - made.astype(int)).max() <= 1
        assert np.array_equal(small[::2, ::2], small[1::2, 1::2])


def test_small_images_may_come_with_the_data(tmp_path: Path) -> None:
    diffusion = sr()
    batch = {
        "image": torch.rand(2, 3, 8, 8),
        "low_res": torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8),
    }
    diffusion(batch).backward()
    with pytest.raises(ValueError, match="must be 4×4"):
        diffusion(batch | {"low_res": torch.rand(2, 3, 2, 2)})


def test_volumes_train_without_grids_of_pictures(tmp_path: Path) -> None:
    data = tensor_dataset(torch.rand(8, 1, 4, 4, 4))
    diffusion = sr(size=(4, 4, 4), dims=3, channels=1)
    result = tiny_trainer(
        tmp_path,
        diffusion,
        data,
        max_steps=2,
        horizontal_flip=False,
        sample_every=2,
        sample_steps=2,
        sample_count=2,
    ).train()
    assert result.status == "finished"


def test_guided_grids_need_a_hidden_condition() -> None:
    with pytest.raises(ConfigError, match="needs a condition that is sometimes hidden"):
        Trainer(sr(), Shapes(size=8, n=10), sample_guidance_scale=2.0, progress=False)


def test_likelihood_is_that_given_the_small_image() -> None:
    diffusion = sr()
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    small = diffusion.conditioners["low_res"].derive(images / 127.5 - 1)
    by_itself = diffusion.bits_per_dim(images, num_levels=4).total
    torch.testing.assert_close(
        by_itself, diffusion.bits_per_dim(images, num_levels=4, cond={"low_res": small}).total
    )
    assert not torch.equal(
        by_itself, diffusion.bits_per_dim(images, num_levels=4, cond={"low_res": 1 - small}).total
    )
