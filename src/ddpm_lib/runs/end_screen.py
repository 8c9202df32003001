"""How a run ended, on one screen: verdict, scores with what they are compared with, files, next
steps; from files alone, without torch.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddpm_lib.core.text import printable
from ddpm_lib.runs.names import AVERAGE_LOSS
from ddpm_lib.runs.records import RunRecords, read_records
from ddpm_lib.runs.run_status import number
from ddpm_lib.runs.verdict import (
    ELLIPSIS,
    Proposal,
    Verdict,
    judge,
    next_steps,
    symptom_line,
    words,
)
from ddpm_lib.runs.verdict.sentences import figure

WIDTH = 100
INDENT = 9
"""Columns of the headings."""
BESIDE = 44
"""So long a reason stands in front of its command; a longer one above it."""
CHANNELS_SHOWN = 3
"""Of measured values of many channels so many are shown, without quantiles."""
_CHANNEL = re.compile(r"value_([a-z0-9]+)_c(\d+)")
LEFT_OUT = ("loss_train", "nll_train", "copying_ct")
"""Scores that mean something beside others only; the file has them."""
MADE = {
    "report.html": "the whole run on one page: open it in a browser",
    "results.png": "the curves as a picture",
    "samples": "sample grids",
    "checkpoints": "checkpoints",
    "evaluations": "scores",
    "metrics.csv": "loss, validation loss and more, also as metrics.jsonl",
    "config.yaml": "all settings; give it to --config to repeat the run",
}
"""What a run directory holds for people, and what it is."""


def end_screen(run: Path) -> str:
    """Return what there is to say of a run, in sections VERDICT, WEIGHTS, SCORE, FILES and NEXT;
    where it stopped before its last step, END says why.
    """
    records = read_records(run)
    verdict = judge(records)
    parts = [
        section("END", end_lines(records)),
        section("VERDICT", verdict_lines(verdict)),
        section("WEIGHTS", average_lines(records)),
        section("SCORE", score_lines(records)),
        section("FILES", file_lines(run)),
        section("NEXT", next_lines(next_steps(records, verdict))),
    ]
    return "\n".join(part for part in parts if part)


def verdict_lines(verdict: Verdict) -> list[str]:
    """Say the verdict, what shows it, and where pictures of it are."""
    return [*words(verdict), symptom_line(verdict)]


def end_lines(records: RunRecords) -> list[str]:
    """Say where and why a run ended before its last step; nothing of others."""
    status = records.status
    if status.step is None or not (status.word == "stopped" or status.stopped_by):
        return []
    of = f" of {status.max_steps:,}" if status.max_steps else ""
    why = f": {printable(status.reason)}" if status.reason else ""
    return [f"{status.word} at step {status.step:,}{of}{why}"]


def section(heading: str, lines: Sequence[str]) -> str:
    """Put lines beside a heading; "" where there are none. Sentences are wrapped, tables and
    commands (lines with two spaces) are not.
    """
    wrapped: list[str] = []
    for line in lines:
        whole = "  " in line
        wrapped += [line] if whole else textwrap.wrap(line, WIDTH - INDENT, break_on_hyphens=False)
    head = [heading, *[""] * len(wrapped)]
    return "\n".join(f"{a:{INDENT}}{line}".rstrip() for a, line in zip(head, wrapped))


def score_lines(records: RunRecords) -> list[str]:
    """Return the scores of the newest step as `name  value ± error  held-out …, noise …`.

    Those of the newest evaluation of the run's last step; without one, that there is none.
    """
    step = records.status.step
    found = [one for one in records.evaluations if one.get("step") == step and step]
    if not found:
        return ["not scored yet"] if records.status.checkpoint else []
    newest = found[-1]
    references = newest.get("references")
    compared = {**_of_the_data(newest), **(references if isinstance(references, dict) else {})}
    rows = [
        _score_row(score, compared)
        for score in newest.get("scores") or ()
        if isinstance(score, dict) and _shown(score)
    ]
    widths = [max((len(row[k]) for row in rows), default=0) for k in (0, 1)]
    lines = ["  ".join([f"{a:{widths[0]}}", f"{b:{widths[1]}}", c]).rstrip() for a, b, c in rows]
    samples = newest.get("samples") or {}
    drawn = f"of {samples['n']:,} samples, " if isinstance(samples.get("n"), int) else ""
    return [*lines, f"{drawn}evaluations/{newest.get('file', '')} has all"] if lines else []


def _shown(score: Mapping[str, Any]) -> bool:
    name = str(score.get("name", ""))
    channel = _CHANNEL.match(name)
    if channel and (int(channel[2]) >= CHANNELS_SHOWN or channel[1].startswith("q")):
        return False
    return "/" not in name and not name.startswith(LEFT_OUT)


def _of_the_data(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what the data have where samples are measured in units, by score and set."""
    found: dict[str, dict[str, Any]] = {}
    for score in evaluation.get("scores") or ():
        name, _, word = str(score.get("name", "") if isinstance(score, dict) else "").partition("/")
        if word and _CHANNEL.match(name):
            found.setdefault(name, {})[word] = score
    return found


def _score_row(score: Mapping[str, Any], references: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return name, value with error and unit, and what it is compared with."""
    name, error = str(score["name"]), number(score.get("standard_error"))
    value = figure(number(score.get("value")))
    if error is not None:
        value += f" ± {figure(error)}"
    unit = str(score.get("unit", "")).split(";")[0]
    others = references.get(name)
    compared = [
        f"{word} {figure(number(row.get('value')))}"
        for word, row in (others.items() if isinstance(others, dict) else ())
        if isinstance(row, dict)
    ]
    text = f"({', '.join(compared)})" if compared else ""
    remark = str(score.get("remark") or "")
    return (
        name,
        f"{value} {unit}",
        "  ".join(part for part in (text, f"! {remark}" if remark else "") if part),
    )


def average_lines(records: RunRecords) -> list[str]:
    """Say which of several weight averages is used, and why; nothing where none was chosen."""
    row = records.rows[-1] if records.rows else {}
    found = [
        (loss, name.removeprefix(AVERAGE_LOSS))
        for name, value in row.items()
        if name.startswith(AVERAGE_LOSS) and (loss := number(value)) is not None
    ]
    if len(found) < 2:
        return []
    (lowest, used), *others = sorted(found)
    rest = ", ".join(f"{figure(loss)} of {_length(name)}" for loss, name in others)
    return [
        f"used: the average over {_length(used)} steps (ema {used}), whose held-out loss is the"
        f" lowest of {len(found)}: {figure(lowest)}, against {rest}"
    ]


def _length(decay: str) -> str:
    """Return how many steps an average of a decay covers, "0.9" in 10."""
    return f"{1 / (1 - float(decay)):,.0f}"


def file_lines(run: Path) -> list[str]:
    """Return what the run directory holds for people, a line each."""
    there = {str(run / name): text for name, text in MADE.items() if (run / name).exists()}
    width = max(map(len, there), default=0)
    return [f"{path:{width}}  {text}" for path, text in there.items()]


def next_lines(proposals: Sequence[Proposal]) -> list[str]:
    """Return proposals as `why (about 3 min)  command`; the command ends its line, to be copied.

    Where some are calls in Python, a last line says what `...` in them stands for.
    """
    texts = [one.why + _time(one.minutes) for one in proposals]
    width = max((len(text) for text in texts if len(text) <= BESIDE), default=0)
    lines: list[str] = []
    for text, one in zip(texts, proposals):
        if len(text) > BESIDE:
            lines += [text, f"  {one.command}"]
        else:
            lines.append(f"{text:{width}}  {one.command}")
    return [*lines, ELLIPSIS] if any(one.python for one in proposals) else lines


def _time(minutes: float | None) -> str:
    """Word a time.

    >>> _time(0.2), _time(3.4), _time(200.0), _time(None)
    (' (less than a minute)', ' (about 3 min)', ' (about 3.3 h)', '')
    """
    if minutes is None:
        return ""
    if minutes < 1:
        return " (less than a minute)"
    return f" (about {minutes:.0f} min)" if minutes < 90 else f" (about {minutes / 60:.1f} h)"
