"""The page while a run trains: it changes nothing of the run, costs little, and survives a full
disk.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import Shapes
from ddpm_lib.data import ImageDataset, open_dataset
from ddpm_lib.runs.report.sheets import read_sheet
from ddpm_lib.training import Callback
from ddpm_lib.training.callbacks import run_report
from ddpm_lib.training.callbacks.run_report import Budget
from ddpm_lib.training.sheets_of_images import NearestImages, write_data_sheet
from training_helpers import assert_same_tensors, curve, final_tensors, tiny_trainer

LIVELY = {
    "val_every": 2,
    "sample_every": 3,
    "sample_steps": 2,
    "sample_count": 4,
    "val_fraction": 0.2,
}


def page_of(run: Path) -> Any:
    text = (run / "report.html").read_text(encoding="utf-8")
    inner = text.split('<script type="application/json" id="run-data">')[1]
    return json.loads(inner.split("</script>")[0])


def test_a_run_is_the_same_with_and_without_its_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, report in (("with", True), ("without", False)):
        tiny_trainer(tmp_path / name, report=report, **LIVELY).train()
    assert_same_tensors(final_tensors(tmp_path / "with"), final_tensors(tmp_path / "without"))
    assert curve(tmp_path / "with") == curve(tmp_path / "without")
    assert "could not be written" not in caplog.text
    made = {path.name for path in (tmp_path / "with").rglob("*") if path.is_file()}
    made -= {path.name for path in (tmp_path / "without").rglob("*") if path.is_file()}
    assert {"report.html", "data.png", "data.json", "nearest.png", "nearest.json"} <= made
    page = page_of(tmp_path / "with")
    assert page["status"]["word"] == "finished"
    assert not page["live"]
    loss = next(chart for chart in page["charts"] if chart["name"] == "loss")
    assert [one["x"][-1] for one in loss["curves"]] == [6] * len(loss["curves"])
    assert json.loads((tmp_path / "with" / "report" / "nearest.json").read_text())["step"] == 6


def test_the_page_lives_while_the_run_does(tmp_path: Path) -> None:
    seen = []

    class Look(Callback):
        def on_step_end(self, trainer: Any) -> None:
            if (trainer.output_dir / "report.html").is_file():
                page = page_of(trainer.output_dir)
                steps = page["charts"][0]["curves"][0]["x"][-1] if page["charts"] else 0
                seen.append((trainer.step, page["live"], steps))

    tiny_trainer(tmp_path / "run", callbacks=[Look()], **LIVELY).train()
    assert seen[0] == (3, True, 2)  # what step 2 logged stands in the files after it
    assert all(live for _, live, _ in seen)
    assert not page_of(tmp_path / "run")["live"]


def test_a_failed_run_says_so_on_its_page(tmp_path: Path) -> None:
    class Fail(Callback):
        def on_step_end(self, trainer: Any) -> None:
            if trainer.step == 5:
                raise RuntimeError("<b>broken</b>")

    with pytest.raises(RuntimeError, match="broken"):
        tiny_trainer(tmp_path / "run", callbacks=[Fail()], **LIVELY).train()
    assert page_of(tmp_path / "run")["status"]["word"] == "failed"
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;broken&lt;/b&gt;" in text
    assert "<b>broken" not in text


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EACCES, errno.EBUSY])
def test_what_cannot_be_written_is_a_warning(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk, no permission, a file that a browser holds (Windows)."""
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if (
            Path(target).name in ("report.html", "results.png")
            or Path(target).parent.name == "report"
        ):
            raise OSError(kind, os.strerror(kind))
        replace(source, target)

    tiny_trainer(tmp_path / "plain", report=False, **LIVELY).train()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "ddpm_lib"):
        patch.setattr(os, "replace", refuse)
        patch.setattr(run_report, "FEWEST_ROWS", 1)
        tiny_trainer(tmp_path / "run", **LIVELY).train()
    for name in ("report.html", "results.png", "data.png", "nearest.png"):
        assert f"{name} could not be written" in caplog.text
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert_same_tensors(final_tensors(tmp_path / "plain"), final_tensors(tmp_path / "run"))


def test_an_error_in_the_page_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: Any, **more: Any) -> None:
        raise ZeroDivisionError("of the page")

    monkeypatch.setattr(run_report, "write_report", fail)
    assert tiny_trainer(tmp_path / "run", **LIVELY).train().status == "finished"
    assert "report.html could not be written (of the page). Training goes on." in caplog.text


def test_a_budget_lets_its_share_of_the_time_be_spent() -> None:
    now, spent = [0.0], 0.0
    budget = Budget(0.01, clock=lambda: now[0])
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        now[0] += 0.1
        if budget.allows():
            cost = float(rng.uniform(0.01, 0.2))
            before = now[0]
            budget.spend(lambda cost=cost: now.__setitem__(0, now[0] + cost))
            spent += now[0] - before
    assert 0.008 < spent / now[0] <= 0.01 + 0.2 / now[0]


def test_the_data_sheet_shows_images_of_every_class(tmp_path: Path) -> None:
    data = open_dataset(Shapes(size=8, n=60), image_size=8)
    write_data_sheet(data, tmp_path)
    sheet = read_sheet(tmp_path, "data")
    assert sheet is not None
    assert [row["label"] for row in sheet.rows] == list(data.class_names or ())
    labels = data.labels
    assert labels is not None
    for k, row in enumerate(sheet.rows):
        of_class = {
            data[i]["image"].permute(1, 2, 0).numpy().tobytes()
            for i in torch.nonzero(labels == k)[:, 0].tolist()
        }
        for column in range(row["images"]):
            assert np.asarray(sheet.cut(k, column)).tobytes() in of_class


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 300), (4, 8)])
def test_sheets_of_pictures_without_classes(channels: int, side: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (5, channels, side, side + 4), dtype=torch.uint8)
    data = open_dataset(images, image_size=(side, side + 4), channels=channels)
    write_data_sheet(data, tmp_path)
    NearestImages(data, None).write(images[:2], 7, tmp_path)
    for name, columns in (("data", 5), ("nearest", 2)):
        sheet = read_sheet(tmp_path, name)
        assert sheet is not None
        assert sheet.columns == columns
        assert max(sheet.tile) <= 128


def test_the_nearest_images_are_the_nearest(tmp_path: Path) -> None:
    data: ImageDataset = open_dataset(Shapes(size=8, n=60), image_size=8)
    train, held = data.split(0.25)
    samples = torch.stack([train[5]["image"], held[2]["image"], 255 - train[0]["image"]])
    NearestImages(train, held).write(samples, 40, tmp_path)
    sheet = read_sheet(tmp_path, "nearest")
    assert sheet is not None
    first, second, third = sheet.rows
    assert first["train_distance"] == pytest.approx(0, abs=1e-6)
    assert first["copy"]
    assert first["train_name"] == train.names[5]
    assert second["held_out_distance"] == pytest.approx(0, abs=1e-6)
    assert second["held_out_name"] == held.names[2]
    every = torch.stack([train[i]["image"] for i in range(len(train))]).double() / 255
    apart = (every - samples[2].double() / 255).square().flatten(1).mean(1).sqrt()
    assert third["train_distance"] == pytest.approx(float(apart.min()), abs=1e-7)
    assert third["train_name"] == train.names[int(apart.argmin())]
    assert third["ratio"] == pytest.approx(
        float(apart.min() / apart.topk(2, largest=False).values[1])
    )
    assert Image.open(tmp_path / "report" / "nearest.png").mode == "RGB"
    assert sheet.about["train"] == [len(train)] * 2
