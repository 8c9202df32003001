"""Resuming is exact with everything switched on at once: weights, averages, optimizer, time sampler
and curve, bit for bit.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoint_tools import newest, rehash
from ddpm_lib import GaussianDiffusion, Shapes, Unet, load_run
from ddpm_lib.data import open_dataset
from ddpm_lib.images import save_image
from ddpm_lib.nn import register_text_encoder
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


KINDS_OF_VALUES = {
    "affine": {"normalize": "affine"},
    "quantile": {"normalize": "quantile"},
    "patches": {"normalize": "affine", "fit": "patch"},
}
KINDS_OF_CONDITION = {
    "number": "size={root}/meta.csv:size,drop=0.3",
    "angle": "turn={root}/meta.csv:turn,kind=angle",
    "vector": "code={root}/code.npy",
    "label": "colour={root}/meta.csv:colour",
    "tags": "tags={root}/meta.csv:tags,kind=tags",
    "text": "caption={root}/meta.csv:colour,encoder=test-resume",
    "mask": "mask={root}/masks,classes=3",
    "image": "low={root}/small,factor=2,channels=1",
}
CASES_OF_VALUES = [
    pytest.param(values, kind, marks=() if (i + j) % 3 == 1 else pytest.mark.slow)
    for i, values in enumerate(KINDS_OF_VALUES)
    for j, kind in enumerate(KINDS_OF_CONDITION)
    if not (values == "patches" and kind in ("mask", "image"))
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measured images of two channels, with all that can come with them."""
    root = tmp_path_factory.mktemp("measured")
    rng = np.random.default_rng(0)
    for name in ("values", "masks", "small"):
        (root / name).mkdir()
    rows = [["file_name", "size", "turn", "colour", "tags"]]
    for i in range(30):
        values = rng.normal(280, 10, (2, 8, 8)).astype(np.float32)
        np.save(root / "values" / f"{i:02d}.npy", values)
        mask = rng.integers(0, 3, (8, 8)).astype(np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{i:02d}.png")
        small = rng.integers(0, 256, (4, 4)).astype(np.uint8)
        Image.fromarray(small).save(root / "small" / f"{i:02d}.png")
        colour, tags = ["red", "blue"][i % 2], ["a", "a|b", "c"][i % 3]
        rows.append([f"{i:02d}.npy", str(i / 7), str(12 * i), colour, tags])
    (root / "meta.csv").write_text("\n".join(",".join(row) for row in rows))
    np.save(root / "code.npy", rng.normal(3, 2, (30, 2)))
    register_text_encoder("test-resume", lambda texts: [[len(t), t.count("e")] for t in texts])
    return root


@pytest.mark.parametrize(("values", "kind"), CASES_OF_VALUES)
def test_measured_values_and_their_conditions_go_on_bit_for_bit(
    tmp_path: Path, measured: Path, values: str, kind: str
) -> None:
    size = 4 if values == "patches" else 8
    options = {**KINDS_OF_VALUES[values], "condition": (KINDS_OF_CONDITION[kind],)}
    options["condition"] = (KINDS_OF_CONDITION[kind].format(root=measured),)
    reading = {name: options[name] for name in ("normalize", "fit") if name in options}
    opened = open_dataset(
        measured / "values",
        image_size=size,
        channels=2,
        conditions=options["condition"],
        num_workers=0,
        **reading,
    )

    def train(run: str, *stops: int) -> GaussianDiffusion:
        torch.manual_seed(0)
        model = Unet(
            dim=8,
            dim_mults=(1, 2),
            blocks_per_level=1,
            channels=2,
            dropout=0.1,
            conditions=opened.condition_table,
        )
        trainer = tiny_trainer(
            tmp_path / run,
            GaussianDiffusion(model, image_size=size, timesteps=20),
            str(measured / "values"),
            callbacks=[StopAt(stop) for stop in stops],
            max_steps=6,
            val_every=2,
            val_fraction=0.2,
            sample_every=3,
            sample_count=2,
            sample_steps=2,
            num_workers=0,
            **options,
        )
        trainer.train()
        return trainer.diffusion

    whole = train("whole")
    for stop in (1, 4):
        train("cut", stop)
    resumed = train("cut")
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    assert whole.normalization.to_json() == resumed.normalization.to_json()
    again = load_run(tmp_path / "cut").diffusion
    assert again.normalization.to_json() == whole.normalization.to_json()
    assert list(again.conditioners) == [kind_name(kind)]


def kind_name(kind: str) -> str:
    """The name of the condition of a kind."""
    return KINDS_OF_CONDITION[kind].partition("=")[0]
