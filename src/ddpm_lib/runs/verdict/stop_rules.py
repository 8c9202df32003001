"""When a run has seen enough: the findings that may end a training, each held for a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.runs.verdict.curve_rules import (
    LEAST_FALL,
    first_of_last,
    noise,
    overfitting,
    progress,
)
from ddpm_lib.runs.verdict.findings import Finding
from ddpm_lib.runs.verdict.readings import LAST_SHARE, Readings
from ddpm_lib.runs.verdict.sample_rules import copying
from ddpm_lib.runs.verdict.trend import piece, trend

STOPPERS = ("overfitting", "copying", "flat")
"""Kinds of findings that may end a training."""

JUDGED_SHARE, FEWEST_JUDGED = 0.4, 6
"""The share of a run, and the validations at least, that have to be flat."""


def stop_finding(r: Readings, kinds: Sequence[str], patience: int) -> Finding | None:
    """Return what ends a run, None where it is to go on.

    Args:
        r: Its numbers up to now.
        kinds: Which of `STOPPERS` may end it.
        patience: Validations in a row, for copying grids, that have to show it.
    """
    for kind in STOPPERS:
        found = _RULES[kind](r, patience) if kind in kinds else None
        if found is not None:
            return found
    return None


def _copying(r: Readings, patience: int) -> Finding | None:
    grids = r.rows_with("sample_copies", "sample_copies_p", "sample_n")
    first = first_of_last([row["sample_copies_p"] <= COPY_ALARM for row in grids])
    return copying(r) if first is not None and len(grids) - first >= patience else None


def _held(rule: Callable[[Readings], Finding | None]) -> Callable[[Readings, int], Finding | None]:
    """Make a rule about validations ask for the same answer after several of them in a row."""

    def held(r: Readings, patience: int) -> Finding | None:
        steps = [step for step, _ in r.curve("val_loss")][-patience:]
        if len(steps) < patience:
            return None
        found = None
        for last in steps:
            found = rule(
                replace(r, rows=[row for row in r.rows if row["step"] <= last], _curves={})
            )
            if found is None:
                return None
        return found

    return held


def _flat(r: Readings) -> Finding | None:
    """The held-out loss surely falls by less than `LEAST_FALL` in a fifth of the run, judged by two
    fifths, at a rate that has not decayed, and is below what knowing the mean image alone gives.

    The verdict "flat" is milder: it also says so where noise hides whether the curve falls.
    """
    found, points = progress(r), r.curve("val_loss")
    if found is None or found.kind != "flat" or noise(r) is not None:
        return None
    last = points[-1][0]
    end = trend(piece(points, (1 - JUDGED_SHARE) * last, last, FEWEST_JUDGED))
    if end is None or end.count < FEWEST_JUDGED or not end.level:
        return None
    steepest = -end.low * LAST_SHARE * last / end.level
    return found if steepest < LEAST_FALL else None


_RULES: dict[str, Callable[[Readings, int], Finding | None]] = {
    "overfitting": _held(overfitting),
    "copying": _copying,
    "flat": _held(_flat),
}
