"""`ddpm status`: what it says of every way in which a run can stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_lib.cli import main
from ddpm_lib.runs.metrics_file import write_status
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
    (run / "status.json").write_text(
        json.dumps({"status": "running", "step": 2, "max_steps": 6, "reason": ""})
    )
    assert said(capsys, run, "--word") == "killed\n"
    tiny_trainer(run, small).train()
    assert json.loads(said(capsys, run, "--json"))["status"] == "finished"
    assert "continues" not in said(capsys, run)
    (run / "status.json").write_text("{")
    assert "status.json cannot be read" in said(capsys, run)
    assert said(capsys, run, "--word") == "killed\n", "there are checkpoints: it is to be continued"
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist. Give a run directory" in capsys.readouterr().err


def test_failed_and_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked by another process, as always in practice."""

    class Ask(StopAt):
        def on_step_end(self, trainer):
            if trainer.step == 3:
                code = (
                    "import sys; from ddpm_lib.cli import main; sys.exit(main(['status',"
                    " sys.argv[1]]))"
                )
                self.answer = subprocess.run(
                    [sys.executable, "-c", code, str(tmp_path)],
                    capture_output=True,
                    text=True,
                    timeout=60,
                ).stdout
                raise DivergedError("all is lost")

    ask = Ask(0)
    with pytest.raises(DivergedError):
        tiny_trainer(tmp_path, tiny_diffusion(dim=4, dim_mults=(1,)), callbacks=[ask]).train()
    assert ask.answer.startswith("running: ")
    assert "step        2 of 6" in ask.answer
    assert re.search(
        r"loss        0\.\d+\n  speed       [\d,.]+ images/s\n  left        \d+ s\n", ask.answer
    )
    assert "held by     process " in ask.answer
    assert said(capsys, tmp_path, "--word") == "failed\n"
    assert "reason      DivergedError: all is lost" in said(capsys, tmp_path)


STRANGE = [
    b"",
    b"[1]",
    b"\xff",
    b'{"status": 3}',
    b'{"status": "rm -rf"}',
    b'{"status": "none"}',
    b"[" * 10**5,
    b"null",
]


@pytest.mark.parametrize("raw", STRANGE, ids=lambda raw: repr(raw[:12]))
@pytest.mark.parametrize("trained", [True, False])
def test_a_status_file_that_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], raw: bytes, trained: bool
) -> None:
    (tmp_path / "status.json").write_bytes(raw)
    if trained:
        (tmp_path / "checkpoints" / "step-000000007").mkdir(parents=True)
    assert said(capsys, tmp_path, "--word") == ("killed\n" if trained else "none\n")
    assert "reason " in said(capsys, tmp_path) or raw == b'{"status": "none"}'
    assert ("step-000000007" in said(capsys, tmp_path)) == trained
    assert json.loads(said(capsys, tmp_path, "--json"))["status"] == (
        "killed" if trained else "none"
    )


def test_values_of_the_wrong_kind_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for values in (
        {"step": "3", "max_steps": None, "reason": 7, "save_every": []},
        {"step": -1, "max_steps": True, "reason": ["x"]},
        {"step": 10**30, "max_steps": 1.5, "reason": {}},
    ):
        (tmp_path / "status.json").write_text(json.dumps({"status": "stopped", **values}))
        (tmp_path / "metrics.jsonl").write_text(
            json.dumps({"step": 2, "loss": "x", "val_loss": 10**400}) + "\n{\n"
        )
        assert "stopped" in said(capsys, tmp_path)
    (tmp_path / "status.json").unlink()
    (tmp_path / "status.json").mkdir()
    assert "status.json cannot be read (Is a directory)" in said(capsys, tmp_path)


def test_nothing_moves_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "a\x1b[2Jb"
    run.mkdir()
    (run / "status.json").write_text(
        json.dumps({"status": "stopped", "step": 1, "reason": "\x1b]0;x\x07\u202e"})
    )
    (run / ".lock").write_text("")
    for args in ([run], [tmp_path], [run, "--json"]):
        out = said(capsys, *args)
        assert "stopped" in out
        assert all(c.isprintable() or c == "\n" for c in out), ascii(out)
    (run / ".lock").write_text("process 1 on \x1b[2J")
    assert said(capsys, run, "--word") == "killed\n"


def test_all_runs_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 2
    assert "There are no runs here or below" in capsys.readouterr().err
    for name, step in (("b", 1), ("a", 20)):
        write_status(
            _made(tmp_path / "runs" / name), status="stopped", step=step, max_steps=1000, reason=""
        )
    (tmp_path / "runs" / "no run").mkdir()
    (tmp_path / "runs" / "a" / "metrics.jsonl").write_text(
        '{"step": 20, "loss": 0.25, "val_loss": 0.5}\n'
    )
    lines = said(capsys).splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["run", "state"],
        ["runs/a", "stopped"],
        ["runs/b", "stopped"],
    ]
    assert lines[1].split()[2:] == ["20", "of", "1,000", "0.25", "0.5", "none"]
    assert len(said(capsys, "--json").splitlines()) == 2
    assert said(capsys, "runs") == said(capsys)
    assert main(["status", "runs", "--word"]) == 2
    assert "there are: runs/a, runs/b" in capsys.readouterr().err


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


COMMANDS = [
    ("sample",),
    ("evaluate", "--metrics", "nll"),
    ("ema",),
    ("edit", "x.png"),
    ("inpaint", "x.png", "--mask", "y.png"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_no_command_proposes_to_train_into_a_folder_that_is_no_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pics", "other"):
        write_status(
            _made(tmp_path / "runs" / name), status="finished", step=1, max_steps=1, reason=""
        )
    (tmp_path / "folder").mkdir()
    for given, words in (
        (
            "runs/pic",
            (
                "runs/pic does not exist. Did you mean runs/pics? Give a run directory; there are:"
                " runs/other, runs/pics."
            ),
        ),
        (
            "folder",
            "folder is no run directory. Give a run directory; there are: runs/other, runs/pics.",
        ),
    ):
        assert main([command[0], given, *command[1:]]) == 2
        err = capsys.readouterr().err
        if command[0] != "evaluate" or given != "folder":  # a folder may be images to score
            assert words in err
        assert "ddpm train" not in err


@pytest.mark.parametrize(
    "command", [*COMMANDS, ("status",), ("watch",), ("best",), ("report",)], ids=lambda c: c[0]
)
def test_every_command_names_the_run_that_a_path_lies_in(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_status(_made(Path("runs/pics")), status="finished", step=1, max_steps=1, reason="")
    (Path("runs/pics/samples")).mkdir()
    (Path("runs/pics/checkpoints/step-000000120")).mkdir(parents=True)
    for given, words in (
        ("runs/pics/samples", "lies in a run and is none itself. Give the run: runs/pics."),
        ("runs/pics/checkpoints", "lies in a run and is none itself. Give the run: runs/pics."),
        (
            "runs/pics/checkpoints/step-00000120",
            "does not exist. Did you mean runs/pics/checkpoints/step-000000120?",
        ),
    ):
        assert main([command[0], given, *command[1:]]) == 2
        err = capsys.readouterr().err
        if command[0] != "evaluate" or not given.endswith("checkpoints"):  # it may hold pictures
            assert f"{given} {words}" in err


def test_a_run_without_a_checkpoint_says_when_one_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ask(StopAt):
        def on_step_end(self, trainer):
            if trainer.step == 3:
                for command in ("sample", "evaluate"):
                    assert main([command, str(tmp_path)]) == 2

    tiny_trainer(
        tmp_path,
        tiny_diffusion(dim=4, dim_mults=(1,)),
        max_steps=5,
        save_every=4,
        callbacks=[Ask(0)],
    ).train()
    said_so = (
        f"{tmp_path} is being trained (step 2 of 5) and holds no checkpoints yet: the first comes"
        " at step 4 (save_every)"
    )
    assert capsys.readouterr().err.count(said_so) == 2
    shutil.rmtree(tmp_path / "checkpoints")
    for status, words in (
        ("finished", "they were removed or moved away"),
        ("running", "killed before it saved one"),
        ("failed", "too hot"),
    ):
        write_status(tmp_path, status=status, step=2, max_steps=5, reason="too hot")
        assert main(["sample", str(tmp_path)]) == 2
        assert words in capsys.readouterr().err


def test_status_and_the_overview_are_light() -> None:
    for words in ([], ["--help"], ["status", "."], ["watch", "runs/a"], ["watch", "-h"]):
        seen = "print({'torch', 'numpy'} & set(sys.modules))"
        call = f"try: main({words})\nexcept SystemExit: pass"
        code = f"import sys; from ddpm_lib.cli import main\n{call}\n{seen}"
        out = subprocess.run(
            [sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=True
        ).stdout
        assert out.splitlines()[-1] == "set()"


@pytest.mark.parametrize("before", ["none", "failed", "finished", "killed"])
@pytest.mark.parametrize("where", ["loading", "building", "opening"])
def test_a_signal_before_training_begins_leaves_a_word(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    before: str,
) -> None:
    """While Python loads, while the network is built, while the data are opened: it is put back
    into the queue.
    """
    from ddpm_lib import cli
    from ddpm_lib.cli import train
    from ddpm_lib.training import prepared_run

    run = tmp_path / "new" / "run"
    if before != "none":
        write_status(
            _made(run),
            status={"killed": "running"}.get(before, before),
            step=3,
            max_steps=9,
            reason="hot",
        )

    def ended(*args: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal did nothing")

    place, name = {
        "loading": (cli.importlib, "import_module"),
        "building": (train, "build"),
        "opening": (prepared_run, "open_training_data"),
    }[where]
    monkeypatch.setattr(place, name, ended)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        main(
            [
                "train",
                "shapes",
                "--output-dir",
                str(run),
                "--model.dim",
                "8",
                "--device",
                "cpu",
                "--image-size",
                "8",
            ]
        )
    monkeypatch.undo()
    assert end.value.code == 143
    assert "received SIGTERM before training began" in capsys.readouterr().err
    assert said(capsys, run, "--word") == ("finished\n" if before == "finished" else "stopped\n")
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (run / ".lock").exists() or (run / ".lock").read_text() == ""


def test_a_signal_leaves_no_word_in_the_folder_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddpm_lib import cli

    (tmp_path / "notes.txt").touch()
    monkeypatch.setattr(
        cli.importlib, "import_module", lambda name: os.kill(os.getpid(), signal.SIGTERM)
    )
    for args in (["--output-dir", str(tmp_path)], [f"--output-dir={tmp_path / 'notes.txt'}"], []):
        with pytest.raises(SystemExit):
            main(["train", "shapes", *args])
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
