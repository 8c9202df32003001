"""Held-out images take conditions of their own, or are refused: never those of training images that
have the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command_line import TINY, ddpm, error_of
from ddpm_lib import load_run, open_dataset
from ddpm_lib.data.metadata import match_names, names_from_above
from ddpm_lib.evaluation import evaluate
from ddpm_lib.training import ConfigError
from held_out_parts import SOURCES, TABLES, N, alone, images, parts, trainer, values_of
from training_helpers import tiny_diffusion, tiny_trainer


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return parts(tmp_path)


@pytest.mark.parametrize("name", SOURCES)
def test_values_of_training_images_are_refused_by_both_names(place: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer(place, name, SOURCES[name][0]).prepare()
    said = str(caught.value)
    path = SOURCES[name][0].partition(",")[0].partition(":")[0]
    assert f"{place / path} has one value of the condition {name!r}" in said
    assert f"{place / 'val'}/00.png and for the training image" in said
    assert f" {place / 'train'}/00.png, which is another" in said
    assert f'val_condition=("{name}=FILE",)' in said


@pytest.mark.parametrize("name", SOURCES)
def test_held_out_images_have_a_source_of_their_own(place: Path, name: str) -> None:
    """What was said of the condition, such as its kind, holds for them too."""
    words, theirs = SOURCES[name]
    made = trainer(place, name, words, val_condition=(f"{name}={place / theirs}",))
    made.prepare()
    np.testing.assert_array_equal(values_of(made.dataset, name), alone(place, "train", name))
    np.testing.assert_array_equal(values_of(made.held_out, name), alone(place, "val", name))
    assert not np.array_equal(alone(place, "val", name), alone(place, "train", name))


@pytest.mark.parametrize(
    ("name", "source"),
    [("age", "both.csv:age"), ("mask", "masks"), ("sketch", "sketches,channels=1")],
)
def test_names_with_folders_tell_images_apart(place: Path, name: str, source: str) -> None:
    """A table or a folder of several folders has a line or a picture for each."""
    kind = ",kind=image" if name == "sketch" else ""
    made = trainer(place, name, source + kind)
    made.prepare()
    np.testing.assert_array_equal(values_of(made.dataset, name), alone(place, "train", name))
    np.testing.assert_array_equal(values_of(made.held_out, name), alone(place, "val", name))


def change(place: Path, name: str) -> None:
    """Give the first held-out image another value of a condition."""
    if name in ("mask", "sketch"):
        path = place / {"mask": "masks", "sketch": "sketches"}[name] / "val" / "00.png"
        Image.fromarray(3 - np.asarray(Image.open(path)) % 4).save(path)
    elif name == "spot":
        np.save(place / "val.npy", np.load(place / "val.npy") + np.eye(N, 3))
    else:
        first, _, others = (place / "val.csv").read_text().partition("00.png,")
        (place / "val.csv").write_text(f"{first}00.png,91,a\n{others.partition(chr(10))[2]}")


@pytest.mark.parametrize("name", SOURCES)
def test_other_values_are_refused_as_those_of_training_images_are(place: Path, name: str) -> None:
    """By a run that goes on, unless overridden, and by its evaluation."""
    words, theirs = SOURCES[name]
    own = {"val_condition": (f"{name}={place / theirs}",)}
    trainer(place, name, words, **own, max_steps=2).train()
    trainer(place, name, words, **own).prepare()  # as they were
    scored = {"metrics": "nll", "num": 2, "num_levels": 2, "device": "cpu", "progress": False}
    assert evaluate(place / "run", **scored).scores
    change(place, name)
    said = rf"held-out images: the condition '{name}' has other values now"
    with pytest.raises(ConfigError, match=said):
        trainer(place, name, words, **own).prepare()
    lines: list[str] = []
    overridden = trainer(place, name, words, **own, override=True)
    overridden.say = lines.append  # type: ignore[method-assign]
    overridden.prepare()
    assert sum(line.startswith("Continuing although held-out images: ") for line in lines) == 1
    with pytest.raises(ConfigError, match=rf"{name}' has other values now, of the held-out"):
        evaluate(place / "run", **scored)


def test_values_of_images_that_are_held_out_of_the_training_data_are_compared(
    place: Path,
) -> None:
    table = place / "train.csv"
    own = {"val_data": None, "val_fraction": 0.3, "max_steps": 2}
    made = trainer(place, "age", "train.csv:age", **own)
    made.train()
    assert made.held_out is not None
    lines = table.read_text().splitlines()
    for part, words in ((made.held_out, "held-out images: the"), (made.dataset, "data: the")):
        row = 1 + int(part.names[0][:2])
        other = [*lines[:row], f"{lines[row].partition(',')[0]},99,a", *lines[row + 1 :]]
        table.write_text("\n".join(other))
        with pytest.raises(ConfigError, match=rf"{words} condition 'age' has other values now"):
            trainer(place, "age", "train.csv:age", **own).prepare()
        with pytest.raises(ConfigError, match=r"the condition 'age' has other values now"):
            evaluate(place / "run", metrics="loss_gap", device="cpu", progress=False)
    table.write_text("\n".join(lines))
    trainer(place, "age", "train.csv:age", **own).prepare()


def test_other_held_out_images_are_not_scored_as_those_of_the_run(place: Path) -> None:
    own = {"val_condition": (f"age={place / 'val.csv'}:age",), "max_steps": 2}
    trainer(place, "age", "train.csv:age", **own).train()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / "val" / "00.png")
    with pytest.raises(ConfigError, match=r"not what they were: the held-out images are others"):
        evaluate(place / "run", metrics="loss_gap", device="cpu", progress=False)


def black_and_white(folder: Path) -> Path:
    for path in folder.iterdir():
        Image.fromarray(np.uint8(255) * (np.asarray(Image.open(path)) > 1)).save(path)
    return folder


def test_black_and_white_masks_are_none_of_more_classes(place: Path) -> None:
    """255 is white for two classes and unknown for more, of which a set of nothing else is refused
    wherever it comes from; unless somebody says that it is meant.
    """
    usual = {"val_condition": (f"mask={place / 'masks' / 'val'}",), "max_steps": 2}
    trainer(place, "mask", "masks/train", **usual).train()
    white = black_and_white(place / "masks" / "val")
    meant = f"mask={white},classes=4"
    said = r"masks of the condition 'mask' hold 0 and 255 alone, and the network knows 4 classes"
    array = np.stack([np.asarray(Image.open(path)) for path in sorted(white.iterdir())])
    bare = open_dataset(place / "val", image_size=8)
    val = str(place / "val")
    more = {"add_data": (val,), "val_data": None}
    scored = {"metrics": "nll", "num": 2, "num_levels": 2, "device": "cpu", "progress": False}
    refused: list[Callable[[], Any]] = [
        lambda: trainer(place, "mask", "masks/val", val_data=None).prepare(),
        lambda: trainer(place, "mask", "masks/train", **usual).prepare(),
        lambda: trainer(
            place, "mask", "masks/train", val_data=bare.with_conditions({"mask": array})
        ).prepare(),
        lambda: trainer(
            place, "mask", "masks/train", **more, add_condition=(f"mask={white}",)
        ).prepare(),
        lambda: evaluate(
            place / "run", data=str(place / "val"), condition=f"mask={white}", **scored
        ),
        lambda: evaluate(place / "run", bare.with_conditions({"mask": array}), **scored),
    ]
    for way in refused:
        with pytest.raises(ConfigError, match=said):
            way()
    known = bare.with_conditions({"mask": array}, mask={"classes": 4})
    for options in ({"val_condition": (meant,)}, {"val_data": known}):
        made = trainer(place, "mask", "masks/train", **options, override=True)
        made.prepare()
        assert set(np.unique(values_of(made.held_out, "mask"))) == {0, 255}
    grown = trainer(place, "mask", "masks/train", **more, add_condition=(meant,), override=True)
    grown.prepare()
    assert set(np.unique(values_of(grown.dataset, "mask")[N:])) == {0, 255}
    assert evaluate(place / "run", data=val, condition=meant, **scored).scores
    assert evaluate(place / "run", known, **scored).scores


def test_open_sets_keep_their_own(place: Path) -> None:
    for own in (
        open_dataset(place / "val", image_size=8, conditions=f"age={place / 'val.csv'}:age"),
        open_dataset(place / "val", image_size=8).with_conditions(
            {"age": alone(place, "val", "age")}
        ),
    ):
        made = trainer(place, "age", "train.csv:age", val_data=own)
        made.prepare()
        np.testing.assert_array_equal(values_of(made.held_out, "age"), alone(place, "val", "age"))
    bare = open_dataset(place / "val", image_size=8)
    with pytest.raises(ConfigError, match=r"for 00\.png and for .*train/00\.png, which is another"):
        trainer(place, "age", "train.csv:age", val_data=bare).prepare()


def test_a_table_in_each_folder_is_its_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "val"):
        (place / f"{part}.csv").rename(place / part / "meta.csv")
    (place / "empty").mkdir()
    monkeypatch.chdir(place / "empty")
    made = tiny_trainer(
        place / "run",
        tiny_diffusion(conditions={"age": TABLES["age"]}),
        str(place / "train"),
        condition=("age=meta.csv:age",),
        val_data=str(place / "val"),
        val_every=2,
        num_workers=0,
    )
    made.prepare()
    assert not np.array_equal(values_of(made.dataset, "age"), values_of(made.held_out, "age"))


def test_the_same_picture_has_the_same_value(place: Path) -> None:
    """A held-out image that is trained on too is no other image."""
    for path in (place / "val").iterdir():
        path.write_bytes((place / "train" / path.name).read_bytes())
    made = trainer(place, "age", "train.csv:age")
    made.prepare()
    np.testing.assert_array_equal(values_of(made.held_out, "age"), values_of(made.dataset, "age"))


def test_what_cannot_be_meant_is_named(place: Path) -> None:
    words = (f"size={place / 'val.csv'}:age",)
    with pytest.raises(ConfigError, match=r"name in val_condition 'size'"):
        trainer(place, "age", "train.csv:age", val_condition=words).prepare()
    with pytest.raises(ConfigError, match=r"val_condition says where the conditions of val_data"):
        trainer(place, "age", "train.csv:age", val_condition=words, val_data=None)
    twice = (f"age={place / 'val.csv'}:age",) * 2
    with pytest.raises(ValueError, match="named twice"):
        trainer(place, "age", "train.csv:age", val_condition=twice).prepare()
    lost = (f"age={place / 'nowhere.csv'}:age",)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        trainer(place, "age", "train.csv:age", val_condition=lost).prepare()


def test_the_command_its_file_and_its_evaluation(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused in the words of the command line, trained, continued by config.yaml elsewhere, and
    scored; other images of the same names are not scored by values of these.
    """
    monkeypatch.chdir(place)
    words = ["train", "train", *TINY, "--condition", "age=train.csv:age", "--val-data", "val"]
    words += ["--output-dir", place / "run", "--no-class-conditional", "--sample-every", 0]
    said = error_of(capsys, *words)
    assert "--val-data: " in said
    assert "for val/00.png and for the training image 00.png, which is another image" in said
    assert "--val-condition age=FILE" in said
    said = error_of(capsys, *words[:-7], "--val-condition", "age=val.csv:age", *words[-5:])
    assert "--val-condition says where the conditions of --val-data are" in said
    assert ddpm(*words, "--val-condition", "age=val.csv:age") == 0
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    again = ["train", "--config", place / "run" / "config.yaml", "--max-steps", 5]
    assert ddpm(*again) == 0
    assert load_run(place / "run").step == 5
    scored = evaluate(place / "run", metrics="loss_gap", num=4)
    assert np.isfinite(scored.scores[0].value)
    images(place / "others", 3)
    with pytest.raises(ConfigError, match=r"of .*others/00\.png would be read from .*train\.csv"):
        evaluate(place / "run", metrics="nll", data=str(place / "others"), num=2)
    own = open_dataset(place / "val", image_size=8, conditions=f"age={place / 'val.csv'}:age")
    assert evaluate(place / "run", own, metrics="nll", num=2).scores


def test_additions_may_be_told_apart_by_their_folder(place: Path) -> None:
    images(place / "more", 5)
    lines = [f"more/{k:02d}.png,{100 + k}," for k in range(N)]
    table = place / "both.csv"
    table.write_text("\n".join([table.read_text(), *lines]))
    made = trainer(place, "age", "both.csv:age", add_data=(str(place / "more"),))
    made.prepare()
    found = values_of(made.dataset, "age")
    np.testing.assert_array_equal(found[:N], alone(place, "train", "age"))
    np.testing.assert_array_equal(found[N:], 100 + np.arange(N))


def test_names_of_two_folders_say_nothing() -> None:
    """Neither the first nor the last of them is meant."""
    written = ["train/a.png", "val/a.png", "val/b.png"]
    assert match_names(written, [b"a.png", b"b.png"]) == [-1, 2]
    assert match_names(written, [b"val/a.png", b"train/a.png"]) == [1, 0]
    above = list(names_from_above([b"a.png"], Path("/photos/val")))
    assert above == [[b"a.png"], [b"val/a.png"], [b"photos/val/a.png"]]
    assert list(names_from_above([b"a.png"], None)) == [[b"a.png"]]
