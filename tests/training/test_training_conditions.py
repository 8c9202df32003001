"""Runs that learn conditions of the data: exact on resume, rebuilt from what they keep, and refused
where the data are others.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, load_run
from ddpm_lib.data import ImageDataset, open_dataset
from ddpm_lib.nn import register_text_encoder
from ddpm_lib.training import ConfigError
from training_helpers import (
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

N = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes on disk, with a table, masks and vectors."""
    where = tmp_path_factory.mktemp("data")
    data = Shapes(size=8, n=N)
    masks, sizes = data.column("mask"), data.column("size")
    rows = []
    for i in range(N):
        for kind in ("images", "masks"):
            (where / kind).mkdir(exist_ok=True)
        image = data[i]["image"].permute(1, 2, 0).numpy()
        Image.fromarray(image).save(where / "images" / f"{i:03d}.png")
        Image.fromarray(masks[i]).save(where / "masks" / f"{i:03d}.png")
        rows.append([f"{i:03d}.png", sizes[i], data.column("colour")[i], ["a", "a|b", "c"][i % 3]])
    with open(where / "meta.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "size", "colour", "tags"], *rows])
    np.save(where / "code.npy", np.random.default_rng(0).normal(3.0, 2.0, (N, 2)))
    register_text_encoder("test-lengths", lambda texts: [[len(t), t.count("e")] for t in texts])
    return where


def words(folder: Path) -> tuple[str, ...]:
    meta = folder / "meta.csv"
    return (
        f"size={meta}:size,drop=0.3",
        f"colour={meta}:colour",
        f"tags={meta}:tags,kind=tags",
        f"code={folder / 'code.npy'}",
        f"mask={folder / 'masks'},classes=7",
        f"low={folder / 'images'},factor=2",
        f"caption={meta}:colour,encoder=test-lengths",
    )


def opened(folder: Path, **options: Any) -> ImageDataset:
    where = folder / "images"
    return open_dataset(where, image_size=8, conditions=words(folder), num_workers=0, **options)


def process(data: ImageDataset) -> GaussianDiffusion:
    return tiny_diffusion(conditions=data.condition_table)


@pytest.mark.every(2)
@pytest.mark.parametrize("cache", ["ram", "none"])
def test_resumed_equals_uninterrupted(tmp_path: Path, folder: Path, cache: str) -> None:
    def train(run: str, *stops: int) -> Trainer:
        trainer = tiny_trainer(
            tmp_path / run,
            process(opened(folder)),
            str(folder / "images"),
            callbacks=[StopAt(stop) for stop in stops],
            condition=words(folder),
            val_every=3,
            val_fraction=0.2,
            sample_every=3,
            sample_count=2,
            sample_steps=2,
            accumulation_steps=2,
            cache=cache,
            num_workers=0,
        )
        trainer.train()
        return trainer

    train("whole")
    for stop in (2, 4):
        train("pieces", stop)
    trainer = train("pieces")
    assert trainer.step == 6
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "pieces"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "pieces")


def test_a_run_keeps_what_it_measured_on_its_training_part(tmp_path: Path, folder: Path) -> None:
    data = opened(folder)
    trainer = tiny_trainer(tmp_path / "run", process(data), data, val_every=3, val_fraction=0.3)
    trainer.train()
    values = trainer.dataset.conditions["size"].values
    loaded = load_run(tmp_path / "run")
    entry = loaded.diffusion.model.config["conditions"]["size"]
    assert entry["mean"] == pytest.approx(float(values.mean()), rel=1e-6)
    assert entry["high"] == float(values.max())
    assert entry["mean"] != pytest.approx(float(data.conditions["size"].values.mean()), rel=1e-9)
    colour = loaded.diffusion.model.config["conditions"]["colour"]["names"]
    assert set(colour) == set(Shapes(size=8, n=N).column("colour"))
    cond = {"size": 0.6, "colour": "red", "tags": "a|b", "caption": "three"}
    drawn = loaded.diffusion.sample(2, cond=cond, num_steps=2, seed=1, guidance_scale=2.0)
    again = trainer.sample(2, cond=cond, num_steps=2, seed=1, guidance_scale=2.0)
    assert torch.allclose(drawn, again, atol=1e-5)  # another memory layout


def test_masks_are_mirrored_with_their_images(tmp_path: Path, folder: Path) -> None:
    """What the network sees of mask and image is the same where the shape is."""
    data = opened(folder)
    trainer = tiny_trainer(tmp_path / "run", process(data), data)
    trainer.prepare()
    seen = []

    class Seeing(torch.nn.Module):
        def forward(self, images: Any, cond: Any, **kwargs: Any) -> Any:
            seen.append((images, cond["mask"]))
            return trainer.diffusion(images, cond, **kwargs)

    rows = np.arange(16)
    batch = data.batch(rows)
    trainer.forward_pass(Seeing(), dict(batch), range(16), 0, 0)
    images, masks = seen[0]
    mirrored = [not torch.equal(a, b) for a, b in zip(images, batch["image"], strict=True)]
    assert 2 < sum(mirrored) < 14
    for k in rows:
        wanted = batch["mask"][k].flip(-1) if mirrored[k] else batch["mask"][k]
        assert torch.equal(masks[k], wanted)


def test_other_values_are_refused(tmp_path: Path, folder: Path) -> None:
    data = Shapes(size=8, n=N)
    sizes = np.asarray(data.column("size"))

    def trainer(values: Any, **options: Any) -> Trainer:
        conditioned = data.with_conditions({"size": values})
        return tiny_trainer(tmp_path / "run", process(conditioned), conditioned, **options)

    trainer(sizes, max_steps=3).train()
    with pytest.raises(ConfigError, match=r"the condition 'size' has other values now"):
        trainer(sizes + 0.1).prepare()
    overridden = trainer(sizes + 0.1, override=True)
    overridden.prepare()  # what was measured stays
    entry = overridden.diffusion.model.config["conditions"]["size"]
    assert entry["mean"] == pytest.approx(float(sizes.mean()), rel=1e-6)


def test_labels_are_numbered_as_the_network_numbers_them(tmp_path: Path) -> None:
    data = Shapes(size=8, n=6)
    known = data.with_conditions({"style": ["a", "b", "c", "a", "b", "c"]})
    diffusion = tiny_diffusion(conditions=known.condition_table)
    fewer = data.with_conditions({"style": ["c", "c", "b", "b", "b", "c"]})
    trainer = tiny_trainer(tmp_path / "run", diffusion, fewer)
    trainer.prepare()
    assert trainer.dataset.batch(range(6))["style"].tolist() == [2, 2, 1, 1, 1, 2]
    other = data.with_conditions({"style": ["c", "c", "d", "b", "b", "c"]})
    with pytest.raises(ConfigError, match=r"'style' of the data has d, which the network does not"):
        tiny_trainer(tmp_path / "other", diffusion, other).prepare()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    data = Shapes(size=8, n=N)
    sized = data.with_conditions({"size": np.asarray(data.column("size"))})
    with pytest.raises(ConfigError, match=r"built for the condition 'size' \(number\), which the"):
        tiny_trainer(tmp_path / "a", process(sized), data).prepare()
    words = data.with_conditions({"size": ["big"] * N})
    with pytest.raises(
        ConfigError, match=r"is of the kind label; the network was built for number"
    ):
        tiny_trainer(tmp_path / "b", process(sized), words).prepare()
    masked = data.with_conditions({"mask": data.column("mask")})
    fewer = tiny_diffusion(conditions={"mask": {"kind": "mask", "classes": 3}})
    with pytest.raises(ConfigError, match=r"has 7 classes; the network knows 3"):
        tiny_trainer(tmp_path / "c", fewer, masked).prepare()
    both = tiny_diffusion(conditions=masked.condition_table, augment_dim=9)
    with pytest.raises(ConfigError, match=r"augment turns and shifts images, but not .* 'mask'"):
        tiny_trainer(tmp_path / "d", both, masked, augment=0.1)


def test_conditions_that_nobody_learns_are_said(tmp_path: Path) -> None:
    data = Shapes(size=8, n=N)
    sized = data.with_conditions({"size": np.asarray(data.column("size"))})
    trainer = tiny_trainer(tmp_path / "run", data=sized)
    trainer.train()
    assert "the condition size, which this network does not take" in (
        tmp_path / "run" / "train.log"
    ).read_text(encoding="utf-8")


def answers(diffusion: GaussianDiffusion) -> torch.Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return diffusion.eval().model(x, torch.tensor([3.0, 40.0]), {})


def test_other_weights_begin_as_without_what_is_new_or_gone(tmp_path: Path, folder: Path) -> None:
    data = opened(folder)
    plain = tiny_trainer(tmp_path / "plain", data=Shapes(size=8, n=N), ema_decay=())
    plain.train()
    start = str(tmp_path / "plain")
    begun = tiny_trainer(tmp_path / "more", process(data), data, init_from=start)
    begun.prepare()
    assert torch.allclose(answers(begun.diffusion), answers(plain.diffusion), atol=1e-5)
    values = data.batch([0, 1])
    cond = {name: values[name] for name in ("size", "colour", "tags", "code", "mask")}
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # nothing that is new adds anything yet
        told = begun.diffusion.model(x, torch.tensor([3.0, 40.0]), cond)
    assert torch.allclose(told, answers(plain.diffusion), atol=1e-5)
    begun.train()
    less = tiny_trainer(
        tmp_path / "less",
        data=Shapes(size=8, n=N),
        init_from=str(tmp_path / "more"),
        init_weights="model",
    )
    less.prepare()
    assert torch.allclose(answers(less.diffusion), answers(begun.diffusion), atol=1e-5)
    same = tiny_trainer(
        tmp_path / "same",
        process(data),
        data,
        init_from=str(tmp_path / "more"),
        init_weights="model",
    )
    same.prepare()
    for name, tensor in begun.diffusion.model.state_dict().items():
        assert torch.equal(same.diffusion.model.state_dict()[name], tensor), name
