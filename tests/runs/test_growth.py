"""Where a run that has grown says so: state, status, page, comparison of evaluations, card."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ddpm_lib.cli import main
from ddpm_lib.runs.growth import Growth, events_in, growth_of_run
from ddpm_lib.runs.report import write_report
from training_helpers import StopAt, tiny_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that grew at step 2 by ten images and at step 4 by six."""
    where = tmp_path_factory.mktemp("grown")
    for name, n in (("base", 20), ("more", 10), ("third", 6)):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        np.save(where / f"{name}.npy", pixels)
    base, more, third = (str(where / f"{name}.npy") for name in ("base", "more", "third"))
    for stop, added in ((2, ()), (4, (more,)), (6, (more, third))):
        tiny_trainer(
            where / "run",
            data=base,
            add_data=added,
            callbacks=[StopAt(stop)],
            max_steps=6,
            val_every=2,
            val_fraction=0.2,
            num_workers=0,
        ).train()
    return where / "run"


def test_events_are_read_from_the_newest_checkpoint(run: Path) -> None:
    first, second = growth_of_run(run)
    assert (first.step, first.images_before, first.images) == (2, 16, 26)
    assert (second.step, second.images_before, second.images) == (4, 26, 32)
    assert second.added == (str(run.parent / "third.npy"),)
    assert str(first) == "from 16 to 26 images at step 2"
    assert events_in([first.to_json(), second.to_json()]) == (first, second)
    assert growth_of_run(run.parent / "none") == ()


@pytest.mark.parametrize("values", [None, 3, [7], [{}], [{"step": "2"}], [{"step": 1.5}], {"a": 1}])
def test_what_is_not_legible_is_left_out(values: object) -> None:
    assert events_in(values) == ()


def test_status_shows_events(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"grown +from 16 to 26 images at step 2: .*more\.npy", shown)
    assert re.search(r"grown +from 26 to 32 images at step 4: .*third\.npy", shown)
    assert main(["status", str(run), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert events_in(said["grown"]) == growth_of_run(run)


def test_the_page_shows_and_marks_events(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert re.search(r"<dt>grown</dt><dd>from 16 to 26 images at step 2: [^<]*more\.npy; ", page)
    assert {"label": "26 images", "x": 2} in _marks(page)
    assert {"label": "32 images", "x": 4} in _marks(page)


def _marks(page: str) -> list[object]:
    found = re.search(r'id="run-data"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert found is not None
    charts = json.loads(found[1])["charts"]
    return next(one["marks"] for one in charts if one["name"] == "loss")


def test_compare_says_that_a_run_has_grown(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["--metrics", "nll", "--device", "cpu"]
    assert main(["evaluate", str(run), *ask]) == 0
    capsys.readouterr()
    assert main(["compare", str(run), "--output", str(tmp_path / "c.json")]) == 0
    shown = capsys.readouterr().out
    assert "Note: A has grown from 16 to 26 images at step 2: " in shown
    assert "Note: A has grown from 26 to 32 images at step 4: " in shown
    column = json.loads((tmp_path / "c.json").read_text())["columns"][0]
    assert tuple(Growth(**{**one, "added": tuple(one["added"])}) for one in column["grown"]) == (
        growth_of_run(run)
    )
