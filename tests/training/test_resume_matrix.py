"""Resuming is exact with everything switched on at once: weights, averages, optimizer, time sampler
and curve, bit for bit.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch

from checkpoint_tools import newest, rehash
from ddpm_lib import GaussianDiffusion, Shapes, Unet
from ddpm_lib.images import save_image
from ddpm_lib.nn.blocks import dropout_masks, use_dropout_masks
from ddpm_lib.training.augmentation import AUGMENT_DIM
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

CASES = list(product(["no", "bf16"], [1, 3], ["ram", 0, 2]))
"""Precision, micro-batches per step, and where the images come from: memory, or files through so
many workers.
"""
QUICK = [("bf16", 3, 2)]
"""What runs by default: everything at once; the others are slow."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures on disk."""
    where = tmp_path_factory.mktemp("pictures")
    shapes = Shapes(size=8, n=36)
    for i in range(len(shapes)):
        item = shapes[i]
        save_image(item["image"], where / f"class-{int(item['class_label'])}" / f"{i:03d}.png")
    return where


def student() -> GaussianDiffusion:
    """A process whose loss changes with the step."""
    torch.manual_seed(0)
    model = Unet(
        dim=8,
        dim_mults=(1, 2),
        blocks_per_level=1,
        dropout=0.1,
        num_classes=6,
        class_drop_prob=0.5,
        augment_dim=AUGMENT_DIM,
        low_res_factor=2,
        low_res_max_noise=0.3,
    )
    diffusion = GaussianDiffusion(model, image_size=8, timesteps=40, offset_noise=0.1)
    return diffusion.for_consistency(loss_options={"stages": 3})


def process() -> GaussianDiffusion:
    torch.manual_seed(0)
    model = Unet(
        dim=8,
        dim_mults=(1, 2),
        blocks_per_level=1,
        dropout=0.1,
        num_classes=6,
        class_drop_prob=0.5,
        self_condition=True,
        augment_dim=AUGMENT_DIM,
        low_res_factor=2,
    )
    return GaussianDiffusion(
        model,
        image_size=8,
        timesteps=4,
        time_sampler="loss_aware",
        time_sampler_options={"history": 1},
        learn_uncertainty=True,
        offset_noise=0.1,
        input_perturbation=0.1,
        immiscible=True,
        noise_draws=2,
    )


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize(
    ("precision", "accumulation", "source"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_resumed_equals_uninterrupted(
    tmp_path: Path, folder: Path, precision: str, accumulation: int, source: str | int, tuned: bool
) -> None:
    options = {
        "max_steps": 7,
        "mixed_precision": precision,
        "accumulation_steps": accumulation,
        "augment": 0.3,
        "ema_decay": (0.9, 0.99),
        "posthoc_ema": (0.1,),
        "posthoc_every": 2,
        "keep_best": "val_loss",
        "save_async": True,
        "val_every": 3,
        "val_fraction": 0.2,
        "sample_every": 3,
        "sample_count": 2,
        "sample_steps": 2,
        "save_every": 2,
        "cache": "ram" if source == "ram" else "none",
        "num_workers": 0 if source == "ram" else source,
        "sample_sampler": "consistency" if tuned else "ddim",
    }

    def train(run: str, *stops: int) -> GaussianDiffusion:
        callbacks = [StopAt(stop) for stop in stops]
        trainer = tiny_trainer(
            tmp_path / run,
            student() if tuned else process(),
            str(folder),
            callbacks=callbacks,
            **options,
        )
        trainer.train()
        return trainer.diffusion

    whole = train("whole")
    # The stop at step 3 falls between validation, sampling and the checkpoint of step 4.
    for stop in (1, 3, 5):
        train("cut", stop)
    resumed = train("cut")
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    assert whole.time_sampler.state_dict() == resumed.time_sampler.state_dict()
    names = sorted(path.name for path in (tmp_path / "whole" / "posthoc").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "cut" / "posthoc").iterdir())
    for name in names:
        assert (tmp_path / "whole" / "posthoc" / name).read_bytes() == (
            tmp_path / "cut" / "posthoc" / name
        ).read_bytes()


@pytest.mark.parametrize("source", ["torch", "position"])
def test_a_run_goes_on_with_the_masks_that_it_began_with(tmp_path: Path, source: str) -> None:
    """Checkpoints of before dropout moved into the kernel have no entry for it."""

    def train(run: str, *stops: int) -> GaussianDiffusion:
        callbacks = [StopAt(stop) for stop in stops]
        diffusion = tiny_diffusion()
        if run == "whole" or stops:
            use_dropout_masks(diffusion.model, source)
        tiny_trainer(tmp_path / run, diffusion, callbacks=callbacks).train()
        return diffusion

    train("whole")
    train("cut", 3)
    state = newest(tmp_path / "cut") / "state.json"
    values = json.loads(state.read_text())
    assert values["dropout_masks"] == source
    if source == "torch":
        del values["dropout_masks"], values["versions"]["arithmetic"]
        state.write_text(json.dumps(values))
        rehash(state.parent)
    assert dropout_masks(train("cut").model) == source
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    kept = json.loads((newest(tmp_path / "cut") / "state.json").read_text())
    assert kept["dropout_masks"] == source
    told = "rounds otherwise on a CPU" in (tmp_path / "cut" / "train.log").read_text()
    assert told == (source == "torch")


def test_the_two_kinds_of_masks_differ(tmp_path: Path) -> None:
    for source in ("torch", "position"):
        diffusion = tiny_diffusion()
        use_dropout_masks(diffusion.model, source)
        tiny_trainer(tmp_path / source, diffusion).train()
    a, b = (final_tensors(tmp_path / source) for source in ("torch", "position"))
    assert not all(torch.equal(a[name], b[name]) for name in a)
