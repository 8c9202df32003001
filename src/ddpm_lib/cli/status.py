"""`ddpm status [RUN]`: how a run stands, or all of them, for people and for batch scripts; loads no
torch.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from ddpm_lib.core.text import printable, sayable
from ddpm_lib.runs.run_status import RunStatus, is_run, no_run, number, run_status, runs_in
from ddpm_lib.runs.started_from import is_untrained, start_of_run

DESCRIPTION = """How a run stands; without RUN, how all in ./runs stand. The first word is one of

  running    a process trains in it now
  finished   max_steps is reached
  stopped    it ended early with a checkpoint: a signal, a time limit, a STOP file
  lost       another process of it died or fell silent
  killed     its process is gone without a word (SIGKILL, memory, power)
  failed     it ended in an error, which is shown
  none       nothing was trained there yet

After stopped, lost and killed the same command continues the run."""


def main(args: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="ddpm status",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", type=Path, nargs="?", help="a run directory, or a folder of them; default: ./runs"
    )
    parser.add_argument("--word", action="store_true", help="print the word alone, for scripts")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per run, one per line"
    )
    options = parser.parse_args(args)
    run: Path = options.run if options.run is not None else Path("runs")
    several = runs_in(run) if not is_run(run) else []
    if options.run is None and not is_run(run) and not several:
        raise FileNotFoundError(
            "There are no runs in ./runs. Name a run directory: ddpm status RUN."
        )
    if several and options.word:
        raise ValueError(f"--word is the word of one run. {no_run(run)}")
    if options.word:
        _write([run_status(run).word])
    elif options.json:
        _write([json.dumps(_values(path)) for path in several or [run]])
    elif several:
        _write(_table(several))
    else:
        _write(_lines(run, run_status(run)))
    return 0


def _write(lines: list[str]) -> None:
    for line in lines:
        print(sayable(line, getattr(sys.stdout, "encoding", None)))


def _values(run: Path) -> dict[str, object]:
    now = run_status(run)
    values: dict[str, object] = {
        "run": printable(run),
        "status": now.word,
        "step": now.step,
        "max_steps": now.max_steps,
        "reason": now.reason,
        "checkpoint": now.checkpoint,
    }
    if now.word == "running":
        values["held_by"] = now.owner or "another process"
        values["seconds_left"] = now.seconds_left()
    start = start_of_run(run)
    values["started_from"] = None if start is None else start.to_json()
    return {**values, "metrics": now.row}


def _lines(run: Path, now: RunStatus) -> list[str]:
    lines = [f"{now.word}: {printable(run)}"]
    if now.step is not None:
        lines.append(f"  step        {_progress(now)}")
    lines += [f"  {name:<11} {text}" for name, text in _numbers(now).items()]
    start = start_of_run(run)
    if start is not None:
        lines.append(f"  began with  {start}")
    if now.word == "running":
        lines.append(f"  held by     {printable(now.owner) or 'another process'}")
    elif now.reason:
        lines.append(f"  reason      {printable(now.reason)}")
    lines.append(f"  checkpoint  {now.checkpoint or 'none yet'}")
    if now.word in ("stopped", "lost", "killed"):
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


def _progress(now: RunStatus) -> str:
    return (
        "?"
        if now.step is None
        else f"{now.step:,}" + (f" of {now.max_steps:,}" if now.max_steps else "")
    )


def _numbers(now: RunStatus) -> dict[str, str]:
    """Return what the last row of the metrics says, worded."""
    row = {k: v for k, v in ((k, number(v)) for k, v in now.row.items()) if v is not None}
    losses = [f"{row['loss']:.4g}"] if "loss" in row else []
    losses += [f"val {row['val_loss']:.4g}"] if "val_loss" in row else []
    found = {"loss": ", ".join(losses)} if losses else {}
    if now.word == "running":
        if "images_per_second" in row:
            found["speed"] = f"{row['images_per_second']:,.4g} images/s"
        left = now.seconds_left()
        if left is not None:
            found["left"] = _duration(left)
    return found


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"


def _table(runs: list[Path]) -> list[str]:
    rows = [("run", "state", "step", "loss", "left", "checkpoint")]
    for run in runs:
        try:
            now = run_status(run)
        except OSError as error:
            rows.append((printable(run), "?", "", "", "", printable(error)))
            continue
        numbers = _numbers(now)
        rows.append(
            (
                printable(run),
                now.word,
                _progress(now),
                numbers.get("loss", ""),
                numbers.get("left", ""),
                now.checkpoint or "none",
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows
    ]
