"""What a first look at a set of images tells, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LOOKED_AT = 400
"""Images that are decoded for it, spread over the set."""
SIDE = 32
"""The size at which they are looked at."""
LEAST_INDEPENDENT = 10
"""Images, or volumes of slices, from which on it is said whether they have a side."""
MIRROR_SIDE = 8
"""The size at which they are compared with their mirror images."""


@dataclass(frozen=True)
class ValueFacts:
    """What is known of measured values besides a `Survey`.

    Attributes:
        stored: Their type, as numpy names it.
        kind: The normalization that suits them: "quantile" where a straight map leaves most values
            in a small part of the range.
        spread: The least standard deviation of a channel under a straight map to [-1, 1].
        slice_axis: The axis along which volumes are cut into images; None: they are not cut.
        why_sliced: Why along that one.
        size: Of a typical one, (*spatial).
        low: The lowest value of each channel.
        high: The highest.
        unit: What they are measured in, where the data say so.
        asked: Whether the user said that the data are measured values; else they were taken for
            them as no pictures can be made of them.
    """

    stored: str
    kind: str
    spread: float
    slice_axis: int | None
    why_sliced: str
    size: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    unit: str | None = None
    asked: bool = True

    @property
    def words(self) -> str:
        """Say what an image holds: type, size and range."""
        spans = [f"{a:,.5g} … {b:,.5g}" for a, b in zip(self.low, self.high)]
        shown = "; ".join(spans[:3]) + ("; …" if len(spans) > 3 else "")
        size = "×".join(map(str, self.size))
        return f"{size} values of {self.stored}: {shown}{f' {self.unit}' if self.unit else ''}"


@dataclass(frozen=True)
class Survey:
    """What is known of a set of images.

    Attributes:
        images: How many there are.
        looked_at: How many of them were decoded.
        sizes: Width and height as stored of those, int (m, 2).
        grey: Whether all of them are grey.
        fixed: Whether they have one size that cannot be chosen, as tensors have.
        channels: Of the pictures as they were opened.
        class_names: Names of their classes, None without labels.
        class_counts: Images per class.
        farther: Share of the images whose mirror image is farther from the other images than they
            are themselves: about a half where left and right make no difference.
        notes: What was said when they were opened.
        independent: How many of those that were looked at say something on their own: slices of one
            volume are alike; None: all.
        values: What measured values are like; None for pictures.
        conditions: What comes with each image, as `Unet(conditions=…)` takes it.
    """

    images: int
    looked_at: int
    sizes: np.ndarray
    grey: bool
    fixed: bool
    channels: int
    class_names: tuple[str, ...] | None = None
    class_counts: tuple[int, ...] | None = None
    farther: float | None = None
    notes: tuple[str, ...] = field(default=())
    independent: int | None = None
    values: ValueFacts | None = None
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width that half of the pictures have at least."""
        width, height = np.median(self.sizes, axis=0)
        return int(height), int(width)

    @property
    def short_side(self) -> int:
        """The shorter side of a picture, that of which half are larger."""
        return int(np.median(self.sizes.min(1)))

    def crop_loss(self, aspect: float = 1.0) -> float:
        """Return the mean share of a picture that a centre crop cuts off.

        Args:
            aspect: Width over height of the crop.
        """
        ratio = self.sizes[:, 0] / self.sizes[:, 1] / aspect
        return float(1 - np.minimum(ratio, 1 / ratio).mean())

    @property
    def symmetric(self) -> bool | None:
        """Whether mirror images belong to the data as well as the images do: True where at most
        three in five are farther, for sure (95 %, one-sided); None where too few were looked at to
        know.
        """
        n = self.looked_at if self.independent is None else self.independent
        if self.farther is None or n < LEAST_INDEPENDENT:
            return None
        error = 1.645 * math.sqrt(0.25 / n)
        if self.farther + error <= 0.6:
            return True
        return False if self.farther - error > 0.5 else None


def mirrored_farther(images: Tensor, groups: np.ndarray | None = None) -> float | None:
    """Return the share of images whose mirror image is farther from the nearest other image than
    they are themselves, ties counted half; None for fewer than three images or groups.

    Letters and digits are written one way: their mirror images are like no other. Where left and
    right are drawn at random, the share is a half.

    Args:
        images: (n, c, h, w), uint8 or float.
        groups: Numbers (n,): images of one number, such as slices of a volume, are not compared.
    """
    apart = np.arange(len(images)) if groups is None else groups
    if len(np.unique(apart)) < 3:
        return None
    same = torch.from_numpy(apart[:, None] == apart[None])
    small = F.adaptive_avg_pool2d(images.float(), (MIRROR_SIDE, MIRROR_SIDE))
    flat, turned = small.flatten(1), small.flip(-1).flatten(1)
    near = []
    for own in (flat, turned):
        distance = torch.cdist(own, flat)
        distance.masked_fill_(same, float("inf"))
        near.append(distance.min(1).values)
    return float(((near[1] > near[0]).float() + 0.5 * (near[1] == near[0]).float()).mean())
