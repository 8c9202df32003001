"""What a Trainer says of its arguments: help, objects where names belong, names of runs, classes
that are not learned.
"""

from __future__ import annotations

import dataclasses
import pydoc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet
from ddpm_lib.cli import main
from ddpm_lib.data import open_dataset
from ddpm_lib.evaluation import evaluate
from ddpm_lib.evaluation.run_images import RunImages
from ddpm_lib.runs.loading import load_run
from ddpm_lib.training import Callback, ConfigError, TrainingConfig
from ddpm_lib.training.sources import data_name
from training_helpers import tiny_diffusion, tiny_trainer


@pytest.mark.parametrize("cls", [Trainer, TrainingConfig])
def test_help_describes_every_option(cls: type) -> None:
    text = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    entries = dict.fromkeys(f.name for f in dataclasses.fields(TrainingConfig))
    for line in text.splitlines():
        name, colon, words = line.replace("|", " ").strip().partition(": ")
        if colon and name in entries and entries[name] is None:
            entries[name] = words
    assert [
        name for name, words in entries.items() if not words or words.startswith("Default")
    ] == []


def test_the_command_s_help_has_no_default_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    assert "Default: None." not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["optimizer", "lr_schedule"])
def test_objects_for_what_the_trainer_builds_itself(name: str) -> None:
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    given = optimizer if name == "optimizer" else torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(
        ConfigError, match=rf"^{name} must be a name; got an object of the class .* itself: '"
    ) as error:
        TrainingConfig(**{name: given})  # type: ignore[arg-type]
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        (Unet(dim=8, dim_mults=(1, 2)), r"GaussianDiffusion\(model"),
        ("pictures", r"Trainer\(diffusion, data\)"),
    ],
    ids=["network", "data"],
)
def test_the_first_argument_is_a_process(given: Any, fix: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^diffusion must be a GaussianDiffusion; got .*{fix}"
    ) as error:
        Trainer(given)
    assert len(str(error.value)) < 200


class OfAnotherLibrary(Callback):
    """Has a hook that transformers and Lightning call."""

    def on_epoch_end(self, trainer: Any) -> None:
        raise AssertionError


def test_hooks_that_nothing_calls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"has on_epoch_end, which nothing would call.*on_step_end"):
        tiny_trainer(tmp_path, callbacks=[OfAnotherLibrary()])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("cats", "cats"),
        ("cats/train", "cats-train"),
        ("cats/data/images", "cats-data-images"),
        ("sysu-64/train_data", "sysu-64-train_data"),
        ("cats/train.npz", "cats-train"),
        ("cats/v1.5", "v1.5"),
    ],
)
def test_runs_of_two_data_sets_have_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if not path.endswith(".npz"):
        Path(path).mkdir(parents=True)
    assert data_name(path) == data_name(tmp_path / path) == name
    assert data_name("/data/train") == "data-train"


def in_classes(folder: Path) -> Path:
    for number in range(12):
        path = folder / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.mark.parametrize(("labels", "told"), [("auto", True), ("none", False)])
def test_classes_that_are_not_learned_are_said(tmp_path: Path, labels: str, told: bool) -> None:
    data = in_classes(tmp_path / "pictures")
    tiny_trainer(tmp_path / "run", data=str(data), labels=labels, max_steps=1).train()
    said = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert ("3 classes, which this run does not learn. --class-conditional" in said) == told
    assert ("Unet(num_classes=3)" in said) == told


def test_classes_that_are_learned_are_not_said(tmp_path: Path) -> None:
    data = in_classes(tmp_path / "pictures")
    tiny_trainer(
        tmp_path / "run", tiny_diffusion(num_classes=3), data=str(data), max_steps=1
    ).train()
    assert "does not learn" not in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")


def test_a_run_with_held_out_objects_is_evaluated_on_what_there_is(tmp_path: Path) -> None:
    data = in_classes(tmp_path / "pictures")
    held_out = open_dataset(data, image_size=8, fit="pad", labels="none")
    tiny_trainer(
        tmp_path / "run", data=str(data), val_data=held_out, val_every=2, fit="pad", max_steps=2
    ).train()
    options: dict[str, Any] = {
        "metrics": "nll",
        "num": 2,
        "num_levels": 2,
        "device": "cpu",
        "progress": False,
    }
    assert evaluate(tmp_path / "run", data="train", **options)["nll"] > 0
    with pytest.raises(
        ConfigError, match=r"an object of Python, <ImageDataset of 12, given in Python>.*Pass them"
    ):
        evaluate(tmp_path / "run", data="held-out", **options)


@pytest.mark.parametrize("kind", ["object", "path"])
def test_a_resumed_run_is_validated_on_the_same_images(tmp_path: Path, kind: str) -> None:
    data = Shapes(size=8, n=40)

    def held_out(first: int) -> Any:
        if kind == "object":
            return data.subset(range(first, first + 10))
        np.save(
            tmp_path / f"{first}.npy",
            data.batch(np.arange(first, first + 10))["image"].permute(0, 2, 3, 1).numpy(),
        )
        return tmp_path / f"{first}.npy"

    def train(first: int, steps: int, **options: Any) -> int:
        given = {"val_data": held_out(first), "val_every": 2, "max_steps": steps, **options}
        return tiny_trainer(tmp_path / "run", data=data, **given).train().step

    assert train(0, 2) == 2
    assert train(0, 4) == 4
    with pytest.raises(ConfigError, match="val_data: other images"):
        train(20, 6)
    assert train(20, 6, override=True) == 6


def test_a_config_that_names_an_object_says_so(tmp_path: Path) -> None:
    options = {"val_data": "<Subset of 20, given in Python>", "val_every": 1}
    with pytest.raises(
        ConfigError, match="<Subset of 20, given in Python> was an object of Python"
    ):
        tiny_trainer(tmp_path, data=Shapes(size=8, n=40), **options).train()


def bands(folder: Path, seed: int) -> Path:
    """Write 12 wide pictures of 16 bits, whose values lie in 0 … 4095."""
    folder.mkdir()
    values = np.random.default_rng(seed).integers(0, 4096, (12, 8, 16)).astype(np.uint16)
    for k, pixels in enumerate(values):
        Image.fromarray(pixels).save(folder / f"wild-cat_{k:02d}.png")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        {"fit": "pad", "background": (0, 0, 90)},
        {"fit": "pad", "background": 7},
        {"fit": "stretch", "labels": "prefix"},
        {"normalize": "affine", "fit": "stretch"},
    ],
)
def test_what_an_open_set_was_opened_with_is_recorded_and_reads_other_images(
    tmp_path: Path, words: dict[str, Any]
) -> None:
    """As if its options had been the run's own: `evaluate --data`, `tune`, `distill`, `report`."""
    if "normalize" not in words:
        words = {**words, "value_range": (0, 4095)}
    data = open_dataset(bands(tmp_path / "a", 0), image_size=8, channels=1, **words)
    other = bands(tmp_path / "b", 1)
    classes = 1 if "labels" in words else None
    for _ in range(2):  # the same call goes on with the run
        diffusion = GaussianDiffusion(
            Unet(dim=8, dim_mults=(1, 2), channels=1, num_classes=classes), image_size=8
        )
        tiny_trainer(tmp_path / "run", diffusion, data=data, max_steps=2).train()
    found = RunImages(load_run(tmp_path / "run"))
    assert found.config.fit == words["fit"]
    assert found.config.value_range == words.get("value_range")
    assert found.config.normalize == words.get("normalize")
    if "normalize" in words:
        words = {**words, "normalize": found.loaded.diffusion.normalization}
    expected = open_dataset(other, image_size=8, channels=1, **words)
    rows = np.arange(12)
    for opened in (found.other(str(other), None, None), found.pictures(str(other), None, None)):
        assert torch.equal(opened.batch(rows)["image"], expected.batch(rows)["image"])
    assert RunImages(found.loaded, given=data).get("train").fingerprint == data.fingerprint
    assert RunImages(found.loaded, given=tmp_path / "a").get("train").fingerprint is not None
    text = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert f"fit: {words['fit']}" in text


def test_objects_beside_an_open_set_are_not_read_by_its_labels_and_columns(tmp_path: Path) -> None:
    data = open_dataset(bands(tmp_path / "a", 0), image_size=8, channels=1, labels="prefix")
    more = np.random.default_rng(2).integers(0, 256, (6, 8, 8)).astype(np.uint8)
    diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1, 2), channels=1), image_size=8)
    options: dict[str, Any] = {"val_data": more[:3], "add_data": more[3:], "val_every": 2}
    trainer = tiny_trainer(tmp_path / "run", diffusion, data=data, **options)
    trainer.prepare()
    assert (len(trainer.dataset), len(trainer.held_out or ())) == (15, 3)
