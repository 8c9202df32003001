"""The records of a run as values: whatever is missing, cut off or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddpm_lib.runs.records import read_records
from training_helpers import tiny_diffusion, tiny_trainer


def test_a_trained_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = {"max_steps": 4, "sample_every": 2, "sample_count": 2, "sample_steps": 2}
    tiny_trainer(run, tiny_diffusion(dim=4, dim_mults=(1,)), **options).train()
    records = read_records(run)
    assert records.run == run
    assert (records.status.word, records.status.step) == ("finished", 4)
    assert [row["step"] for row in records.rows] == [2, 4]
    assert records.rows[-1]["loss"] > 0
    assert records.option("max_steps") == 4
    assert records.option("nonsense", 7) == 7
    assert records.about["data"]["images"] == 40
    assert [(step, path.name) for step, path in records.grids] == [
        (2, "step-000000002.png"),
        (4, "step-000000004.png"),
    ]
    assert records.evaluations == ()


def test_the_row_that_was_written_last_wins_and_damage_is_left_out(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 9.0},
        {"step": 2, "loss": 1.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + 'no row\n{"step": "4"}\n{"step": 5, "lo')
    rows = read_records(tmp_path).rows
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 3.0), (2, 1.5), (3, 9.0)]


def test_evaluations_in_their_order_with_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations"
    folder.mkdir()
    for k in (2, 1, 3):
        (folder / f"eval-{k:04d}.json").write_text(json.dumps({"scores": [], "k": k}))
    (folder / "eval-0004.json").write_text("{")
    (folder / "eval-0005.json").write_text("[]")
    (folder / "notes.json").write_text("{}")
    (folder / "eval-0006.json").mkdir()
    found = read_records(tmp_path).evaluations
    assert [(one["k"], one["file"]) for one in found] == [
        (1, "eval-0001.json"),
        (2, "eval-0002.json"),
        (3, "eval-0003.json"),
    ]


def test_grids_in_the_order_of_their_steps(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for name in ("step-1000000000.png", "step-000000020.png", "step-x.png", "image-1.png"):
        (folder / name).write_bytes(b"")
    assert [step for step, _ in read_records(tmp_path).grids] == [20, 1_000_000_000]


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "config.yaml", "about.json", "status.json", "samples", "evaluations"]
)
@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"{" * 1500, b"- 1\n", None])
def test_damage_of_every_file(tmp_path: Path, name: str, damage: bytes | None) -> None:
    if damage is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(damage)
    records = read_records(tmp_path)
    assert (records.rows, records.config, records.evaluations, records.grids) == ((), {}, (), ())
    assert not records.about.get("data")


def test_no_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_records(tmp_path / "nowhere")
