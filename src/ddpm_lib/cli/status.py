"""`ddpm status [RUN]`: how a run stands, or all of them, for people and for batch scripts; loads no
torch.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ddpm_lib.cli import options
from ddpm_lib.cli.text_tables import Column, duration, room, table
from ddpm_lib.core.text import printable, sayable, so_many
from ddpm_lib.runs.finding import FoundRun, find_runs
from ddpm_lib.runs.growth import growth_of_run
from ddpm_lib.runs.records import read_records
from ddpm_lib.runs.run_status import RunStatus, is_run, no_run, number, run_around, run_status
from ddpm_lib.runs.started_from import is_untrained, start_of_run
from ddpm_lib.runs.stored_sampling import sampling_or_none

DESCRIPTION = """How a run stands; without RUN, how all stand that lie here and below, as a table.
Step, losses, speed and time left are those of the last line that training wrote, not of the last
checkpoint. The first word is one of

  running    a process trains in it now
  finished   max_steps is reached, or what stop_when names was seen
  stopped    ended early with a checkpoint: a signal, a time limit, a STOP file
  lost       another process of it died or fell silent
  killed     its process is gone without a word (SIGKILL, memory, power)
  failed     ended in an error, which is shown
  none       nothing was trained there yet

After stopped, lost and killed the same command continues the run."""

SILENCE = 600.0
"""Seconds without a line of metrics after which a running run is called silent."""

COLUMNS = (
    Column("run"),
    Column("state"),
    Column("step", rank=0),
    Column("loss", right=True, rank=2),
    Column("held-out", right=True, rank=3),
    Column("images/s", right=True, rank=4),
    Column("left", right=True, rank=1),
    Column("checkpoint", rank=5),
)


@dataclass(frozen=True, kw_only=True)
class StatusCommand:
    """Options of `ddpm status`."""

    run: tyro.conf.Positional[str | None] = None
    """A run directory, or a folder with some in it or below it; default: the present folder."""
    word: bool = False
    """Print the word alone, for scripts; of one run."""
    json: bool = False
    """Print one JSON object per run, one per line."""


def main(args: list[str]) -> int:
    """Run the command."""
    command: StatusCommand = options.parse(
        StatusCommand, args, StatusCommand(), "ddpm status", DESCRIPTION
    )
    here = Path(command.run if command.run is not None else ".")
    alone = is_run(here)
    if not alone and run_around(here) is not None:
        raise FileNotFoundError(no_run(here))
    several = [] if alone else find_runs(here, known=command.run is not None)
    if command.run is None and not alone and not several:
        raise FileNotFoundError(
            "There are no runs here or below. Name a run directory: ddpm status RUN. `ddpm train`"
            " makes them in ./runs."
        )
    if command.word and several:
        raise ValueError(f"--word is the word of one run. {no_run(here)}")
    if command.word:
        _write([run_status(here).word])
    elif command.json:
        _write(json.dumps(values_of(run.path)) for run in several or [FoundRun(here)])
    elif several:
        _write(overview(several, room()))
    else:
        _write(_lines(here, run_status(here)))
    return 0


def _write(lines: Iterable[str]) -> None:
    for line in lines:
        print(sayable(line, getattr(sys.stdout, "encoding", None)))


def values_of(run: Path) -> dict[str, Any]:
    """Return what is known of a run's state as plain JSON values."""
    now = run_status(run)
    values: dict[str, Any] = {
        "run": printable(run),
        "status": now.word,
        "step": now.step,
        "max_steps": now.max_steps,
        "reason": now.reason,
        "stopped_by": now.stopped_by or None,
        "checkpoint": now.checkpoint,
    }
    for name in ("loss", "val_loss", "val_loss_error", "images_per_second"):
        values[name] = number(now.latest.get(name))
    values["seconds_since_last_row"] = now.silent
    if now.word == "running":
        values["held_by"] = now.owner or "another process"
        values["seconds_left"] = now.seconds_left()
    start = start_of_run(run)
    values["started_from"] = None if start is None else start.to_json()
    values["grown"] = [event.to_json() for event in growth_of_run(run)]
    default = sampling_or_none(run)
    values["sampling"] = None if default is None else {**default.to_json(), "evidence": {}}
    return {**values, "metrics": now.row}


def _lines(run: Path, now: RunStatus) -> list[str]:
    from ddpm_lib.runs.verdict import headline, judge

    lines = [f"{now.word}: {printable(run)}"]
    if now.step is not None:
        lines.append(f"  step        {progress(now)}")
    lines += [f"  {name:<11} {text}" for name, text in _numbers(now).items()]
    if now.row:
        lines.append(f"  verdict     {headline(judge(read_records(run)))}")
    start = start_of_run(run)
    if start is not None:
        lines.append(f"  began with  {start}")
    lines += [f"  grown       {event.words()}" for event in growth_of_run(run)]
    default = sampling_or_none(run)
    if default is not None:
        lines.append(f"  sampling    {default.words()} ({default.origin()})")
    if now.word == "running":
        lines.append(f"  held by     {printable(now.owner) or 'another process'}")
        if _is_silent(now):
            lines.append(f"  silent      no line of metrics for {duration(now.silent or 0.0)}")
    elif now.reason:
        lines.append(f"  reason      {printable(now.reason)}")
    lines.append(f"  checkpoint  {now.checkpoint or 'none yet'}")
    if now.stopped_by:
        lines.append("  next        the same command stops here again; --stop-when none goes on")
    elif now.word in ("stopped", "lost", "killed"):
        lines.append(f"  next        {_next(run)}")
    return lines


def _next(run: Path) -> str:
    """Say how a run that does not run goes on."""
    if not is_untrained(run):
        return "the same command continues it"
    if (run / "config.yaml").is_file():
        config = shlex.quote(printable(run / "config.yaml"))
        return f"ddpm train path/to/images --config {config} trains on"
    return "a Trainer in Python with this output_dir trains on"


def progress(now: RunStatus) -> str:
    """Word the step of a run and its last one; "" where none is known."""
    if now.step is None:
        return ""
    return f"{now.step:,}" + (f" of {now.max_steps:,}" if now.max_steps else "")


def _is_silent(now: RunStatus) -> bool:
    return now.word == "running" and now.silent is not None and now.silent > SILENCE


def known(now: RunStatus) -> dict[str, float]:
    """Return the newest numbers of a run by their names, those that can be reckoned with."""
    found = ((name, number(value)) for name, value in now.latest.items())
    return {name: value for name, value in found if value is not None}


def _numbers(now: RunStatus) -> dict[str, str]:
    """Return what the last rows of the metrics say, worded."""
    row = known(now)
    losses = [f"{row['loss']:.4g}"] if "loss" in row else []
    losses += [f"val {_held_out(row)}"] if "val_loss" in row else []
    found = {"loss": ", ".join(losses)} if losses else {}
    if now.word == "running":
        if "images_per_second" in row:
            found["speed"] = f"{row['images_per_second']:,.4g} images/s"
        left = now.seconds_left()
        if left is not None:
            found["left"] = duration(left)
    return found


def _held_out(row: dict[str, float]) -> str:
    error = row.get("val_loss_error")
    return f"{row['val_loss']:.4g}" + (f" ± {error:.1g}" if error else "")


def overview(runs: list[FoundRun], width: int | None) -> list[str]:
    """Return a table of runs; cells of an ablation that do not train now are counted in one row.

    Args:
        runs: What `find_runs` found.
        width: Of the terminal; None for none.
    """
    rows: list[tuple[str, ...]] = []
    cells: dict[Path, list[RunStatus]] = {}
    for run in runs:
        try:
            now = run_status(run.path)
        except OSError as error:
            rows.append((printable(run.path), "?", "", "", "", "", "", printable(error)))
            continue
        if run.ablation is not None and len(runs) > 1:
            cells.setdefault(run.ablation, []).append(now)
            if now.word != "running":
                continue
        rows.append(row_of(run.path, now))
    for folder, stand in cells.items():
        counts = Counter(now.word for now in stand if now.word != "running")
        for word, count in counts.items():
            what = f"{printable(folder)} ({so_many(count, 'cell')})"
            rows.append((what, word, "", "", "", "", "", ""))
    return table(COLUMNS, rows, width)


def row_of(run: Path, now: RunStatus) -> tuple[str, ...]:
    """Return the texts of a run's row, one per column of `COLUMNS`."""
    row, running = known(now), now.word == "running"
    left = now.seconds_left() if running else None
    return (
        printable(run),
        now.word,
        progress(now),
        f"{row['loss']:.4g}" if "loss" in row else "",
        _held_out(row) if "val_loss" in row else "",
        f"{row['images_per_second']:,.4g}" if running and "images_per_second" in row else "",
        f"silent {duration(now.silent or 0.0)}"
        if _is_silent(now)
        else ("" if left is None else duration(left)),
        now.checkpoint or "none",
    )
