"""Run directories seen from outside: what is one, how it stands, which others lie near.

Light, because looking must not load torch.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpm_lib.core import lost_paths
from ddpm_lib.core.file_locks import look
from ddpm_lib.core.registry import nearest
from ddpm_lib.core.text import printable
from ddpm_lib.runs.names import checkpoint_name, step_in

WORDS = ("running", "finished", "stopped", "lost", "killed", "failed", "none")
"""How a run can stand, in one word."""

_MANY = 2**62
_MOST = 2**20  # bytes of a status.json; ours have a thousand


@dataclass(frozen=True)
class RunStatus:
    """How a run stands.

    Attributes:
        word: One of `WORDS`.
        step: The last step known of.
        max_steps: Where it is to end, None if unknown.
        save_every: Steps between checkpoints, None if unknown.
        reason: Why it ended, or what is wrong with its records.
        owner: Who trains in it now, or did last without a word.
        checkpoint: Name of its newest checkpoint.
        row: The last row of its metrics.
        latest: The newest value of each name in its last rows: a row has what was measured at its
            step, and not at every step there is a validation.
        silent: Seconds since the last row was written, None where there is none.
        stopped_by: What it stopped by itself for, such as "overfitting"; "" for other reasons.
    """

    word: str
    step: int | None = None
    max_steps: int | None = None
    save_every: int | None = None
    reason: str = ""
    owner: str = ""
    checkpoint: str | None = None
    row: dict[str, Any] = field(default_factory=dict)
    latest: dict[str, Any] = field(default_factory=dict)
    silent: float | None = None
    stopped_by: str = ""

    def seconds_left(self) -> float | None:
        """Return how long the steps to come take at the present speed, or None where that is not
        known. What has passed since the last row is taken off.
        """
        speed, images = number(self.latest.get("images_per_second")), number(self.row.get("images"))
        if (
            self.step is None
            or self.max_steps is None
            or not speed
            or not images
            or not self.row.get("step")
        ):
            return None
        left = max(0.0, self.max_steps - self.step) * (images / self.row["step"]) / speed
        return max(0.0, left - (self.silent or 0.0))


def number(value: Any) -> float | None:
    """Return a value from a file as a number, None if it is none that can be reckoned with."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MANY
    return float(value) if fits and math.isfinite(value) else None


def _count(value: Any) -> int | None:
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MANY
        else None
    )


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Return one line of metrics.jsonl, or None if it is no object with a whole number as its
    step.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and _count(row.get("step")) is not None else None


def last_rows(run: Path) -> list[dict[str, Any]]:
    """Return the last whole rows of a run's metrics, those of the last 64 kB, oldest first."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
            lines = file.read(2**16).splitlines()
    except OSError:
        return []
    return [row for row in map(parse_row, lines) if row is not None]


def _silent(run: Path) -> float | None:
    try:
        return max(0.0, time.time() - (run / "metrics.jsonl").stat().st_mtime)
    except OSError:
        return None


def newest_checkpoint(run: Path) -> str | None:
    """Return the name of the checkpoint of the highest step, verified or not."""
    steps = _checkpoint_steps(run)
    return checkpoint_name(max(steps)) if steps else None


def _checkpoint_steps(run: Path) -> list[int]:
    try:
        names = os.listdir(run / "checkpoints")
    except OSError:
        return []
    return [step for step in map(step_in, names) if step is not None]


def is_run(path: Path) -> bool:
    """Say whether something was, or is being, trained in a directory."""
    marks = ("status.json", "metrics.jsonl", ".lock", "cell.json")
    return any((path / name).is_file() for name in marks) or bool(_checkpoint_steps(path))


def run_status(run: Path) -> RunStatus:
    """Find out how a run stands.

    Raises:
        FileNotFoundError: If there is no such directory.
        PermissionError: If it must not be read.
    """
    if not run.is_dir():
        raise FileNotFoundError(no_run(run))
    said, reason = _said(run)
    held, owner = look(run)
    checkpoint, rows = newest_checkpoint(run), last_rows(run)
    row = rows[-1] if rows else {}
    word = str(said.get("status", "none"))
    if word not in WORDS[:-1]:
        if "status" in said:
            reason = "status.json says no word that this version knows"
        word = "killed" if checkpoint else "none"
    if held:
        word = "running"
    elif held is False and (owner or word == "running"):
        word = "killed"  # whoever ends with a word takes his name out of the lock file
    step, at = _count(said.get("step")), _count(row.get("step"))
    if at is not None and (step is None or (word in ("running", "killed") and at > step)):
        step = at
    told, by = said.get("reason"), said.get("stopped_by")
    return RunStatus(
        word,
        step,
        _count(said.get("max_steps")),
        _count(said.get("save_every")),
        reason or (told if isinstance(told, str) else ""),
        owner,
        checkpoint,
        row,
        {name: value for row in rows for name, value in row.items() if value is not None},
        _silent(run),
        by if isinstance(by, str) and word == "finished" else "",
    )


def written_word(run: Path) -> str:
    """Return the word that status.json says, whoever trains now: "none" where there is none.

    Where it is spoilt, or was lost while there are checkpoints, the word is "killed".
    """
    try:
        said, _ = _said(run)
    except OSError:
        said = {}
    word = said.get("status")
    if word in WORDS:
        return str(word)
    return "killed" if os.path.lexists(run / "status.json") or _checkpoint_steps(run) else "none"


def _said(run: Path) -> tuple[dict[str, Any], str]:
    """Return what status.json says, and what is wrong with it."""
    path = run / "status.json"
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MOST).decode("utf-8"))
    except FileNotFoundError:
        return {}, ""
    except PermissionError as error:
        raise PermissionError(
            f"{printable(path)} cannot be read ({error.strerror}): ask its owner, or as its owner."
        ) from error
    except OSError as error:
        return {}, f"status.json cannot be read ({error.strerror})"
    except (ValueError, RecursionError) as error:
        return {}, f"status.json cannot be read ({printable(error)})"
    if not isinstance(values, dict):
        return {}, f"status.json cannot be read (it holds a {type(values).__name__})"
    return values, ""


def runs_in(folder: Path) -> list[Path]:
    """Return the run directories that lie in a folder, by name."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path))
    except OSError:
        return []


_DEEPEST = 3
"""How many folders deep a run keeps things, as in evaluations/step-000001000/fid."""


def _says_so(run: Path) -> bool:
    """Leave out a folder with nothing but a `.lock` or a table of metrics: it may be anybody's."""
    return (run / "status.json").is_file() or bool(_checkpoint_steps(run))


def run_around(path: Path) -> Path | None:
    """Return the run directory in which a path lies, such as its folder of checkpoints or of
    samples, as seen from here; None where there is none, or where the path is a run itself.
    """
    if is_run(path):
        return None
    near = itertools.islice(path.absolute().parents, _DEEPEST)
    found = next((above for above in near if is_run(above) and _says_so(above)), None)
    seen = None if found is None else Path(os.path.relpath(found))
    return found if seen is not None and ".." in seen.parts else seen


def no_run(path: Path) -> str:
    """Word the error for a path that is no run directory: the run it lies in, the nearest one, and
    those that lie near.
    """
    if (around := run_around(path)) is not None:
        if path.exists():
            return (
                f"{printable(path)} lies in a run and is none itself. Give the run:"
                f" {printable(around)}."
            )
        hint = lost_paths.meant(str(path))
        asked = f" Did you mean {printable(hint)}?" if hint is not None else ""
        return f"{printable(path)} does not exist.{asked} The run there is {printable(around)}."
    there = (
        f"{printable(path)} is no run directory"
        if path.exists()
        else f"{printable(path)} does not exist"
    )
    near = runs_in(path.parent) + (runs_in(Path("runs")) if path.parent != Path("runs") else [])
    inside = runs_in(path) or runs_in(path / "runs")
    found = list({os.path.realpath(run): run for run in reversed([*inside, *near])}.values())[::-1]
    if not found:
        return (
            f"{there}. Give a run directory, which `ddpm train` names at its start: runs/shapes for"
            " the built-in images."
        )
    hint = nearest(path.name, [run.name for run in found])
    close = next((run for run in found if run.name == hint and not path.exists()), None)
    meant = f" Did you mean {printable(close)}?" if close is not None else ""
    listed = ", ".join(printable(run) for run in found[:8]) + (
        f" and {len(found) - 8} more" if len(found) > 8 else ""
    )
    return f"{there}.{meant} Give a run directory; there are: {listed}."


def nothing_saved(run: Path) -> str:
    """Word the error for a run without a checkpoint: whether one will come, and when, or why none
    has.
    """
    if not is_run(run):
        return no_run(run)
    name = printable(run)
    try:
        now = run_status(run)
    except OSError as error:
        return str(error)
    at = (
        ""
        if now.step is None
        else f" (step {now.step:,}" + (f" of {now.max_steps:,})" if now.max_steps else ")")
    )
    if now.word == "running":
        first = ""
        if now.save_every:
            first = (
                ": the first comes at step"
                f" {min(now.save_every, now.max_steps or now.save_every):,} (save_every)"
            )
        return (
            f"{name} is being trained{at} and holds no checkpoints yet{first}. `ddpm status` tells"
            " how far it is."
        )
    ended = {
        "none": "nothing was trained there yet",
        "killed": "its process was killed before it saved one",
        "failed": f"training failed before it saved one: {printable(now.reason)[:300]}",
    }.get(now.word, "they were removed or moved away")
    return f"{name} holds no checkpoints: {ended}. The command that trained it begins it again."


def pictures_in(folder: Path, kinds: frozenset[str], most: int = 2000) -> str | None:
    """Return the first file of some kinds in a folder, or below it but for runs, None if there is
    none.

    Args:
        folder: Where to look.
        kinds: Endings, such as ".png".
        most: Files to look at.
    """
    seen = 0
    with contextlib.suppress(OSError):
        for here, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not is_run(Path(here, name))]
            for name in names:
                seen += 1
                if os.path.splitext(name)[1].lower() in kinds:
                    return os.path.relpath(os.path.join(here, name), folder)
            if seen > most:
                break
    return None
