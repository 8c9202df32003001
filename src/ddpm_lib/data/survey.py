"""A first look at a set of images, before it is known at which size they will be learned: how many,
how large, of which classes, grey or not, mirrored or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lib.core.spread import evenly
from ddpm_lib.data.dataset import ImageDataset, StreamStore
from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.opening import open_dataset

LOOKED_AT = 400
"""Images that are decoded for it, spread over the set."""
SIDE = 32
"""The size at which they are looked at."""
MIRROR_SIDE = 8
"""The size at which they are compared with their mirror images."""


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
        if self.farther is None:
            return None
        error = 1.645 * math.sqrt(0.25 / self.looked_at)
        if self.farther + error <= 0.6:
            return True
        return False if self.farther - error > 0.5 else None


def survey(data: Any, **options: Any) -> Survey:
    """Look at a set of images.

    Args:
        data: What `open_dataset` takes.
        **options: Options of `open_dataset`, but those of size, channels and reading.

    Raises:
        ValueError, OSError: As `open_dataset` does.
    """
    if isinstance(data, ImageDataset):
        return of_dataset(data, fixed=True)
    opened = open_dataset(
        data, image_size=SIDE, channels=3, cache="none", verify=False, num_workers=1, **options
    )
    return of_dataset(opened)


def of_dataset(data: ImageDataset, fixed: bool = False) -> Survey:
    """Look at a dataset that is open.

    Args:
        data: The images; those that are read on demand tell how large they are stored.
        fixed: Whether their size and channels cannot be chosen.
    """
    rows = evenly(min(len(data), LOOKED_AT), len(data))
    pixels, sizes = _read(data, rows)
    labels, names = data.labels, data.class_names
    counts = None
    if labels is not None:
        counts = tuple(torch.bincount(labels, minlength=data.num_classes or 0).tolist())
        names = names or tuple(map(str, range(len(counts))))
    pictures = pixels.ndim == 4
    return Survey(
        images=len(data),
        looked_at=len(pixels),
        sizes=sizes,
        grey=pictures and bool((pixels == pixels[:, :1]).all()),
        fixed=fixed,
        channels=data.channels,
        class_names=None if labels is None else names,
        class_counts=counts,
        farther=mirrored_farther(pixels) if pictures else None,
        notes=tuple(data.notes),
    )


def _read(data: ImageDataset, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Return images, uint8 (m, c, *spatial), and their width and height as stored (m, 2)."""
    store = data._store
    if not isinstance(store, StreamStore):
        pixels = data.batch(rows.tolist())["image"]
        height, width = data.image_size if len(data.image_size) == 2 else (1, data.image_size[0])
        return pixels, np.tile([width, height], (len(rows), 1))
    found, sizes = [], []
    for row in data._rows[rows].tolist():
        try:
            decoded = store.source.load(row, store.spec)
        except (ImageError, OSError):
            continue  # training names it, and says what to do
        found.append(torch.from_numpy(decoded.pixels))
        sizes.append((decoded.width, decoded.height))
    if not found:  # then all are bad, and this says which
        return data.batch(rows[:1].tolist())["image"], np.array([[1, 1]])
    return torch.stack(found), np.array(sizes)


def mirrored_farther(images: Tensor) -> float | None:
    """Return the share of images whose mirror image is farther from the nearest other image than
    they are themselves, ties counted half; None for fewer than three images.

    Letters and digits are written one way: their mirror images are like no other. Where left and
    right are drawn at random, the share is a half.

    Args:
        images: (n, c, h, w), uint8 or float.
    """
    n = len(images)
    if n < 3:
        return None
    small = F.adaptive_avg_pool2d(images.float(), (MIRROR_SIDE, MIRROR_SIDE))
    flat, turned = small.flatten(1), small.flip(-1).flatten(1)
    near = []
    for own in (flat, turned):
        distance = torch.cdist(own, flat)
        distance.fill_diagonal_(float("inf"))
        near.append(distance.min(1).values)
    return float(((near[1] > near[0]).float() + 0.5 * (near[1] == near[0]).float()).mean())
