"""Facts of a set of images as values, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddpm_lib.data.auditing.copies import Search
from ddpm_lib.data.names import Names


@dataclass(frozen=True)
class ClassCount:
    """A class, how many images it has, and how many are left without the dropped ones."""

    name: str
    images: int
    left: int


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some numbers."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        """Return those of some values; zeros where there are none."""
        if not len(values):
            return cls(0.0, 0.0, 0.0)
        return cls(float(values.min()), float(np.median(values)), float(values.max()))


@dataclass(frozen=True)
class CropLoss:
    """What a centre crop to the training frame cuts off.

    Attributes:
        frame: Height and width of the frame, or (1, 1) for a square of any size.
        each: Share of the area per image, float (n,).
        mean: Its mean.
        total: Share of all pixels of the set together.
        worst: Rows of the images that lose most.
    """

    frame: tuple[int, int]
    each: np.ndarray
    mean: float
    total: float
    worst: tuple[int, ...]


@dataclass(frozen=True)
class Colours:
    """Values of the set.

    Attributes:
        least: The smallest value there is, 0 … 255.
        most: The largest.
        mean: Of each channel, in [0, 1].
        std: Of each channel, in [0, 1].
        sigma: Standard deviation of all values in [-1, 1], about their mean per channel: σ_data.
        root: The same about 0: the root mean square.
    """

    least: int
    most: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sigma: float
    root: float


def spread_said(spread: Spread, form: str = "{:,.0f}") -> str:
    """Word a spread."""
    low, middle, high = (form.format(v) for v in (spread.least, spread.median, spread.most))
    return low if low == high else f"{low} … {high}, in the middle {middle}"


def sizes_said(widths: Spread, heights: Spread) -> str:
    """Word widths and heights."""
    if widths.least == widths.most and heights.least == heights.most:
        return f"{widths.least:,.0f}×{heights.least:,.0f}, all of them"
    return f"{spread_said(widths)} wide; {spread_said(heights)} high"


def crop_said(crop: CropLoss, names: Names) -> str:
    """Word what a centre crop loses."""
    if not crop.mean:
        return "nothing"
    height, width = crop.frame
    frame = "a square" if height == width else f"{width}×{height}"
    worst = ""
    if crop.worst:
        first = crop.worst[0]
        worst = f"; most of {names[first]}: {crop.each[first]:.0%}"
    return (
        f"{crop.mean:.1%} of an image on average, {crop.total:.1%} of all pixels (to"
        f" {frame}){worst}"
    )


def classes_said(classes: Sequence[ClassCount]) -> str:
    """Word how many images the classes have."""
    if not classes:
        return "none"
    fewest = min(classes, key=lambda one: one.images)
    most = max(classes, key=lambda one: one.images)
    if fewest.images == most.images:
        return f"{len(classes):,}, {most.images:,} images in each"
    return (
        f"{len(classes):,}, from {fewest.images:,} images ({fewest.name}) to {most.images:,}"
        f" ({most.name})"
    )


def search_said(search: Search) -> str:
    """Word how well the search for copies works in this set."""
    made = sum(made for made, _ in search.probes.values())
    if not made:
        return "too few images that show anything"
    if search.alike:
        return (
            "the images are so alike that copies which were changed cannot be told from other"
            f" images ({search.alarm_rate:.0%} of decoys passed for copies): exact ones only"
        )
    seen = sum(seen for _, seen in search.probes.values())
    weak = [kind for kind, (made, seen) in search.probes.items() if seen < 0.9 * made]
    rest = f"; hard to find here: {', '.join(weak)}" if weak else ""
    return (
        f"{seen:,} of {made:,} copies made for trial were found ({seen / made:.1%}), and"
        f" {search.alarms:,} of {search.decoys:,} decoys passed for one"
        f" ({search.alarm_rate:.2%}){rest}"
    )
