"""`ddpm status`: what it says of every way in which a run can stand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_lib.cli import main
from ddpm_lib.training import DivergedError
from training_helpers import StopAt, tiny_diffusion, tiny_trainer


def said(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    capsys.readouterr()
    assert main(["status", *map(str, args)]) == 0
    return capsys.readouterr().out


def test_every_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert said(capsys, run, "--word") == "none\n"
    small = tiny_diffusion(dim=4, dim_mults=(1,))
    tiny_trainer(run, small, callbacks=[StopAt(2)]).train()
    assert said(capsys, run, "--word") == "stopped\n"
    text = said(capsys, run)
    for part in (
        "stopped: ",
        "step        2 of 6",
        "reason      the test said so",
        "step-000000002",
        "the same command",
    ):
        assert part in text
    (run / "status.json").write_text(json.dumps({"status": "running", "step": 2, "max_steps": 6, "reason": ""}))
    assert said(capsys, run, "--word") == "killed\n"
    tiny_trainer(run, small).train()
    assert json.loads(said(capsys, run, "--json"))["status"] == "finished"
    assert "continues" not in said(capsys, run)
    (run / "status.json").write_text("{")
    assert "status.json cannot be read" in said(capsys, run)
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist. Give a run directory" in capsys.readouterr().err


def test_failed_and_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked by another process, as always in practice: a process never sees its own lock."""

    class Ask(StopAt):
        def on_step_end(self, trainer):
            if trainer.step == 2:
                code = "import sys; from ddpm_lib.cli import main; sys.exit(main(['status', sys.argv[1]]))"
                self.answer = subprocess.run(
                    [sys.executable, "-c", code, str(tmp_path)],
                    capture_output=True, text=True, timeout=60,
                ).stdout  # fmt: skip
                raise DivergedError("all is lost")

    ask = Ask(0)
    with pytest.raises(DivergedError):
        tiny_trainer(tmp_path, tiny_diffusion(dim=4, dim_mults=(1,)), callbacks=[ask]).train()
    assert ask.answer.startswith("running: ")
    assert "held by     process " in ask.answer
    assert said(capsys, tmp_path, "--word") == "failed\n"
    assert "reason      DivergedError: all is lost" in said(capsys, tmp_path)


def test_status_is_light() -> None:
    code = "import sys, ddpm_lib.cli.status; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
