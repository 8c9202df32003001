"""docs/quality.md: its tables are those of the stored measurements."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from locations import ROOT


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("quality")
    sys.modules.pop("common", None)


def test_the_tables_are_those_of_the_stored_measurements(quality: Any) -> None:
    found = json.loads(quality.RESULTS.read_text("utf-8"))
    text = quality.PAGE.read_text("utf-8")
    for mark, words in quality.parts(found).items():
        assert quality.printed(mark).findall(text) == [words]


def test_every_picture_shows_a_length_that_was_measured(quality: Any) -> None:
    found = json.loads(quality.RESULTS.read_text("utf-8"))
    for name in list(quality.SETS)[:4]:
        lengths = {
            run["minutes"]
            for run in found
            if (run["set"], run["arm"], run["seed"]) == (name, "default", 0)
        } & set(quality.MARKS)
        picture = Image.open(quality.FIGURES / f"quality-{name}.png")
        rows = 1 + 2 * len(lengths)
        assert picture.size == (16 * 32, rows * 32 + 4 * len(lengths))


def test_a_set_is_written_and_drawn(quality: Any, tmp_path: Path) -> None:
    from quality_sets import Sources, prepare, shapes

    shapes(20)(tmp_path / "sets" / "few", Sources())
    images = quality._pixels(tmp_path / "sets" / "few" / "train")
    assert images.shape == (20, 3, 32, 32)
    quality.picture(images.repeat(4, 1, 1, 1), tmp_path / "grids" / "few-default-1-0.png")
    quality.strip("few", [1.0], tmp_path, tmp_path / "strip.png")
    assert Image.open(tmp_path / "strip.png").size == (512, 3 * 32 + 4)
    assert prepare("cifar", tmp_path / "sets", Sources()) is None, "its images are not here"


def test_what_a_training_cost_is_learnt(quality: Any, tmp_path: Path) -> None:
    train = tmp_path / "sets" / "few" / "train"
    (tmp_path / "costs").mkdir()
    (tmp_path / "costs" / "default.json").write_text("[5.0, 0.1]")
    assert quality.cost("default", train, tmp_path) == (5.0, 0.1)
    quality.learn_cost("default", train, tmp_path, None, 100, 25.0)
    assert quality.cost("default", train, tmp_path) == (5.0, pytest.approx(0.15))
