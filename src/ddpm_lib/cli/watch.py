"""`ddpm watch RUN`: its curves in the terminal while it trains; reads files only, loads no
torch.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ddpm_lib.cli import options
from ddpm_lib.cli.status import known, progress
from ddpm_lib.cli.text_plots import Series, legend, plot
from ddpm_lib.cli.text_tables import colours, duration, room
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.text import printable, sayable
from ddpm_lib.runs.records import RunRecords, read_records
from ddpm_lib.runs.run_status import is_run, no_run, number

DESCRIPTION = (
    "Draw the curves of a run in the terminal, with what they mean below, anew as it trains, until"
    " it ends or you press Ctrl-C; the run itself is not touched. Only files are read, so it works"
    " from another node, such as the login node of a cluster. Where the output is no terminal, one"
    " picture is printed, as with --once."
)

NAMES = {"loss": "loss", "val_loss": "held-out"}
"""Curves that share the first plot, by their names in the metrics."""

LEAST = (40, 12)
"""Columns and lines below which a plot says nothing: the size is then taken as this."""

LEAST_PLOT = 5
"""Lines of a plot with its legend."""

SHARE = 20.0
"""A frame is drawn at most so often that drawing takes one part in so many of the time."""


@dataclass(frozen=True, kw_only=True)
class WatchCommand:
    """Options of `ddpm watch`."""

    run: tyro.conf.Positional[str]
    """A run directory."""
    metric: tuple[str, ...] = ()
    """Other columns of metrics.csv, a plot each, such as grad_norm,learning_rate; default: the loss
    and that of held-out images.
    """
    once: bool = False
    """Print one picture and end."""
    interval: float = 2.0
    """Seconds between two looks at the files."""


def main(args: list[str]) -> int:
    """Run the command."""
    missing: Any = tyro.MISSING
    command: WatchCommand = options.parse(
        WatchCommand, args, WatchCommand(run=missing), "ddpm watch", DESCRIPTION
    )
    if not command.interval > 0:
        raise ConfigError(f"--interval must be a positive number; got {command.interval:g}.")
    run = Path(command.run)
    if not is_run(run):
        raise FileNotFoundError(no_run(run))
    check_metrics(read_records(run), command.metric)
    if command.once or room() is None:
        for line in frame(read_records(run), command.metric, *_size(), braille=_has_braille()):
            print(sayable(line, getattr(sys.stdout, "encoding", None)))
        return 0
    try:
        follow(run, command.metric, command.interval)
    except KeyboardInterrupt:  # the way to leave
        print("Not watched any more; the run itself was not touched.")
    return 0


def check_metrics(records: RunRecords, names: Sequence[str]) -> None:
    """Refuse columns that a run does not have, as far as it has any.

    Raises:
        ConfigError: Naming the nearest.
    """
    there = list(dict.fromkeys(name for row in records.rows for name in row if name != "step"))
    for name in names:
        if there and name not in there:
            raise ConfigError(unknown_name("metric", name, there))


def follow(
    run: Path, metrics: Sequence[str], interval: float, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Draw a run again and again, until nobody trains in it; the last picture stays.

    Args:
        run: The run directory.
        metrics: See `WatchCommand.metric`.
        interval: Seconds between two looks.
        sleep: Waits some seconds.
    """
    shown: list[str] = []
    _say("\x1b[?1049h\x1b[?25l")  # the other screen, no cursor
    try:
        while True:
            began = time.monotonic()
            records = read_records(run)
            size = _size()
            shown = frame(records, metrics, *size, braille=_has_braille(), live=True)
            body = "\x1b[K\n".join(shown)
            _say(f"\x1b[H{body}\x1b[J")
            if records.status.word != "running":
                break
            until = max(interval, SHARE * (time.monotonic() - began)) + began
            while time.monotonic() < until and _size() == size:
                sleep(min(0.2, max(0.0, until - time.monotonic())))
    finally:
        _say("\x1b[?25h\x1b[?1049l")
        _say("".join(f"{line}\n" for line in shown))


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _size() -> tuple[int, int]:
    import shutil

    size = shutil.get_terminal_size((80, 24))
    return max(LEAST[0], size.columns), max(LEAST[1], size.lines)


def _has_braille() -> bool:
    try:
        "⣿━┤└".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def frame(
    records: RunRecords,
    metrics: Sequence[str],
    width: int,
    height: int,
    *,
    braille: bool = True,
    live: bool = False,
) -> list[str]:
    """Return the lines of one picture, which fit a terminal.

    Args:
        records: Of the run.
        metrics: See `WatchCommand.metric`.
        width: Columns of the terminal.
        height: Its lines.
        braille: Whether it can show braille.
        live: Whether the picture is drawn again.
    """
    coloured = colours()
    head = [_cut(line, width) for line in packed(heading(records, width), width)][:2]
    foot = [_cut(line, width) for line in packed(numbers(records), width)]
    foot += judged(records, width)[: max(1, height // 5)]
    if live and records.status.word == "running":
        foot.append("Ctrl-C ends watching, not the run.")
    foot = foot[: max(1, height - len(head) - 1 - LEAST_PLOT)]
    panels = curves_of(records, metrics)
    drawn = [panel for panel in panels if any(curve.points for curve in panel)]
    if not drawn:
        return [*head, "", "no line of metrics yet" if not records.rows else "nothing to draw"]
    free = height - 1 - len(head) - len(foot)  # a full last line would scroll
    drawn = drawn[: free // LEAST_PLOT]
    lines = list(head)
    for panel in drawn:
        named = f"{'':10}{legend(panel, braille=braille, colours=coloured)}"
        lines.append(named if coloured else _cut(named, width))
        tall = free // len(drawn) - 1
        lines += plot(panel, width, tall, braille=braille, colours=coloured)
    return [*lines, *foot]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def curves_of(records: RunRecords, metrics: Sequence[str]) -> list[list[Series]]:
    """Return the curves of each plot."""
    if not metrics:
        return [[_curve(records.rows, name, label) for name, label in NAMES.items()]]
    return [[_curve(records.rows, name, name)] for name in metrics]


def _curve(rows: Iterable[dict[str, Any]], name: str, label: str) -> Series:
    found = ((row["step"], number(row.get(name))) for row in rows)
    return Series(label, [(float(x), y) for x, y in found if y is not None])


def heading(records: RunRecords, width: int) -> list[str]:
    """Say in parts which run it is, how it stands, and how far it is."""
    now = records.status
    row = known(now)
    name, most = printable(records.run), width - 12
    name = name if len(name) <= most else f"…{name[1 - most :]}"
    parts = [f"{name}: {now.word}"]
    if now.step is not None:
        share = f" ({now.step / now.max_steps:.0%})" if now.max_steps else ""
        parts.append(f"step {progress(now)}{share}")
    if now.word == "running":
        if "images_per_second" in row:
            parts.append(f"{row['images_per_second']:,.4g} images/s")
        left = now.seconds_left()
        if left is not None:
            parts.append(f"{duration(left)} left")
    elif now.reason:
        parts.append(printable(now.reason))
    return parts


def numbers(records: RunRecords) -> list[str]:
    """Return the newest numbers, worded."""
    row = known(records.status)
    parts = [f"loss {row['loss']:.4g}"] if "loss" in row else []
    if "val_loss" in row:
        values = [(number(r.get("val_loss")), r["step"]) for r in records.rows]
        best, step = min((value, step) for value, step in values if value is not None)
        error = row.get("val_loss_error")
        parts.append(f"held-out {row['val_loss']:.4g}" + (f" ± {error:.1g}" if error else ""))
        parts[-1] += f" (lowest {best:.4g} at step {step:,})"
    gap = "val_gap_adjusted" if "val_gap_adjusted" in row else "val_gap"
    if gap in row:
        error = row.get(f"{gap}_error")
        parts.append(f"gap {row[gap]:+.2g}" + (f" ± {error:.1g}" if error else ""))
    return parts


def judged(records: RunRecords, width: int) -> list[str]:
    """Return the judgement of the run, the most important sentence first, as lines of a width."""
    from ddpm_lib.runs.verdict import judge, words

    if not records.rows:
        return []
    return [line for text in words(judge(records)) for line in textwrap.wrap(text, width)]


def packed(parts: Iterable[str], width: int) -> list[str]:
    """Join texts into as few lines of a width as their order allows."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f"   {part}"
        else:
            lines.append(part)
    return lines
