"""Curves as a small SVG for a page of HTML: no library, no script, legible on light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from ddpm_lib.core.markup import escape

COLOURS = ("#4c8dd6", "#e0813b", "#3f9e5a", "#a06cc8", "#c9a227")
"""Of the curves, in turn; all of them show on white and on black."""

MOST_POINTS = 400
"""Points of a curve; of longer ones groups are averaged."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 26, 24

Points = Sequence[tuple[float, float]]


def curves_svg(series: Mapping[str, Points], *, width: int = 440, height: int = 230) -> str:
    """Draw curves over a common axis, logarithmic in y where all values are positive.

    Args:
        series: Points (x, y) by the curve's name; values that are no finite numbers are left out.
        width: In pixels.
        height: In pixels.

    Returns:
        An SVG element; an empty text where there is nothing to draw.
    """
    known = {name: thinned(finite(points)) for name, points in series.items()}
    known = {name: points for name, points in known.items() if points}
    if not known:
        return ""
    xs = [x for points in known.values() for x, _ in points]
    ys = [y for points in known.values() for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > 2
    to_x = _Scale(min(0.0, *xs), max(xs), _LEFT, width - _RIGHT, logarithmic=False)
    to_y = _Scale(*_padded(ys, logarithmic), height - _BOTTOM, _TOP, logarithmic=logarithmic)
    parts = [_ticks_y(ys, to_y, width, logarithmic), _ticks_x(max(xs), to_x, width, height)]
    for k, (name, points) in enumerate(known.items()):
        colour = COLOURS[k % len(COLOURS)]
        parts.append(_line([(to_x(x), to_y(y)) for x, y in points], colour))
        parts.append(
            f'<text x="{_LEFT + 4 + k * 118}" y="14" fill="{colour}" font-weight="600">'
            f"{escape(name, 20)}</text>"
        )
    return (
        f'<svg role="img" aria-label="{escape(", ".join(known))}" width="{width}"'
        f' height="{height}" viewBox="0 0 {width} {height}" style="max-width:100%;'
        f'font:11px sans-serif">{"".join(parts)}</svg>'
    )


def finite(points: Points) -> list[tuple[float, float]]:
    """Return the points whose coordinates are finite numbers."""
    return [
        (float(x), float(y))
        for x, y in points
        if isinstance(x, (int, float))
        and isinstance(y, (int, float))
        and math.isfinite(x)
        and math.isfinite(y)
    ]


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points: means of groups of neighbours, the last group with the end.

    >>> thinned([(0, 1), (1, 3), (2, 5), (3, 7)], 2)
    [(0.5, 2.0), (2.5, 6.0)]
    """
    size = math.ceil(len(points) / most) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    if size == 1:
        return list(points)
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


class _Scale:
    """From values to pixels."""

    def __init__(
        self, low: float, high: float, first: float, last: float, *, logarithmic: bool
    ) -> None:
        self.logarithmic = logarithmic
        self.low, self.high = (math.log(low), math.log(high)) if logarithmic else (low, high)
        self.first, self.last = first, last

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        place = math.log(value) if self.logarithmic else value
        share = (place - self.low) / ((self.high - self.low) or 1.0)
        return self.first + share * (self.last - self.first)


def _padded(ys: list[float], logarithmic: bool) -> tuple[float, float]:
    low, high = min(ys), max(ys)
    if logarithmic:
        return low / 1.1, high * 1.1
    edge = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - edge, high + edge


def _line(places: list[tuple[float, float]], colour: str) -> str:
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places
    )
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
    return line + (dots if len(places) <= 25 else "")


def _ticks_x(last: float, to_x: _Scale, width: int, height: int) -> str:
    marks = round_numbers(0.0, last, 5)

    def anchor(place: float) -> str:
        return "middle" if place < width - 24 else "end"  # whole, inside the frame

    return "".join(
        f'<text x="{to_x(x):.1f}" y="{height - 8}" text-anchor="{anchor(to_x(x))}"'
        f' fill="currentColor" opacity=".75">{_number(x)}</text>'
        for x in marks
    )


def _ticks_y(ys: list[float], to_y: _Scale, width: int, logarithmic: bool) -> str:
    low, high = _padded(ys, logarithmic)
    marks = _powers(low, high) if logarithmic else round_numbers(low, high, 4)
    return "".join(
        f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{to_y(y):.1f}" y2="{to_y(y):.1f}"'
        f' stroke="currentColor" opacity=".15"/><text x="{_LEFT - 5}" y="{to_y(y) + 4:.1f}"'
        f' text-anchor="end" fill="currentColor" opacity=".75">{_number(y)}</text>'
        for y in marks
    )


def round_numbers(low: float, high: float, about: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten in a range, about so many.

    >>> round_numbers(0, 900, 5)
    [0.0, 200.0, 400.0, 600.0, 800.0]
    """
    span = high - low
    if span <= 0:
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten in a range; fewer where these are many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        marks = [d * 10.0**e for e in exponents for d in digits]
        found = [y for y in marks if low <= y <= high]
        if len(found) <= 6:
            break
    apart = found[:1]
    for before, mark in pairwise(found):
        if len(found) <= 8 or math.log10(mark / before) >= 1:
            apart.append(mark)
    return apart[:: max(1, len(apart) // 8)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
