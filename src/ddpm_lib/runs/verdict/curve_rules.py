"""What the curves of a run show: one function per finding."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ddpm_lib.runs.verdict.findings import Evidence, Finding
from ddpm_lib.runs.verdict.readings import FEWEST, LAST_SHARE, Readings
from ddpm_lib.runs.verdict.trend import (
    MOST,
    Point,
    Trend,
    curve_noise,
    piece,
    thinned,
    trend,
)

LEAST_FALL = 0.01
"""A fall of the loss by less than this share in a fifth of the run is called flat, however sure."""

HIDDEN = 0.1
"""A change by more than this share in a fifth of the run that may still be chance is not called
flat, nor is any with twice this share as its error: the curve is too noisy to say.
"""

DECAYED = 0.4
"""A mean learning rate in the last fifth below this share of the highest is called decayed (wsd's
cool-down over just that fifth has a third); where the curve fell before, at more than half of the
highest or before a cool-down, the decay is the reason that it falls no more.
"""

HELD = 0.9
"""A rate that is at this share of the highest until the second half of a run has a cool-down."""

ERRORS = 3.0
"""Standard errors that a difference needs to be taken for real."""

IN_A_ROW = 3
"""Consecutive validations that have to show it."""

SPIKE = 3.0
"""A logged loss so many times as high as the median of those around it is a spike."""

AROUND = 4
"""Logged losses on each side that a loss is compared with."""

WANDER = 0.05
"""Scatter of the weights' held-out loss, or its height above that of their average, as a share of
it, from which on weights that have learned nothing jump about; where the rate is right the scatter
is about 0.01, and the weights are no worse than their average.
"""

PARTED = 2.5
"""A held-out loss so many times that of the training images, against what it was at first, is no
matter of which images were held out.
"""

LAG = 0.5
"""An average that stands where the weights stood this share of the run ago is dead."""


def too_little(r: Readings) -> Finding | None:
    """Too few validations and logged losses to judge by."""
    counts = [len(r.curve("val_loss")), len(r.curve("loss"))]
    if max(counts) >= FEWEST:
        return None
    names = ("validations", "logged_losses")
    evidence = tuple(Evidence(n, c, reference=FEWEST) for n, c in zip(names, counts))
    return Finding("too_little", None, evidence)


def progress(r: Readings) -> Finding | None:
    """Whether the curve still falls; if not, whether the learning rate is the reason. A fall that
    came with the cool-down alone is none: it says nothing of longer training.
    """
    end = r.end_trend()
    if end is None:
        return None
    rate, name, error = r.rate_at_end(), r.judged, _error_of(end)
    seen = [_course(end, name)]
    if rate is not None:
        seen.append(Evidence("rate", rate))
    decayed = rate is not None and rate < DECAYED
    if end.falls and -end.change >= LEAST_FALL:
        cooled = _flat_until_cooldown(r) if decayed else None
        if cooled is None:
            return Finding("learning", None, tuple(seen))
        return Finding("flat", int(cooled.first), (*seen, _of_cooldown(cooled, name)))
    before = _fall_at_full_rate(r)
    if decayed and before is not None and before >= LEAST_FALL:
        return Finding("flat_rate", None, (*seen, Evidence("fall_before", before, text=name)))
    unsure = end.low <= 0.0 <= end.high
    if unsure and (abs(end.change) >= HIDDEN or error >= 2 * HIDDEN):
        return Finding("too_little", None, tuple(seen))
    if name == "loss" and end.rises and end.change >= LEAST_FALL:
        return Finding("too_little", None, tuple(seen))  # by chance, or `_rising` says more
    return Finding("flat", int(end.first), tuple(seen))


def _error_of(end: Trend) -> float:
    """Return the standard error of a trend's change, on the side of the interval that decides
    whether it moves at all; the other may be far longer.
    """
    side = end.high - end.slope if end.slope < 0 else end.slope - end.low
    return side / 1.96 * (end.last - end.first) / end.level if end.level else 0.0


def _course(end: Trend, name: str) -> Evidence:
    """Return by how much a curve fell or rose at the end."""
    error = _error_of(end)
    return Evidence("fall", -end.change, error=error, step=int(end.first), text=name)


def _rising(r: Readings) -> Evidence | None:
    """Say by how much the training loss rises at the end, for sure, in a run without validations:
    of held-out images that is over-fitting, or chance (`_rise`).
    """
    end = r.end_trend()
    if end is None or r.judged != "loss" or end.change < LEAST_FALL:
        return None
    return _course(end, "loss") if end.change > ERRORS * _error_of(end) else None


def _fall_at_full_rate(r: Readings) -> float | None:
    """Return by how much the curve fell in a fifth of the run before the rate was halved, or before
    its cool-down; None where it did not for sure, or was not seen.
    """
    rates, points = r.curve("learning_rate"), r.curve(r.judged)
    if not rates or len(points) < FEWEST:
        return None
    until = _cooldown(rates)
    if until is None:
        highest = max(rate for _, rate in rates)
        until = max(step for step, rate in rates if rate >= min(highest, highest / 2))
    fifth = LAST_SHARE * points[-1][0]
    for stretch in (fifth, 2 * fifth):  # the longer one where few points leave it unsure
        found = trend(piece(points, until - stretch, until))
        if found is None:
            return None
        fall = -found.change * min(1.0, fifth / (found.last - found.first))
        if found.falls or fall < LEAST_FALL:
            return fall if found.falls else None
    return None


def _cooldown(rates: Sequence[Point]) -> float | None:
    """Return the last step before a cool-down: the rate is high until the second half of the run;
    None where it falls from early on.
    """
    highest = max(rate for _, rate in rates)
    until = max(step for step, rate in rates if rate >= min(highest, HELD * highest))
    return until if until >= rates[-1][0] / 2 else None


def _flat_until_cooldown(r: Readings) -> Trend | None:
    """Return the trend of the two fifths of a run before its cool-down, where the curve surely fell
    by less than `LEAST_FALL` in a fifth of the run; None where it fell, or that is not sure.
    """
    points, until = r.curve(r.judged), _cooldown(r.curve("learning_rate"))
    if until is None:
        return None
    fifth = LAST_SHARE * points[-1][0]
    found = trend(piece(points, until - 2 * fifth, until))
    if found is None or not found.level:
        return None
    return found if -found.low * fifth / found.level < LEAST_FALL else None


def _of_cooldown(before: Trend, name: str) -> Evidence:
    """Return what shows that a fall came with the cool-down."""
    return Evidence("cooldown_fall", -before.change, step=int(before.last), text=name)


def noise(r: Readings) -> Finding | None:
    """The training loss is not below that of a denoiser that knows nothing but the mean image."""
    points = r.curve("loss") or r.curve("val_loss")
    if not points or r.trivial is None:
        return None
    late = [value for step, value in points if step >= (1 - LAST_SHARE) * points[-1][0]]
    level = sum(late) / len(late)
    if level < r.trivial * (1 - LEAST_FALL):
        return None
    seen = [Evidence("trivial", level, reference=r.trivial, step=int(points[-1][0]))]
    grain = r.last("sample_grain")
    if grain is not None:
        seen.append(Evidence("grain", grain, reference=1.0))
    return Finding("noise", None, tuple(seen))


def overfitting(r: Readings) -> Finding | None:
    """The held-out loss rises from its minimum, or the gap opens while it does not fall, or the two
    losses are several times apart.
    """
    found = [one for one in (_rise(r), _gap(r), parted(r)) if one is not None]
    if not found:
        return None
    since = min(one.since for one in found if one.since is not None)
    return Finding("overfitting", since, tuple(seen for one in found for seen in one.evidence))


def _rise(r: Readings) -> Finding | None:
    points = r.curve("val_loss")
    scatter = curve_noise(points)
    if scatter is None:
        return None
    levels = [  # a single low point is no minimum, a single high one no rise
        (points[k][0], median(y for _, y in points[k - 1 : k + 2]))
        for k in range(1, len(points) - 1)
    ]
    lowest = min(levels, key=lambda level: level[1])
    late = [value for step, value in levels if step > lowest[0]][-IN_A_ROW:]
    if len(late) < IN_A_ROW or min(late) - lowest[1] <= ERRORS * scatter:
        return None
    rise = late[-1] - lowest[1]
    error = r.last("val_gap_adjusted_error") or r.last("val_gap_error")
    if rise <= (2 * error if error else 2 * LEAST_FALL * lowest[1]):
        return None  # sure of these images, but not of others of their kind
    step, now = int(lowest[0]), int(points[-1][0])
    evidence = Evidence("rise", rise / lowest[1], scatter / lowest[1], reference=step, step=now)
    return Finding("overfitting", step, (evidence,))


def _gap(r: Readings) -> Finding | None:
    end = r.end_trend()
    if end is None or (end.falls and -end.change >= LEAST_FALL):
        return None
    gaps = gap_curve(r)
    scatter = curve_noise([(step, value) for step, value, _ in gaps]) or 0.0
    first = first_of_last([value > ERRORS * max(error, scatter) for _, value, error in gaps])
    if first is None or len(gaps) - first < IN_A_ROW:
        return None
    _, value, error = gaps[-1]
    seen = Evidence("gap", value, error, reference=r.last("train_fixed_loss"), step=gaps[-1][0])
    return Finding("overfitting", gaps[first][0], (seen,))


def parted(r: Readings) -> Finding | None:
    """The held-out loss has become several times that of the training images under the same noise.

    One held-out image may be harder than the others, but not more and more so: this needs no error,
    which one image does not have.
    """
    rows = r.rows_with("val_loss", "train_fixed_loss")
    ratios = [row["val_loss"] / max(row["train_fixed_loss"], 1e-12) for row in rows]
    first = first_of_last([ratio >= PARTED * max(1.0, ratios[0]) for ratio in ratios])
    if first is None or len(ratios) - first < IN_A_ROW:
        return None
    step = int(rows[first]["step"])
    seen = Evidence("parted", ratios[-1], reference=ratios[0], step=int(rows[0]["step"]))
    return Finding("overfitting", step, (seen,))


def gap_curve(r: Readings) -> list[tuple[int, float, float]]:
    """Return step, gap and its error, the gap without what the two sets differ by anyway."""
    rows = r.rows_with("val_gap_adjusted", "val_gap_adjusted_error")
    if rows:
        names = ("step", "val_gap_adjusted", "val_gap_adjusted_error")
        return [(int(row[names[0]]), row[names[1]], row[names[2]]) for row in rows]
    start = r.last("val_gap_start") or 0.0
    rows = r.rows_with("val_gap", "val_gap_error")
    return [(int(row["step"]), row["val_gap"] - start, row["val_gap_error"]) for row in rows]


def first_of_last(marks: Sequence[bool]) -> int | None:
    """Return where the last unbroken row of marks that reaches the end begins; None if there is
    none.
    """
    k = len(marks)
    while k and marks[k - 1]:
        k -= 1
    return k if k < len(marks) else None


def unstable(r: Readings) -> Finding | None:
    """Training has diverged, its loss jumps again and again after the warm-up, or it rises."""
    if r.word == "failed" and r.reason.partition(":")[0] == "DivergedError":
        return Finding("unstable", int(r.rows[-1]["step"]) if r.rows else None, (_diverged(r),))
    points = r.curve("loss")
    spikes = [step for step, _ in _spikes(points[len(points) // 10 :])]
    worse, wander, rising = _ends_high(points), _wanders(r), _rising(r)
    if len(spikes) < IN_A_ROW and worse is None and wander is None and rising is None:
        return None
    seen = [Evidence("spikes", len(spikes), reference=SPIKE, step=int(spikes[0]))] if spikes else []
    since = int(spikes[0]) if spikes else None
    if worse is not None:
        lowest, now = worse
        seen.append(Evidence("loss_back", now[1], reference=lowest[1], step=int(lowest[0])))
        since = int(lowest[0]) if since is None else min(since, int(lowest[0]))
    seen += [] if wander is None else [wander]
    if rising is not None:
        seen.append(rising)
        since = rising.step if since is None else since
    rate = r.last("learning_rate")
    if rate is not None:
        seen.append(Evidence("learning_rate", rate))
    return Finding("unstable", since, tuple(seen))


def _wanders(r: Readings) -> Evidence | None:
    """Say how far the weights jump where they have learned nothing: the scatter of their held-out
    loss, whose images and noise are always the same, or by how much it is above that of their
    average, which is better than weights that jump about it (Polyak & Juditsky 1992).
    """
    rows = r.rows_with("val_loss", "val_loss_model")
    late = [(row["step"], row["val_loss_model"]) for row in rows[len(rows) // 2 :]]
    scatter = curve_noise(late)
    if scatter is None or noise(r) is None:
        return None
    averages = [row["val_loss"] for row in rows[len(rows) // 2 :]]
    above = median(value - average for (_, value), average in zip(late, averages))
    share = max(scatter, above) / median(averages)
    return Evidence("wander", share, reference=WANDER) if share > WANDER else None


def _diverged(r: Readings) -> Evidence:
    return Evidence("diverged", len(r.rows), step=int(r.rows[-1]["step"]) if r.rows else None)


def _spikes(points: Sequence[Point]) -> list[Point]:
    """Return the points that stand out of those around them."""
    found = []
    for k, (step, value) in enumerate(points):
        near = [y for _, y in [*points[max(0, k - AROUND) : k], *points[k + 1 : k + 1 + AROUND]]]
        if len(near) >= AROUND and value > SPIKE * median(near):
            found.append((step, value))
    return found


def _ends_high(points: Sequence[Point]) -> tuple[Point, Point] | None:
    """Return the lowest and the last point where the training loss ends far above what it was: the
    median of the last fifth against the lowest median of as many in a row.
    """
    points = thinned(points, MOST)
    width = max(3, len(points) // 5)
    if len(points) < 2 * width:
        return None
    levels = [
        (points[k + width // 2][0], median(y for _, y in points[k : k + width]))
        for k in range(len(points) - width + 1)
    ]
    lowest = min(levels, key=lambda level: level[1])
    return (lowest, levels[-1]) if levels[-1][1] > 2 * lowest[1] else None


def dead_average(r: Readings) -> Finding | None:
    """The average stands where the trained weights stood long ago."""
    rows = r.rows_with("val_loss", "val_loss_model")
    if len(rows) < 2:
        return None
    now = rows[-1]
    passed = (
        next(row["step"] for row in rows if row["val_loss_model"] <= now["val_loss"])
        if any(row["val_loss_model"] <= now["val_loss"] for row in rows)
        else now["step"]
    )
    scatter = curve_noise([(row["step"], row["val_loss_model"]) for row in rows]) or 0.0
    behind = now["val_loss"] - now["val_loss_model"]
    if now["step"] - passed < LAG * now["step"] or behind <= ERRORS * scatter:
        return None
    seen = Evidence(
        "average",
        now["val_loss"],
        r.last("val_loss_error"),
        reference=now["val_loss_model"],
        step=int(passed),
    )
    return Finding("dead_average", int(passed), (seen,))
