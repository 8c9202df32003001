"""Curves as text: dots of braille, eight to a letter, or plain letters where there are none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a letter, by row and column."""

LOG_FROM = 5.0
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""

DECADES = 1e4
"""The largest such ratio that is drawn; what is smaller lies on the axis."""

COLOURS = ("\x1b[36m", "\x1b[33m", "\x1b[35m", "\x1b[32m")
END = "\x1b[0m"
LETTERS = "*o+x"


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        name: What the legend calls it.
        points: Pairs of x and y, all finite, in the order of x.
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """A range of values, and where a value lies in it.

    Attributes:
        low: Its beginning.
        high: Its end, larger than `low`.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], may_be_log: bool = True) -> Axis:
        """Return the axis that holds some values."""
        low, high = min(values), max(values)
        log = may_be_log and low > 0 and high / low > LOG_FROM
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            pad = 0.5 * abs(high) or 1.0
            return cls(low - pad, high + pad)
        return cls(max(low, high / DECADES) if log else low, high, log)

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 to 1."""
        if self.log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def at(self, share: float) -> float:
        """Return the value at a place."""
        if self.log:
            return self.low * (self.high / self.low) ** share
        return self.low + (self.high - self.low) * share


class Canvas:
    """Letters of a plot, and the series that each belongs to.

    Args:
        width: Letters.
        height: Lines.
        braille: Whether a letter has 2×4 dots, else one.
    """

    def __init__(self, width: int, height: int, braille: bool = True) -> None:
        self.width, self.height = width, height
        self.across, self.down = (2, 4) if braille else (1, 1)
        self.bits = [[0] * width for _ in range(height)]
        self.owner = [[0] * width for _ in range(height)]
        self.marks: dict[tuple[int, int], str] = {}

    def dot(self, x: int, y: int, series: int) -> None:
        """Set a dot, counted from the upper left corner; outside, nothing is set."""
        column, row = x // self.across, y // self.down
        if 0 <= column < self.width and 0 <= row < self.height:
            self.bits[row][column] |= _DOTS[y % self.down][x % self.across]
            self.owner[row][column] = series

    def line(self, x0: int, y0: int, x1: int, y1: int, series: int) -> None:
        """Set the dots between two (Bresenham's in its simplest form)."""
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for k in range(steps + 1):
            x, y = x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps
            self.dot(round(x), round(y), series)

    def mark(self, x: int, y: int, series: int) -> None:
        """Put the letter of a series where a dot is."""
        self.marks[y // self.down, x // self.across] = LETTERS[series % 4]

    def lines(self, colours: bool) -> list[str]:
        """Return the text of the canvas."""
        return [self._line(row, colours) for row in range(self.height)]

    def _line(self, row: int, colours: bool) -> str:
        text = ""
        for column, (bits, owner) in enumerate(zip(self.bits[row], self.owner[row])):
            plain = LETTERS[owner % 4] if self.across == 1 else chr(BRAILLE + bits)
            letter = self.marks.get((row, column), plain if bits else " ")
            text += f"{COLOURS[owner % 4]}{letter}{END}" if colours and bits else letter
        return text if colours else text.rstrip()


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Return the means of equal groups of neighbouring points where there are more than `most`."""
    if len(points) <= most:
        return list(points)
    found = []
    for k in range(most):
        group = points[k * len(points) // most : (k + 1) * len(points) // most]
        found.append(
            (
                math.fsum(p[0] for p in group) / len(group),
                math.fsum(p[1] for p in group) / len(group),
            )
        )
    return found


def plot(
    curves: Sequence[Series],
    width: int,
    height: int,
    *,
    braille: bool = True,
    colours: bool = False,
) -> list[str]:
    """Draw curves over a common pair of axes.

    Args:
        curves: Those without points are left out.
        width: Letters of a line, axis included.
        height: Lines, axis included.
        braille: Whether the reader's encoding has braille.
        colours: Whether curves are told apart by colours too.

    Returns:
        At most `height` lines; none where there are no points.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return []
    label = 9
    canvas = Canvas(max(4, width - label - 1), max(2, height - 2), braille)
    wide, tall = canvas.width * canvas.across - 1, canvas.height * canvas.down - 1
    drawn = [thinned(curve.points, wide + 1) for curve in curves]
    axis_x = Axis.around([x for points in drawn for x, _ in points], may_be_log=False)
    axis_y = Axis.around([y for points in drawn for _, y in points])
    for k, points in enumerate(drawn):
        dots = [
            (round(axis_x.place(x) * wide), round((1 - axis_y.place(y)) * tall)) for x, y in points
        ]
        if braille and k and not colours:
            for x, y in dots:
                canvas.mark(x, y, k)
            continue
        canvas.dot(*dots[0], k)
        for (x0, y0), (x1, y1) in itertools.pairwise(dots):
            canvas.line(x0, y0, x1, y1, k)
    stroke, corner, dash = ("┤", "└", "─") if braille else ("|", "+", "-")
    lines = []
    for row, text in enumerate(canvas.lines(colours)):
        every = max(1, (canvas.height - 1) // 4)
        named = row % every == 0 or row == canvas.height - 1
        share = 1 - row / max(1, canvas.height - 1)
        tick = f"{axis_y.at(share):.3g}" if named else ""
        lines.append(f"{tick:>{label}}{stroke}{text}")
    left, right = f"{axis_x.low:,.0f}", f"step {axis_x.high:,.0f}"
    lines.append(f"{'':>{label}}{corner}{dash * canvas.width}")
    lines.append(f"{'':>{label + 1}}{left}{right:>{max(0, canvas.width - len(left))}}")
    return lines


def legend(curves: Sequence[Series], *, braille: bool = True, colours: bool = False) -> str:
    """Name the curves with the letters, or the colours, that they are drawn in."""
    named = []
    for k, curve in enumerate(curve for curve in curves if curve.points):
        mark = "━━" if braille and (colours or not k) else LETTERS[k % 4] * 2
        named.append(f"{COLOURS[k % 4]}{mark}{END}" if colours else mark)
        named[-1] += f" {curve.name}"
    return "   ".join(named)
