"""What `ddpm` alone shows: three commands to copy, the runs that lie here, where to read on."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from ddpm_lib.cli.status import COLUMNS, row_of
from ddpm_lib.cli.text_tables import room, table
from ddpm_lib.core.text import printable, sayable
from ddpm_lib.runs.finding import find_runs
from ddpm_lib.runs.run_status import RunStatus, run_status

MOST = 6
"""Runs that are shown, those first in which something happened last."""


def show() -> int:
    """Print it."""
    for line in lines(width=room()):
        print(sayable(line, getattr(sys.stdout, "encoding", None)))
    return 0


def lines(width: int | None) -> list[str]:
    """Return the lines.

    Args:
        width: Of the terminal; None for none.
    """
    from ddpm_lib import __version__

    runs = _runs()
    ways = proposals(runs)
    longest = max(len(command) for command, _ in ways)
    told = [f"ddpm-lib {__version__}: denoising diffusion models on your own images", ""]
    told += [f"  {command:{longest}}  {meaning}" for command, meaning in ways]
    if runs:
        rows = [row_of(run, now) for run, now in runs[:MOST]]
        inner = None if width is None else width - 2
        told += ["", *(f"  {line}" for line in table(COLUMNS, rows, inner))]
        if len(runs) > MOST:
            told.append(f"  and {len(runs) - MOST} more: ddpm status")
    told += ["", "`ddpm --help` lists the commands, `ddpm COMMAND --help` explains one with"]
    return [*told, "examples; `ddpm docs` has the guides."]


def proposals(runs: list[tuple[Path, RunStatus]]) -> list[tuple[str, str]]:
    """Return three commands for somebody who stands here, each with its meaning.

    Args:
        runs: The runs that lie here, the newest first.
    """
    own = ("ddpm train path/to/images --image-size 64", "train on your own images")
    saved = next((run for run, now in runs if now.checkpoint), None)
    alive = next((run for run, now in runs if now.word == "running"), None)
    if not runs:
        first = ("ddpm train", "a first run, on built-in shapes: minutes, also on a CPU")
        return [first, own, ("ddpm doctor", "what this machine can do, and what is missing")]
    watched = _quoted(alive or runs[0][0])
    second = (f"ddpm watch {watched}", "its curves" if alive is None else "its curves, live")
    if saved is None:
        return [own, second, (f"ddpm status {watched}", "how it stands")]
    return [own, second, (f"ddpm sample {_quoted(saved)} --num 64", "draw images from it")]


def _quoted(run: Path) -> str:
    return shlex.quote(printable(run))


def _runs() -> list[tuple[Path, RunStatus]]:
    found = []
    for run in find_runs(Path()):
        if run.ablation is None:
            try:
                found.append((run.path, run_status(run.path)))
            except OSError:  # somebody else's, and closed: `ddpm status` names it
                continue
    return sorted(found, key=lambda one: (one[1].word != "running", _age(one[1])))


def _age(now: RunStatus) -> float:
    return float("inf") if now.silent is None else now.silent
