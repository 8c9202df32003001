"""`evaluate(run, data=OTHER)` reads the conditions of OTHER from where they are said to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command_line import ddpm, error_of
from ddpm_lib import load_run, open_dataset
from ddpm_lib.evaluation import evaluate
from ddpm_lib.evaluation.run_images import RunImages
from ddpm_lib.metrics import condition_readers
from ddpm_lib.training import ConfigError
from held_out_parts import SOURCES, N, images, parts, trainer, values_of
from training_helpers import tiny_diffusion, tiny_trainer


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return parts(tmp_path)


@pytest.fixture
def scored(place: Path) -> Path:
    """Further pictures of the names of the training images, and what comes with each."""
    of = np.random.default_rng(11)
    images(place / "others", 3)
    for kind, high in (("masks", 3), ("sketches", 256)):
        (place / kind / "others").mkdir()
        for k in range(N):
            pixels = of.integers(0, high, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(place / kind / "others" / f"{k:02d}.png")
    np.save(place / "others.npy", of.normal(size=(N, 3)))
    rows = [f"{k:02d}.png,{20 + k},{'b' * (k + 1)}" for k in range(N)]
    (place / "others.csv").write_text("\n".join(["file_name,age,text", *rows]))
    return place


OTHERS = {
    "age": "others.csv:age",
    "mask": "masks/others",
    "sketch": "sketches/others",
    "text": "others.csv:text",
    "spot": "others.npy",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_images_are_scored_by_conditions_of_their_own(scored: Path, name: str) -> None:
    """As a path and as an open set, by the values that are named, read as the network has them."""
    made = trainer(scored, name, SOURCES[name][0], val_data=None, val_every=0)
    made.train()
    run, others = scored / "run", str(scored / "others")
    how: Any = {"metrics": "nll", "num_levels": 2, "progress": False}
    with pytest.raises(ConfigError) as caught:
        evaluate(run, data=others, **how)
    assert f'condition=("{name}=FILE",)' in str(caught.value)
    words = f"{name}={scored / OTHERS[name]}"
    told = evaluate(run, data=others, condition=words, **how)
    own = RunImages(load_run(run), words=(words,)).other(others, None, None)
    more = {"sketch": ",channels=1,kind=image", "text": ",encoder=lengths"}.get(name, "")
    alone = open_dataset(others, image_size=8, conditions=words + more)
    np.testing.assert_array_equal(values_of(own, name), values_of(alone, name))
    again = evaluate(run, open_dataset(others, image_size=8), condition=words, **how)
    assert again.scores[0].value == told.scores[0].value
    given = evaluate(run, alone, **how)
    assert given.scores[0].value == pytest.approx(told.scores[0].value, rel=1e-6)
    # A set that has conditions takes the named ones in their place.
    first = open_dataset(others, image_size=8, conditions=f"{name}={scored / SOURCES[name][0]}")
    assert evaluate(run, first, condition=words, **how).scores[0].value == told.scores[0].value
    assert evaluate(run, first, **how).scores[0].value != told.scores[0].value


def test_a_pretrained_folder_reads_conditions_as_its_network_has_them(scored: Path) -> None:
    made = trainer(scored, "mask", SOURCES["mask"][0], val_data=None, val_every=0)
    made.train()
    load_run(scored / "run").diffusion.save_pretrained(scored / "folder")
    how: Any = {"metrics": "nll", "num_levels": 2, "progress": False}
    how["data"] = str(scored / "others")
    with pytest.raises(ConfigError, match="which the data lack"):
        evaluate(scored / "folder", **how)
    words = (f"mask={scored / 'masks' / 'others'}",)
    assert np.isfinite(evaluate(scored / "folder", condition=words, **how).scores[0].value)


def test_adherence_is_that_to_the_conditions_of_the_other_images(
    scored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(condition_readers.Reader.__init__, "__defaults__", (0, 5))
    trainer(scored, "age", "train.csv:age", val_data=None, val_every=0).train()
    monkeypatch.chdir(scored)
    (scored / "far.csv").write_text((scored / "others.csv").read_text().replace("g,", "g,9"))
    errors = {}
    for table in ("others.csv", "far.csv"):
        found = evaluate(
            "run",
            metrics="adherence",
            data="others",
            condition=f"age={table}:age",
            sample_steps=2,
            sampler="ddim",
            progress=False,
        )
        errors[table] = {score.name: score.value for score in found.scores}
    # The same images, and readings a hundred times as far away as the ages asked for.
    near, far = (errors[table]["adherence_age/real"] for table in ("others.csv", "far.csv"))
    assert far > near + 500
    words = ["evaluate", "run", "--metrics", "adherence", "--data", "others", "--sample-steps", 2]
    words += ["--condition", "age=others.csv:age", "--device", "cpu", "--no-progress"]
    assert ddpm(*words) == 0
    assert "adherence_age" in capsys.readouterr().out


BAD_SOURCES = [
    ("age", "age=others.csv:year", "Unknown column 'year'"),
    ("age", "age=nowhere.csv:age", "nowhere.csv"),
    ("age", "size=others.csv:age", "Unknown name in {option} 'size'"),
    ("age", "age=few.csv:age", "no value (missing or NaN) for 2 of 12 images"),
    ("age", "age=others.csv:text,kind=label", "is of the kind label"),
    ("age", "age", "is written NAME=SOURCE[:COLUMN]"),
    ("mask", "mask=few", "has no picture for 11 of 12 images"),
    ("mask", "mask=wide", "16×8 pixels, its image has 8×8"),
    ("mask", "mask=high", "of the data has 10 classes; the network knows 4"),
    ("sketch", "sketch=wide", "16×8 pixels, its image has 8×8"),
    ("spot", "spot=few.npy", "few.npy has 3 entries for 12 images"),
    ("spot", "spot=long.npy", "has size 5; the network was built for 3"),
    ("text", "text=others.csv:year", "Unknown column 'year'"),
]


@pytest.mark.parametrize(("name", "words", "message"), BAD_SOURCES)
def test_bad_sources_of_other_images_are_named(
    scored: Path,
    name: str,
    words: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder, size, value, names in (
        ("few", (8, 8), 0, ["00"]),
        ("wide", (16, 8), 0, [f"{k:02d}" for k in range(N)]),
        ("high", (8, 8), 9, [f"{k:02d}" for k in range(N)]),
    ):
        (scored / folder).mkdir()
        for stem in names:
            Image.new("L", size, value).save(scored / folder / f"{stem}.png")
    lines = (scored / "others.csv").read_text().splitlines()
    (scored / "few.csv").write_text("\n".join(lines[:-2]))
    np.save(scored / "few.npy", np.zeros((3, 3)))
    np.save(scored / "long.npy", np.zeros((N, 5)))
    trainer(scored, name, SOURCES[name][0], val_data=None, val_every=0).train()
    monkeypatch.chdir(scored)
    with pytest.raises((ValueError, OSError)) as caught:
        evaluate("run", metrics="nll", num_levels=2, data="others", condition=words)
    assert message.format(option="condition") in str(caught.value)
    words_of = ["evaluate", "run", "--metrics", "nll", "--data", "others", "--device", "cpu"]
    said = error_of(capsys, *words_of, "--condition", words)
    assert message.format(option="--condition") in said


def test_sources_of_conditions_are_for_other_images_of_runs_that_take_them(scored: Path) -> None:
    trainer(scored, "age", "train.csv:age", val_data=None, val_every=0).train()
    words = f"age={scored / 'others.csv'}:age"
    with pytest.raises(ConfigError, match='data="train" are the run\'s own'):
        evaluate(scored / "run", metrics="nll", data="train", condition=words)
    with pytest.raises(ConfigError, match=r"condition .*is for a run"):
        evaluate(scored / "others", metrics="values", condition=words)
    tiny_trainer(scored / "plain", tiny_diffusion(), str(scored / "train"), val_every=0).train()
    with pytest.raises(ConfigError, match="trained without conditions of the data"):
        evaluate(scored / "plain", metrics="nll", data=str(scored / "others"), condition=words)
    with pytest.raises(ConfigError, match="named twice"):
        evaluate(
            scored / "run", metrics="nll", data=str(scored / "others"), condition=(words, words)
        )


def test_tune_takes_the_same_words(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(scored, "age", "train.csv:age", val_data=None, val_every=0).train()
    words = ["tune", scored / "run", "--data", scored / "others", "--device", "cpu"]
    assert "--condition age=FILE" in error_of(capsys, *words)
    said = error_of(capsys, *words, "--condition", "age=others.csv:age,kind=label")
    assert "there is neither 'others.csv'" in said
    said = error_of(capsys, *words[:2], "--condition", f"age={scored / 'others.csv'}:age")
    assert "are the run's own" in said
