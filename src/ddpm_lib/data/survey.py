"""A first look at a set of images, before it is known at which size they will be learned: how many,
how large, of which classes, grey or not, mirrored or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lib.core.spread import evenly
from ddpm_lib.data.dataset import ImageDataset, StreamStore
from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.opening import open_dataset

if TYPE_CHECKING:
    from ddpm_lib.data.measurements.value_survey import ValueFacts

LOOKED_AT = 400
"""Images that are decoded for it, spread over the set."""
SIDE = 32
"""The size at which they are looked at."""
LEAST_INDEPENDENT = 10
"""Images, or volumes of slices, from which on it is said whether they have a side."""
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


def survey(data: Any, **options: Any) -> Survey:
    """Look at a set of images.

    Args:
        data: What `open_dataset` takes.
        **options: Options of `open_dataset`, but those of reading. With `normalize` the data are
            taken for measured values; without, where no picture can hold them and no value_range
            makes pictures of them.

    Raises:
        ValueError, OSError: As `open_dataset` does.
    """
    words, size = options.pop("conditions", ()), options.pop("image_size", None)
    if isinstance(data, ImageDataset):
        seen = of_dataset(data, fixed=True)
        return _with_conditions(seen, data, data, words, {}, size)
    asked = options.pop("normalize", None) is not None
    how = {name: options.pop(name, None) for name in ("channels", "slice_axis")}
    if asked or (options.get("value_range") is None and _are_values(data)):
        from ddpm_lib.data.measurements.value_survey import survey_values

        volumes = size is not None and len(size) == 3
        seen = survey_values(data, volumes=volumes, asked=asked, **how, **options)
        return _with_conditions(seen, data, None, words, options, size)
    opened = open_dataset(
        data, image_size=SIDE, channels=3, cache="none", verify=False, num_workers=1, **options
    )
    return _with_conditions(of_dataset(opened), data, None, words, options, size)


def _are_values(data: Any) -> bool:
    from ddpm_lib.data.measurements.value_survey import are_values

    return are_values(data)


def _with_conditions(
    seen: Survey,
    data: Any,
    opened: ImageDataset | None,
    words: Sequence[str],
    options: dict[str, Any],
    size: Sequence[int] | None,
) -> Survey:
    """Return what was seen with the conditions that words and the dataset itself name."""
    if not words:
        return seen if opened is None else replace(seen, conditions=opened.condition_table)
    how: dict[str, Any] = {"image_size": tuple(size or (SIDE, SIDE)), "channels": 3}
    if opened is not None:
        how = {"image_size": opened.image_size, "channels": opened.channels}
    how["image_size"] = how["image_size"] if len(how["image_size"]) > 1 else how["image_size"][0]
    if seen.values is not None:
        from ddpm_lib.data.measurements.normalization import Unfitted

        how["channels"], how["slice_axis"] = seen.channels, seen.values.slice_axis
        how["normalize"] = Unfitted(seen.values.kind)
    if opened is None:
        how |= {"cache": "none", "verify": False, "num_workers": 1}
    made = open_dataset(data, conditions=tuple(words), **how, **options)
    return replace(seen, conditions=made.condition_table)


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
