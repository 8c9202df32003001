"""Runs found in folders, and what is said of all of them: `ddpm status`, and `ddpm` alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from ddpm_lib.cli import main
from ddpm_lib.cli.status import overview, values_of
from ddpm_lib.cli.text_tables import Column, table
from ddpm_lib.runs import finding
from ddpm_lib.runs.finding import FoundRun, find_runs
from ddpm_lib.runs.lock import RunLock
from ddpm_lib.runs.metrics_file import write_status
from ddpm_lib.runs.run_status import run_status


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


ROWS = [
    {"step": 20, "loss": 0.25, "images": 80, "images_per_second": 8.0},
    {"step": 21, "val_loss": 0.5, "val_loss_error": 0.012, "images": 84},
]


def test_the_newest_value_of_each_name_counts(tmp_path: Path) -> None:
    """A row of a validation has no loss, one of the loss no validation."""
    run = made(tmp_path / "runs" / "a")
    write_status(run, status="running", step=0, max_steps=121, reason="")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"st')
    before = time.time() - 10
    os.utime(run / "metrics.jsonl", (before, before))
    lock = RunLock(run)
    lock.acquire()
    try:
        now = run_status(run)
        assert (now.word, now.step) == ("running", 21)
        assert now.row == ROWS[1]
        assert now.latest == {**ROWS[0], **ROWS[1]}
        assert now.seconds_left() == pytest.approx(100 * 4 / 8 - 10, abs=1)
        table = overview([FoundRun(run)], None)
        assert table[1].split()[1:5] == ["running", "21", "of", "121"]
        assert table[1].split()[5:10] == ["0.25", "0.5", "±", "0.01", "8"]
        values = values_of(run)
        assert (values["loss"], values["val_loss"], values["images_per_second"]) == (0.25, 0.5, 8)
        os.utime(run / "metrics.jsonl", (0, 0))
        assert "silent" in overview([FoundRun(run)], None)[1], "it hangs, or its node does"
    finally:
        lock.release()


def test_runs_are_found_below_and_not_everywhere(tmp_path: Path) -> None:
    for name in ("runs/b", "runs/deep/er/c", "work/runs/a", ".hidden/runs/x", "runs/a/samples/y"):
        write_status(made(tmp_path / name), status="stopped", step=1, max_steps=2, reason="")
    write_status(tmp_path / "runs" / "a", status="stopped", step=1, max_steps=2, reason="")
    for name, records in (("mine", ("metrics.jsonl", "config.yaml")), ("theirs", (".lock",))):
        for record in records:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / record).touch()
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    found = [str(run.path.relative_to(tmp_path)) for run in find_runs(tmp_path)]
    assert found == ["mine", "runs/a", "runs/b", "runs/deep/er/c", "work/runs/a"]
    assert [run.path for run in find_runs(tmp_path, known=True)][-2:] == [
        tmp_path / "theirs",
        tmp_path / "work" / "runs" / "a",
    ]


def test_a_folder_of_many_files_is_no_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders beyond the bound are not entered, whatever lies in them."""
    monkeypatch.setattr(finding, "_MOST_FOLDERS", 5)
    looked: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(finding.os, "scandir", lambda path: looked.append(path) or scandir(path))
    for k in range(40):
        (tmp_path / str(k) / "inner").mkdir(parents=True)
    assert find_runs(tmp_path) == []
    assert len(looked) == 5


def test_cells_of_an_ablation_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for cell in ("eps", "x0"):
        for seed in (0, 9, 10):
            run = made(Path("runs/ablation-toy/runs", cell, f"seed-{seed}"))
            (run / "cell.json").touch()
            word = "finished" if seed else "stopped"
            write_status(run, status=word, step=1, max_steps=1, reason="")
    found = find_runs(Path())
    assert [run.path.name for run in found[:3]] == ["seed-0", "seed-9", "seed-10"]
    lock = RunLock(found[1].path)
    lock.acquire()
    lines = [line.split() for line in overview(found, None)[1:]]
    lock.release()
    assert lines == [
        [str(found[1].path), "running", "1", "of", "1", "none"],
        ["runs/ablation-toy", "(2", "cells)", "stopped"],
        ["runs/ablation-toy", "(3", "cells)", "finished"],
    ]


def test_a_table_fits_the_terminal() -> None:
    columns = [Column("run"), Column("state", rank=1), Column("step", right=True, rank=2)]
    rows = [("runs/a/very/long/name-1", "running", "1"), ("b", "none", "22")]
    assert table(columns, rows) == [
        "run                      state    step",
        "runs/a/very/long/name-1  running     1",
        "b                        none       22",
    ]
    assert table(columns, rows, 36)[1] == "runs/a/very/long/name-1  running"
    assert table(columns, rows, 20) == ["run", "…/a/very/long/name-1", "b"]
    for width in range(12, 60):
        assert all(len(line) <= width for line in table(columns, rows, width))
    assert table(columns, [("a", "", "1")]) == ["run  step", "a       1"], "empty columns go"


def test_alone_it_shows_three_commands_and_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert len(alone.splitlines()) <= 12
    assert "ddpm train\n" not in alone
    for k in range(9):
        run = made(tmp_path / "runs" / f"run {k}")
        write_status(run, status="stopped", step=k, max_steps=9, reason="")
        (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
        os.utime(run / "metrics.jsonl", (k, k))
    (tmp_path / "runs" / "run 3" / "checkpoints" / "step-000000007").mkdir(parents=True)
    assert main([]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) <= 20
    assert "ddpm watch 'runs/run 8'" in told
    assert "ddpm sample 'runs/run 3' --num 64" in told
    assert "and 3 more: ddpm status" in told
