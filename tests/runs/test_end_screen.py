"""The end screen: sections, scores with references, files that are there, commands to copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ddpm_lib.runs.end_screen import (
    BESIDE,
    WIDTH,
    end_screen,
    file_lines,
    next_lines,
    score_lines,
    section,
)
from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.run_status import RunStatus
from ddpm_lib.runs.verdict import Proposal


def evaluation(step: int = 4, **more: Any) -> dict[str, Any]:
    scores = [
        {"name": "kd_random64_train_24", "value": 0.0241, "standard_error": 0.008, "unit": "MMD²"},
        {"name": "kd_random64_train_24/noise", "value": 0.74, "unit": "MMD², of noise"},
        {"name": "loss_train_9", "value": 0.1, "unit": "training loss"},
        {"name": "nll", "value": 375.0, "unit": "bits/dim", "remark": "worse than uniform noise"},
    ]
    rows = {"kd_random64_train_24": {"held-out": {"value": 0.003}, "noise": {"value": 0.74}}}
    return {
        "step": step,
        "scores": scores,
        "references": rows,
        "samples": {"n": 24},
        "file": "eval-0001.json",
        **more,
    }


def records(*evaluations: dict[str, Any], step: int = 4) -> RunRecords:
    status = RunStatus("finished", step=step, checkpoint="step-000000004")
    return RunRecords(run=Path("runs/x"), status=status, evaluations=evaluations)


def test_scores_have_error_unit_references_and_remarks() -> None:
    kernel, bits, last = score_lines(records(evaluation()))
    assert kernel.split("  ", 1)[0] == "kd_random64_train_24"
    assert "0.0241 ± 0.008 MMD²" in kernel
    assert kernel.endswith("(held-out 0.003, noise 0.74)")
    assert bits.endswith(["375 bits/dim", "", "", " ! worse than uniform noise"][-1])
    assert last == "of 24 samples, evaluations/eval-0001.json has all"


def test_only_scores_of_the_last_step_count() -> None:
    old, new = evaluation(2), evaluation(4, file="eval-0002.json")
    assert "eval-0002.json" in score_lines(records(old, new))[-1]
    assert score_lines(records(old)) == ["not scored yet"]


@pytest.mark.parametrize("damage", [{"scores": None}, {"references": []}, {"samples": None}, {}])
def test_damaged_evaluations_are_read_as_far_as_they_go(damage: dict[str, Any]) -> None:
    score_lines(records(evaluation(**damage)))


def test_sections_wrap_sentences_and_leave_commands_whole() -> None:
    sentence, command = "word " * 40, "why" + "  ddpm " + "x" * 120
    told = section("NEXT", [sentence, command]).splitlines()
    assert told[0].startswith("NEXT     word")
    assert all(len(line) <= WIDTH for line in told[:-1])
    assert told[-1].endswith("x" * 120)
    assert section("SCORE", []) == ""


def test_commands_end_their_line_with_their_minutes_before_them() -> None:
    long = "a reason that says so much that it needs a line of its own"
    lines = next_lines(
        [
            Proposal("train longer", "ddpm train --config a --max-steps 8", 3.4),
            Proposal("more samples", "ddpm sample a"),
            Proposal(long, "ddpm train b", 200.0),
        ]
    )
    assert len(long) > BESIDE
    assert lines == [
        "train longer (about 3 min)  ddpm train --config a --max-steps 8",
        "more samples                ddpm sample a",
        f"{long} (about 3.3 h)",
        "  ddpm train b",
    ]


def test_files_are_those_that_are_there(tmp_path: Path) -> None:
    for name in ("report.html", "metrics.csv", "train.log"):
        (tmp_path / name).touch()
    (tmp_path / "samples").mkdir()
    told = [line.split("  ")[0] for line in file_lines(tmp_path)]
    assert told == [str(tmp_path / name) for name in ("report.html", "samples", "metrics.csv")]


def test_a_run_of_files_alone_has_a_screen(tmp_path: Path) -> None:
    rows = [{"step": k, "loss": 1.0 / k, "images": 4 * k} for k in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = end_screen(tmp_path)
    assert told.startswith("VERDICT")
    assert "FILES" not in told
