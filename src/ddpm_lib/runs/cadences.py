"""How often a run validates, draws, saves and logs: what it was told, else what suits its length;
loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AUTO = "auto"
"""The value of an option that follows from the length of the run, or from its data."""

FEWEST_VALIDATIONS = 6
"""A run has so many at least, so that its verdict rests on a curve; one that is to stop by itself
twice as many and more.
"""
JUDGED_VALIDATIONS = 16
LEAST = 10
"""Steps between two validations at least: each costs as much as some steps of training."""
MOST = {"val_every": 500, "sample_every": 1000, "save_every": 1000, "log_every": 50}
"""Steps at most, in long runs."""

EARLY = (16, 8, 4)
"""Checkpoints at these parts of the training are kept of a small set: weaker models of the same
kind, which guide the last one (`sample(guide_by=…)`), and what was there before it copied.
"""
SMALL = 10_000
"""Training images below which a run keeps them, and its best checkpoint, unasked."""

_LONG = 75_000
_MANTISSAS = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80)


@dataclass(frozen=True)
class Cadences:
    """Optimizer steps between two of a kind.

    Attributes:
        val_every: Validations; 0: never.
        sample_every: Sample grids; 0: never.
        save_every: Checkpoints.
        log_every: Lines of the metrics.
    """

    val_every: int
    sample_every: int
    save_every: int
    log_every: int

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Cadences:
        """Return those of a run, from its options by name; what is no number follows its length."""
        steps, keep = _count(options.get("max_steps")), _count(options.get("keep_every"))
        usual = usual_cadences(_LONG if steps is None else steps, options.get("stop_when") or ())
        if keep:
            usual["save_every"] = _dividing(keep, usual["save_every"])
        found = {}
        for name, value in usual.items():
            told = _count(options.get(name))
            found[name] = value if told is None else told
        return cls(**found)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _dividing(multiple: int, most: int) -> int:
    """Return the largest divisor of a number that is not above `most`; the number itself where
    that were a tenth of `most` or less.

    >>> _dividing(10_000, 1000), _dividing(700, 300), _dividing(9973, 1000)
    (1000, 175, 9973)
    """
    found = next(d for d in range(most, 0, -1) if multiple % d == 0)
    return found if 10 * found > most else multiple


def usual_cadences(max_steps: int, stop_when: Sequence[str] = ()) -> dict[str, int]:
    """Return the steps between validations, grids, checkpoints and logged lines that suit a run.

    A sixth of it between validations, a third between grids and between checkpoints, at most 500
    and 1,000; so a validation takes less than an eighth of the time even in short runs, and a
    fortieth in long ones.

    Args:
        max_steps: Length of the run.
        stop_when: What it is to stop for by itself: then it validates sixteen times, and draws as
            often where copies of training images end it.

    >>> usual_cadences(900)
    {'val_every': 150, 'sample_every': 300, 'save_every': 300, 'log_every': 25}
    >>> usual_cadences(75_000)
    {'val_every': 500, 'sample_every': 1000, 'save_every': 1000, 'log_every': 50}
    """
    count = JUDGED_VALIDATIONS if stop_when else FEWEST_VALIDATIONS
    val = max(LEAST, min(MOST["val_every"], round_down(max_steps / count)))
    log = max(1, min(MOST["log_every"], round_down(max_steps / 36)))
    grid = val if "copying" in stop_when else 2 * val
    return {"val_every": val, "sample_every": grid, "save_every": 2 * val, "log_every": log}


def round_down(value: float) -> int:
    """Return the next smaller round number: 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8 or 10 times a power of
    ten, whole numbers below ten.

    >>> [round_down(v) for v in (0.5, 7.9, 16.7, 166.7, 999)]
    [0, 7, 15, 150, 800]
    """
    if value < 10:
        return int(value)
    scale = 10 ** (math.floor(math.log10(value)) - 1)
    return scale * max(m for m in _MANTISSAS if m * scale <= value)


def cooldown_start(max_steps: int, fraction: float, warmup_steps: int) -> int:
    """Return the step at which the schedule wsd begins to cool down, after the warm-up in any case.

    >>> cooldown_start(1000, 0.2, 50)
    800
    """
    return min(max(round((1.0 - fraction) * max_steps), warmup_steps), max_steps)


def soonest_end(step: int, fraction: float, warmup_steps: int) -> int | None:
    """Return the fewest steps in all with which the cool-down of wsd begins behind a step; None
    where the rate is not at its full height there.

    >>> soonest_end(41, 0.2, 2), soonest_end(1, 0.2, 2)
    (52, None)
    """
    if fraction >= 1 or step < warmup_steps:
        return None
    last = max(step + 1, int(step / (1 - fraction)))
    while cooldown_start(last, fraction, warmup_steps) <= step:
        last += 1
    return last


def early_steps(max_steps: int) -> tuple[int, ...]:
    """Return the steps at 1/16, 1/8 and 1/4 of a run; none of one with fewer than 16.

    >>> early_steps(1000), early_steps(10)
    ((63, 125, 250), ())
    """
    return tuple(math.ceil(max_steps / part) for part in EARLY) if max_steps >= max(EARLY) else ()
