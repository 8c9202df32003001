"""Slopes and noise of curves, from their own points; nothing is assumed of the noise but that half
of the points are good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

Point = tuple[float, float]
"""A step and a value."""

MOST = 60
"""Points that a slope is taken from; longer curves are averaged to so many."""

_SIGMA = 1.4826  # median absolute deviation to standard deviation, of a normal distribution
_Z = 1.96  # two-sided 95 %


@dataclass(frozen=True)
class Trend:
    """A straight line through a piece of a curve.

    Attributes:
        slope: Change per step.
        low, high: Ends of its 95 % interval.
        first, last: Steps at the ends of the piece.
        level: Value of the line in the middle of the piece.
        count: Points that it was taken from.
    """

    slope: float
    low: float
    high: float
    first: float
    last: float
    level: float
    count: int

    @property
    def falls(self) -> bool:
        """Whether the curve falls beyond doubt."""
        return self.high < 0

    @property
    def rises(self) -> bool:
        """Whether the curve rises beyond doubt."""
        return self.low > 0

    @property
    def change(self) -> float:
        """Change over the piece, relative to its level: −0.02 is a fall by 2 %."""
        return self.slope * (self.last - self.first) / self.level if self.level else 0.0


def trend(points: Sequence[Point]) -> Trend | None:
    """Fit the line of Theil and Sen: the median of the slopes of all pairs of points.

    The interval is that of Sen 1968 (JASA 63), from the variance of Kendall's statistic. Where
    residuals of neighbours go together, as those of an averaged network do, the variance grows by
    (1 + ρ) / (1 − ρ) with their correlation ρ (Hamed & Rao 1998, for lag one).

    Args:
        points: At least three, by step.
    """
    points = thinned(points, MOST)
    n = len(points)
    if n < 3:
        return None
    slopes = sorted(
        (points[j][1] - points[i][1]) / (points[j][0] - points[i][0])
        for i in range(n)
        for j in range(i + 1, n)
    )
    slope = median(slopes)
    level = median(y - slope * x for x, y in points)
    rho = _lag_one([y - slope * x - level for x, y in points])
    spread = n * (n - 1) * (2 * n + 5) / 18 * (1 + rho) / (1 - rho)
    reach, count = _Z * math.sqrt(spread) + 1, len(slopes)  # Kendall's statistic is discrete
    low = slopes[max(0, math.floor((count - reach) / 2))]
    high = slopes[min(count - 1, math.ceil((count + reach) / 2))]
    first, last = points[0][0], points[-1][0]
    return Trend(slope, low, high, first, last, level + slope * (first + last) / 2, n)


def _lag_one(residuals: Sequence[float]) -> float:
    """Return the correlation of neighbours in [0, 0.9]; 0 for fewer than eight, which tell none."""
    total = sum(r * r for r in residuals)
    if len(residuals) < 8 or total == 0:
        return 0.0
    return min(0.9, max(0.0, sum(a * b for a, b in pairwise(residuals)) / total))


def curve_noise(points: Sequence[Point]) -> float | None:
    """Return the standard deviation of a curve about itself, from how far each point lies from the
    line through its neighbours; None with fewer than five points.

    Args:
        points: By step.
    """
    if len(points) < 5:
        return None
    off = []
    for (x0, y0), (x1, y1), (x2, y2) in zip(points, points[1:], points[2:]):
        share = (x1 - x0) / (x2 - x0)
        scale = math.sqrt(1 + share**2 + (1 - share) ** 2)
        off.append(abs(y1 - y0 - share * (y2 - y0)) / scale)
    return _SIGMA * median(off)


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Average neighbours, so that at most so many points are left."""
    n = len(points)
    if n <= most:
        return list(points)
    groups = [points[n * k // most : n * (k + 1) // most] for k in range(most)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def piece(points: Sequence[Point], begin: float, end: float, least: int = 5) -> list[Point]:
    """Return the points from one step to another, at least so many where there are.

    Args:
        points: By step.
        begin: The first step; points before it are added where there are too few.
        end: The last step.
        least: How many points there should be.
    """
    until = [point for point in points if point[0] <= end]
    inside = sum(point[0] >= begin for point in until)
    return until[-max(inside, least) :]
