"""The note at the end of a row of training: how the curve stands, in a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.runs.run_status import number
from ddpm_lib.runs.verdict.curve_rules import LEAST_FALL
from ddpm_lib.runs.verdict.readings import FEWEST, LAST_SHARE
from ddpm_lib.runs.verdict.sentences import percent
from ddpm_lib.runs.verdict.trend import piece, trend


def row_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what there is to say of the newest validation, as `best, falling (−2.4 % in 100
    steps)`; empty for nothing.

    Args:
        rows: Of the metrics up to now, by step; the last one is told.
    """
    return ", ".join(row_notes(rows))


def row_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the parts of `row_note`."""
    if not rows:
        return []
    points = [
        (row["step"], value) for row in rows if (value := number(row.get("val_loss"))) is not None
    ]
    notes = []
    if points and points[-1][0] == rows[-1]["step"]:
        if len(points) > 1 and points[-1][1] < min(value for _, value in points[:-1]):
            notes.append("best")
        notes += _course(points)
    p = number(rows[-1].get("sample_copies_p"))
    if p is not None and p <= COPY_ALARM:
        notes.append("copying")
    return notes


def _course(points: Sequence[tuple[float, float]]) -> list[str]:
    """Say whether the curve falls, over the last fifth of the run, or the last five points."""
    if len(points) < FEWEST:
        return []
    last = points[-1][0]
    found = trend(piece(points, (1 - LAST_SHARE) * last, last))
    if found is None:
        return []
    if abs(found.change) < LEAST_FALL or not (found.falls or found.rises):
        return ["flat"]
    word = "falling" if found.falls else "rising"
    return [f"{word} ({percent(found.change, '+')} in {found.last - found.first:,.0f} steps)"]
