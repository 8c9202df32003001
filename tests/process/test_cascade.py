"""Cascades in Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddpm_lib import GaussianDiffusion, Unet
from ddpm_lib.data.measurements.normalization import Curve, Normalization
from ddpm_lib.process.cascade import Cascade, Stage, sample_cascade, stage_seed
from ddpm_lib.training.sampling import sample_shared

SMALL = {"dim": 8, "dim_mults": (1, 2), "blocks_per_level": 1}


def process(size: int, seed: int = 0, **model) -> GaussianDiffusion:
    torch.manual_seed(seed)
    network = Unet(**SMALL | model)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return GaussianDiffusion(network, image_size=size, timesteps=20)


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    base = process(4, num_classes=3)
    first = process(8, 1, low_res_factor=2, num_classes=3)
    second = process(16, 2, low_res_factor=2)
    return [
        Stage(base, "ddim", 3, guidance_scale=2.0),
        Stage(first, num_steps=2, low_res_noise=0.3),
        Stage(second, "dpmpp_2m", 2, low_res_noise=0.1),
    ]


def test_a_cascade_is_its_stages_one_after_the_other(stages: list[Stage]) -> None:
    labels = torch.tensor([0, 1, 2, 1])
    small, medium, large = Cascade(stages).sample_stages(cond={"class_label": labels}, seed=5)
    assert [tuple(x.shape) for x in (small, medium, large)] == [
        (4, 3, 4, 4),
        (4, 3, 8, 8),
        (4, 3, 16, 16),
    ]
    options = {"sampler": "ddim", "num_steps": 3, "guidance_scale": 2.0}
    assert torch.equal(
        small, stages[0].diffusion.sample(cond={"class_label": labels}, seed=5, **options)
    )
    cond = {"class_label": labels, "low_res": small, "low_res_noise": 0.3}
    assert torch.equal(
        medium, stages[1].diffusion.sample(cond=cond, num_steps=2, seed=stage_seed(5, 1))
    )
    cond = {"low_res": medium, "low_res_noise": 0.1}
    options = {"sampler": "dpmpp_2m", "num_steps": 2, "seed": stage_seed(5, 2)}
    assert torch.equal(large, stages[2].diffusion.sample(cond=cond, **options))
    assert torch.equal(large, sample_cascade(stages, cond={"class_label": labels}, seed=5))


def test_an_image_is_a_function_of_seed_and_index(stages: list[Stage]) -> None:
    cascade, cond = Cascade(stages), {"class_label": torch.tensor([0, 1, 2, 0, 1])}
    whole = cascade.sample(5, cond=cond, seed=3)
    torch.testing.assert_close(cascade.sample(5, cond=cond, seed=3, batch_size=2), whole)
    torch.testing.assert_close(
        cascade.sample(2, cond={"class_label": cond["class_label"][3:]}, seed=3, first_index=3),
        whole[3:],
    )
    assert not torch.equal(cascade.sample(5, cond=cond, seed=4), whole)

    class Rank:
        num_processes, process_index, device = 1, 0, torch.device("cpu")

    torch.testing.assert_close(sample_shared(cascade, 5, Rank(), cond=cond, seed=3), whole)


def test_the_stages_do_not_share_their_noise() -> None:
    """Two stages of one shape would start from the same x_T if their seeds were one."""
    assert len({stage_seed(s, k) for s in range(50) for k in range(3)}) == 150


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: [], "at least one process"),
        (
            lambda: [process(4), process(8)],
            "Stage 2 of the cascade does not enlarge images.*3 channels of 4×4",
        ),
        (
            lambda: [process(4), process(16, low_res_factor=2)],
            "8×8 to .* stage 1 makes images of 3 channels of 4×4",
        ),
        (lambda: [process(4, channels=1), process(8, low_res_factor=2)], "1 channel of 4×4"),
        (lambda: [Stage(process(4), low_res_noise=0.1)], r"must lie in \[0, 0\]"),
        (
            lambda: [process(4), Stage(process(8, low_res_factor=2), low_res_noise=0.6)],
            r"\[0, 0.5\].*got 0.6",
        ),
        (lambda: [Stage(process(4), "dim")], "Did you mean 'ddim'"),
    ],
)
def test_stages_that_do_not_fit_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Cascade(make())


def test_conditions_that_no_stage_knows_are_refused(stages: list[Stage]) -> None:
    with pytest.raises(ValueError, match="Did you mean 'class_label'"):
        sample_cascade(stages, 1, cond={"class_lable": 1})
    with pytest.raises(ValueError, match="come from the first stage"):
        sample_cascade(stages, 1, cond={"low_res": torch.rand(1, 3, 4, 4)})


def test_a_cascade_may_begin_with_given_images(stages: list[Stage]) -> None:
    given = torch.rand(2, 3, 4, 4)
    drawn = sample_cascade(stages[1:], cond={"low_res": given, "class_label": 0})
    assert drawn.shape == (2, 3, 16, 16)
    assert not torch.equal(
        drawn, sample_cascade(stages[1:], cond={"low_res": 1 - given, "class_label": 0})
    )


def measured(diffusion: GaussianDiffusion, *ends: tuple[float, float]) -> GaussianDiffusion:
    curves = [Curve(np.array(pair), np.array([0.0, 1.0])) for pair in ends]
    diffusion.normalization = Normalization("affine", "float32", tuple(curves))
    return diffusion


def test_measured_values_keep_their_units_from_stage_to_stage() -> None:
    """A network of small images was fitted on a narrower range than one of large ones."""
    channels = {"channels": 1}
    base = measured(process(4, **channels), (-10.0, 30.0))
    large = measured(process(8, 1, low_res_factor=2, **channels), (-50.0, 50.0))
    small, found = Cascade([base, large]).sample_stages(2, seed=1)
    seen = (small * 40.0 - 10.0 + 50.0) / 100.0
    wanted = large.sample(2, cond={"low_res": seen}, seed=stage_seed(1, 1))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    large.normalization = None
    with pytest.raises(ValueError, match=r"Stage 1 .* measured values, and stage 2 pict"):
        Cascade([base, large])
    measured(large, (0.0, 1.0))
    plain = process(4, **channels)
    with pytest.raises(ValueError, match=r"Stage 2 .* measured values, and stage 1 pict"):
        Cascade([plain, large])
