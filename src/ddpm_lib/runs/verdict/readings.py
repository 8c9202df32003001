"""What the rules look at: curves and numbers of a run, picked out of its records once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.run_status import number
from ddpm_lib.runs.verdict.trend import Point, Trend, piece, trend

LAST_SHARE = 0.2
"""The share of a run, its last fifth, that says whether it still learns."""

FEWEST = 4
"""Validations, or logged losses, from which on a curve is judged."""


@dataclass(frozen=True)
class Readings:
    """A run's numbers.

    Attributes:
        rows: Of the metrics, by step.
        data: What about.json says of the data; empty where nothing is known.
        trivial: The loss of a denoiser that knows the mean image alone, None if unknown.
        word: How the run stands, one of `run_status.WORDS`.
        reason: Why it ended.
        evaluations: Results of `ddpm evaluate`, oldest first.
    """

    rows: Sequence[Mapping[str, Any]]
    data: Mapping[str, Any]
    trivial: float | None = None
    word: str = "none"
    reason: str = ""
    evaluations: Sequence[Mapping[str, Any]] = ()
    _curves: dict[str, list[Point]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, records: RunRecords) -> Readings:
        """Pick them out of the records of a run."""
        return cls(
            rows=records.rows,
            data=records.about.get("data") or {},
            trivial=number(records.about.get("trivial_loss")),
            word=records.status.word,
            reason=records.status.reason,
            evaluations=records.evaluations,
        )

    def curve(self, name: str) -> list[Point]:
        """Return the steps and values at which a quantity was logged."""
        if name not in self._curves:
            found = ((row["step"], number(row.get(name))) for row in self.rows if name in row)
            self._curves[name] = [(step, value) for step, value in found if value is not None]
        return self._curves[name]

    def last(self, name: str) -> float | None:
        """Return the newest value of a quantity, None where there is none."""
        points = self.curve(name)
        return points[-1][1] if points else None

    def rows_with(self, *names: str) -> list[dict[str, float]]:
        """Return steps and values of the rows that hold all of some quantities."""
        curves = [dict(self.curve(name)) for name in names]
        shared = [step for step in curves[0] if all(step in curve for curve in curves[1:])]
        return [
            {"step": step, **{name: curve[step] for name, curve in zip(names, curves)}}
            for step in shared
        ]

    @property
    def judged(self) -> str:
        """Which curve says whether the run learns: val_loss, else the training loss."""
        return "val_loss" if len(self.curve("val_loss")) >= FEWEST else "loss"

    def end_trend(self) -> Trend | None:
        """Return the trend of the judged curve over the last fifth of the run."""
        points = self.curve(self.judged)
        if len(points) < FEWEST:
            return None
        last = points[-1][0]
        return trend(piece(points, last - LAST_SHARE * last, last))

    def rate_at_end(self) -> float | None:
        """Return the mean learning rate over the last fifth, as a share of the highest one."""
        rates = self.curve("learning_rate")
        highest = max((rate for _, rate in rates), default=0.0)
        if not rates or not highest:
            return None
        begin = (1 - LAST_SHARE) * rates[-1][0]
        late = [rate for step, rate in rates if step >= begin]
        return sum(late) / len(late) / highest
