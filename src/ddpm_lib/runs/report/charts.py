"""The curves of a run, or of several, as plain values that the page's script draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.report.thinning import short_number, stretch_means, thin
from ddpm_lib.runs.run_status import number

SURE = 2.0
"""Bands reach so many standard errors to either side: 95 % of them hold the true value."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        label: Its name.
        x: Steps.
        y: Values, one per step.
        error: Half the width of its band, one per step, or empty.
        colour: Which of the palette's colours.
        dash: Whether it is dashed.
        smooth: Whether the reader may smooth it.
    """

    label: str
    x: tuple[int, ...]
    y: tuple[float, ...]
    error: tuple[float, ...] = ()
    colour: int = 0
    dash: bool = False
    smooth: bool = False

    def to_json(self, most: int) -> dict[str, Any]:
        """Return plain values of at most so many points."""
        kept = thin(self.y, most)
        values: dict[str, Any] = {
            "label": self.label,
            "points": len(self.y),
            "colour": self.colour,
            "dash": self.dash,
            "smooth": self.smooth,
            "x": [self.x[k] for k in kept],
            "y": [short_number(self.y[k]) for k in kept],
        }
        if self.smooth and len(kept) < len(self.y):
            values["mean"] = [short_number(v) for v in stretch_means(self.y, kept)]
        if self.error:
            values["error"] = [short_number(self.error[k]) for k in kept]
        return values


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: Names it in the page.
        title: What it shows.
        hint: How to read it.
        curves: Its lines.
        log: Whether its axis begins as a logarithmic one.
        wide: Whether it takes the whole width.
        levels: Horizontal lines, label and value.
        marks: Vertical lines, label and step.
    """

    name: str
    title: str
    hint: str
    curves: tuple[Curve, ...]
    log: bool = False
    wide: bool = False
    levels: tuple[tuple[str, float], ...] = ()
    marks: tuple[tuple[str, int], ...] = ()

    def to_json(self, most: int) -> dict[str, Any]:
        """Return plain values, with at most so many points per line."""
        return {
            "name": self.name,
            "title": self.title,
            "log": self.log,
            "levels": [{"label": label, "y": value} for label, value in self.levels],
            "marks": [{"label": label, "x": step} for label, step in self.marks],
            "curves": [curve.to_json(most) for curve in self.curves],
        }


_QUARTERS = ("least noise", "little noise", "more noise", "most noise")


def run_charts(records: RunRecords, marks: Sequence[tuple[str, int]] = ()) -> list[Chart]:
    """Return the charts of one run that have something to show.

    Args:
        records: The run's records.
        marks: Steps to mark in the charts of the losses, with a word.
    """
    rows = records.rows
    loss = [
        curve(rows, "loss", "training, as it goes", 0, smooth=True),
        curve(rows, "val_loss", "held-out images", 1, error="val_loss_error"),
        curve(rows, "train_fixed_loss", "training images, same noise", 2),
        curve(rows, "val_loss_model", "held-out, last weights", 3, dash=True),
    ]
    quarters = [
        curve(rows, f"loss_q{k}", f"{k}: {word}", k - 1, smooth=True)
        for k, word in enumerate(_QUARTERS, 1)
    ]
    limit = number(records.option("max_grad_norm"))
    clip = (("clipped above", limit),) if limit else ()
    copies = [curve(rows, "sample_copies", "share of samples that are copies", 5)]
    looks = [
        curve(rows, "sample_spread", "variety", 4),
        curve(rows, "sample_grain", "grain", 6),
    ]
    found = [
        Chart("loss", "Loss", _LOSS, _shown(loss), log=True, wide=True, marks=tuple(marks)),
        Chart("gap", "Gap: held-out − training", _GAP, _shown([gap(rows)]), levels=(("0", 0.0),)),
        Chart("quarters", "Loss by quarter of t", _BY_QUARTER, _shown(quarters), log=True),
        Chart("copies", "Copies of training images", _COPIES, _shown(copies)),
        Chart("looks", "Samples against data", _LOOKS, _shown(looks), True,
              levels=(("data", 1.0),)),
        Chart("grad_norm", "Gradient norm", _NORM, _shown([_plain(rows, "grad_norm")]), True,
              levels=clip),
        Chart("learning_rate", "Learning rate", "", _shown([_plain(rows, "learning_rate", 4)])),
        Chart("images_per_second", "Images per second", "", _shown([_plain(rows, _SPEED, 6)])),
    ]  # fmt: skip
    return [chart for chart in found if chart.curves]


_LOSS = (
    "Held-out images are not trained on. All but the first line are under the same noise every"
    " time. Best: the lowest held-out loss; since: the verdict holds from there."
)
_GAP = (
    "Same noise on both sides, less what the two sets differ by anyway; the band is ± 2 standard"
    " errors. Zero inside the band: no over-fitting seen."
)
_BY_QUARTER = (
    "t from 0 (clean) to T (noise) in four parts: form and colour come from the noisy ones."
)
_COPIES = "A sample is a copy where one training image is three times nearer than the next."
_LOOKS = (
    "1 is like data. Variety, how much two samples differ: 0 is all alike. Grain, how rough samples"
    " are from pixel to pixel: far above 1 is noise, below 1 blur."
)
_NORM = "Spikes that do not come back: the learning rate is too high."
_SPEED = "images_per_second"

_COMPARED = (
    ("val_loss", "Loss of held-out images", True),
    ("loss", "Training loss", True),
    ("sample_copies", "Copies of training images", False),
    ("grad_norm", "Gradient norm", True),
    ("learning_rate", "Learning rate", False),
    ("images_per_second", "Images per second", False),
)


def comparison_charts(runs: Sequence[tuple[str, RunRecords]]) -> list[Chart]:
    """Return charts with one line per run.

    Args:
        runs: Names and records.
    """
    found = []
    for name, title, log in _COMPARED:
        error = "val_loss_error" if name == "val_loss" else ""
        lines = [
            curve(records.rows, name, label, k, error=error, smooth=name == "loss")
            for k, (label, records) in enumerate(runs)
        ]
        wide = name == "val_loss"
        found.append(Chart(name, title, _BAND if wide else "", _shown(lines), log, wide))
        if wide:
            gaps = [gap(records.rows, label, k) for k, (label, records) in enumerate(runs)]
            title = "Gap: held-out − training"
            found.append(Chart("gap", title, _GAP, _shown(gaps), levels=(("0", 0.0),)))
    return [chart for chart in found if chart.curves]


_BAND = (
    "The bands are ± 2 standard errors. Runs can be compared where they hold out the same images."
)


def _shown(curves: Iterable[Curve]) -> tuple[Curve, ...]:
    return tuple(one for one in curves if one.y)


def _plain(rows: Sequence[dict[str, Any]], name: str, colour: int = 0) -> Curve:
    return curve(rows, name, name.replace("_", " "), colour, smooth=name == "grad_norm")


def curve(
    rows: Sequence[dict[str, Any]],
    name: str,
    label: str,
    colour: int = 0,
    *,
    error: str = "",
    dash: bool = False,
    smooth: bool = False,
) -> Curve:
    """Return what the rows say of one quantity; what is no finite number is left out.

    Args:
        rows: Of metrics.jsonl.
        name: The quantity.
        label: Its name in the chart.
        colour: Which of the palette's.
        error: Name of its standard error, if it has one.
        dash: Whether the line is dashed.
        smooth: Whether the reader may smooth it.
    """
    points = [(row["step"], y, row) for row in rows if (y := number(row.get(name))) is not None]
    errors = [number(row.get(error)) or 0.0 for _, _, row in points] if error else []
    return Curve(
        label,
        tuple(x for x, _, _ in points),
        tuple(y for _, y, _ in points),
        tuple(SURE * e for e in errors) if any(errors) else (),
        colour,
        dash,
        smooth,
    )


def gap(rows: Sequence[dict[str, Any]], label: str = "gap", colour: int = 1) -> Curve:
    """Return how far held-out images are above training images, less what the two sets differ by
    anyway where that was measured (`val_gap_adjusted`).
    """
    points = []
    for row in rows:
        value, error = number(row.get("val_gap_adjusted")), row.get("val_gap_adjusted_error")
        if value is None and (raw := number(row.get("val_gap"))) is not None:
            value = raw - (number(row.get("val_gap_start")) or 0.0)
            error = row.get("val_gap_error")
        if value is not None:
            points.append((row["step"], value, number(error) or 0.0))
    errors = tuple(SURE * e for _, _, e in points)
    x, y = tuple(p[0] for p in points), tuple(p[1] for p in points)
    return Curve(label, x, y, errors if any(errors) else (), colour)
