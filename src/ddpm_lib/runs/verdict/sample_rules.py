"""What the samples of a run, and its data, show: one function per finding."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.runs.run_status import number
from ddpm_lib.runs.verdict.curve_rules import first_of_last, parted
from ddpm_lib.runs.verdict.findings import Evidence, Finding
from ddpm_lib.runs.verdict.readings import Readings

LIKELY, MOST = 0.02, 0.5
"""Half of the samples are copies, in two grids, each with at most this probability by chance: few
samples beside fewer held-out images seldom reach the level above.
"""

MANY = 1 / 3
"""So many samples are copies, in two grids, where the held-out loss is several times the other."""

CAST_ERRORS = 4.0
"""Standard errors that a sample mean lies off: one channel of three in 10,000 grids by chance."""

LEAST_CAST = 0.05
"""A shift that small, of the whole range from black to white, says nothing: guidance, and classes
that are drawn in equal numbers, shift means by up to 0.04.
"""

ALIKE = 0.4
"""Samples that differ by less than this share of what training images differ by are alike."""

FLAT_IMAGE = 0.03
"""A standard deviation of the values below this, eight of 255, is no contrast."""


def copying(r: Readings) -> Finding | None:
    """Samples are copies of training images: in all newest grids, most of them in the two newest
    ones, many of them there where the losses have parted, or in the last evaluation.
    """
    grids = r.rows_with("sample_copies", "sample_copies_p", "sample_n")
    first = first_of_last([row["sample_copies_p"] <= COPY_ALARM for row in grids])
    if first is None:
        likely = [
            row["sample_copies_p"] <= LIKELY and row["sample_copies"] >= MOST for row in grids
        ]
        first = first_of_last(likely)
        if first is not None and len(grids) - first < 2:
            first = None
    apart = parted(r) if first is None else None
    if apart is not None:  # one held-out image tells no copies from chance
        first = first_of_last([row["sample_copies"] >= MANY for row in grids])
        if first is not None and len(grids) - first < 2:
            first = None
    seen, since = [], None
    if first is not None:
        last, since = grids[-1], int(grids[first]["step"])
        share, n = last["sample_copies"], int(last["sample_n"])
        step = int(last["step"])
        seen.append(Evidence("copies", share, reference=n, step=step))
        seen.append(Evidence("copies_p", last["sample_copies_p"], reference=COPY_ALARM))
        seen += [] if apart is None else apart.evidence
    p = _evaluated_copies(r.evaluations[-1]) if r.evaluations else None
    if p is not None and p <= COPY_ALARM:
        seen.append(Evidence("evaluated_copies_p", p, reference=COPY_ALARM))
    return Finding("copying", since, tuple(seen)) if seen else None


def _evaluated_copies(evaluation: Mapping[str, object]) -> float | None:
    """Return the smallest p-value of an evaluation's tests for copies."""
    scores = evaluation.get("scores")
    found = [
        number(score.get("value"))
        for score in (scores if isinstance(scores, list) else [])
        if isinstance(score, dict)
        and str(score.get("name")).startswith("copies_")
        and str(score.get("name")).endswith("/p")
    ]
    return min((p for p in found if p is not None), default=None)


def colour_cast(r: Readings) -> Finding | None:
    """The mean of a channel lies off that of the data in the two newest grids, to one side."""
    means, spreads = r.data.get("mean"), r.data.get("mean_spread")
    if not isinstance(means, list) or not isinstance(spreads, list):
        return None
    seen = []
    for c, (mean, spread) in enumerate(zip(map(number, means), map(number, spreads))):
        grids = r.rows_with(f"sample_mean_{c}", "sample_n")
        if mean is None or not spread or len(grids) < 2:
            continue
        errors = [spread / math.sqrt(row["sample_n"]) for row in grids]
        off = [row[f"sample_mean_{c}"] - mean for row in grids]
        marks = [
            abs(o) > max(LEAST_CAST, CAST_ERRORS * error) and (o > 0) == (off[-1] > 0)
            for o, error in zip(off, errors)
        ]
        first = first_of_last(marks)
        if first is not None and len(marks) - first >= 2:
            step = int(grids[first]["step"])
            channel = _channel(c, len(means))
            seen.append(Evidence("cast", mean + off[-1], errors[-1], mean, step, channel))
    since = [one.step for one in seen if one.step is not None]
    return Finding("colour_cast", min(since), tuple(seen)) if seen else None


def _channel(c: int, count: int) -> str:
    names = ("red", "green", "blue") if count in (3, 4) else ()
    return names[c] if c < len(names) else "brightness" if count == 1 else f"channel {c + 1}"


def collapsed(r: Readings) -> Finding | None:
    """Samples are all alike in the two newest grids, and the loss does not fall any more."""
    grids = r.rows_with("sample_spread")
    first = first_of_last([row["sample_spread"] < ALIKE for row in grids])
    end = r.end_trend()
    if first is None or len(grids) - first < 2 or end is None:
        return None
    if end.falls and -end.change >= STILL_FALLING:
        return None
    last = grids[-1]
    seen = Evidence("spread", last["sample_spread"], reference=1.0, step=int(last["step"]))
    return Finding("collapsed", int(grids[first]["step"]), (seen,))


STILL_FALLING = 0.05
"""While the loss falls by this share in a fifth of the run, samples may still part."""


def wrong_range(r: Readings) -> Finding | None:
    """The values of the images have next to no contrast, or are three at most and not black and
    white.
    """
    std, mean = r.data.get("std"), r.data.get("mean")
    if not isinstance(std, list) or not isinstance(mean, list) or not std:
        return None
    highest = max((number(s) or 0.0 for s in std), default=0.0)
    mean_all = sum(number(m) or 0.0 for m in mean) / len(mean)
    levels = number(r.data.get("levels"))
    ends = (number(r.data.get("black")) or 0.0) + (number(r.data.get("white")) or 0.0)
    few = levels is not None and levels <= 3 and ends < 0.999
    if highest >= FLAT_IMAGE and not few:
        return None
    seen = [Evidence("contrast", highest, reference=FLAT_IMAGE), Evidence("data_mean", mean_all)]
    if levels is not None:
        seen.append(Evidence("levels", levels))
    return Finding("wrong_range", None, tuple(seen))


def classes_unused(r: Readings) -> Finding | None:
    """The data have several classes, which the network is not told."""
    names, used = r.data.get("class_names"), r.data.get("classes_used")
    if used is not False or not isinstance(names, list) or len(names) < 2:
        return None
    return Finding("classes_unused", None, (Evidence("classes", len(names)),))
