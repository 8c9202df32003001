"""Commands run in this process, and options of small runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddpm_lib.cli import main

TINY = [
    "--image-size",
    "8",
    "--max-steps",
    "4",
    "--batch-size",
    "4",
    "--lr-schedule",  # the default keeps a checkpoint of its own
    "cosine",
    "--model.dim",
    "8",
    "--model.dim-mults",
    "1",
    "2",
    "--model.blocks-per-level",
    "1",
    "--model.attention-levels",
    "1",
    "--diffusion.timesteps",
    "20",
    "--save-every",
    "2",
    "--log-every",
    "1",
    "--sample-every",
    "4",
    "--sample-count",
    "2",
    "--sample-steps",
    "2",
    "--val-every",
    "2",
    "--val-max-images",
    "4",
    "--device",
    "cpu",
    "--mixed-precision",
    "no",
    "--no-progress",
]
DRAW = ["--num-steps", "2", "--device", "cpu", "--no-progress", "--mixed-precision", "no"]


def ddpm(*args: object) -> int:
    """Run a command as the shell would and return its exit code."""
    try:
        return main([str(a) for a in args])
    except SystemExit as done:
        return int(done.code or 0)


def train(run: Path, *args: object) -> int:
    return ddpm("train", "shapes", *TINY, "--output-dir", run, *args)


def error_of(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The message of a command that must fail as user errors do: exit code 2, nothing on stdout, no
    traceback.
    """
    capsys.readouterr()
    assert ddpm(*args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return " ".join(err.replace("│", " ").split())
