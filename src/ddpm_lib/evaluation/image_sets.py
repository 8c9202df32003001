"""Sets of images that are compared, read by row as uint8 pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.spread import evenly
from ddpm_lib.data.suffixes import JPEG, LOSSLESS
from ddpm_lib.images import to_uint8

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset

_LOOKED_AT = 1000
"""So many names of files are looked at to tell how a set is stored."""


@dataclass(frozen=True)
class ImageSet:
    """Images that can be read by row.

    Attributes:
        name: Word for names of scores: train, heldout, samples.
        n: Number of images.
        read: From rows to uint8 (len(rows), c, h, w), on any device; the same for the same rows.
        fingerprint: Says whether two sets are the same.
        cached: Whether features are kept for other evaluations (a dataset) or only until this one
            is done (samples).
        notes: What people are told of them.
        reader: "training", or the tool as which the files are read.
        shape: (height, width) of the images, where it is known.
        jpeg: Share of JPEG among files whose format is known from their names; None where there are
            none.
    """

    name: str
    n: int
    read: Callable[[range], Tensor]
    fingerprint: str
    cached: bool = False
    notes: tuple[str, ...] = ()
    reader: str = "training"
    shape: tuple[int, ...] | None = None
    jpeg: float | None = None


def safe_word(text: str) -> str:
    """Turn a name into one word for names of scores."""
    return "".join(c for c in text.lower() if c.isalnum()) or "data"


def clamp(num: int | None, there: int, word: str) -> tuple[int, list[str]]:
    """Return how many images to take, and a note where more were asked for than there are."""
    if num is None or num <= there:
        return (there if num is None else num), []
    return there, [
        f"{word}: num={num:,} is more than the {there:,} images there are; all were taken."
    ]


def as_pictures(images: Tensor) -> Tensor:
    """Turn images into uint8 pictures without transparency, laid on white as the data reader lays
    them.

    Args:
        images: (n, c, *spatial), uint8 or float in [0, 1].
    """
    pixels = to_uint8(images)
    if pixels.ndim != 4 or pixels.shape[1] != 4:
        return pixels
    colour, alpha = pixels[:, :3].int(), pixels[:, 3:].int()
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)


def content_of(dataset: ImageDataset, block: int = 1024) -> str:
    """Return a fingerprint of the pixels where they lie in RAM; else the dataset's own, of names
    and lengths.

    The same pictures then have the same one, however they were opened, and others never do.
    """
    if not dataset.in_memory:
        return dataset.fingerprint
    n = len(dataset)
    digest = hashlib.blake2b(
        repr((n, dataset.channels, dataset.image_size)).encode(), digest_size=16
    )
    for start in range(0, n, block):
        image = dataset.batch(np.arange(start, min(n, start + block)))["image"]
        digest.update(image.contiguous().numpy().tobytes())
    return digest.hexdigest()


def jpeg_share(names: Sequence[str]) -> float | None:
    """Return the share of JPEG among names of JPEG and lossless files, of a thousand spread evenly;
    None if none is.
    """
    rows = evenly(min(len(names), _LOOKED_AT), len(names)).tolist() if len(names) else []
    ends = ["." + names[row].rpartition(".")[2].lower().partition("#")[0] for row in rows]
    lossy = sum(end in JPEG for end in ends)
    known = lossy + sum(end in LOSSLESS for end in ends)
    return lossy / known if known else None


def dataset_images(dataset: ImageDataset, name: str, num: int | None = None) -> ImageSet:
    """Read a dataset, all of it or `num` images spread over it; nothing is augmented."""
    chosen = dataset if num is None else dataset.subset(evenly(num, len(dataset)))

    def read(rows: range) -> Tensor:
        image: Tensor = chosen.batch(np.arange(rows.start, rows.stop))["image"]
        return as_pictures(image)

    shape = tuple(chosen.image_size)
    return ImageSet(
        safe_word(name),
        len(chosen),
        read,
        content_of(chosen),
        cached=True,
        shape=shape,
        jpeg=jpeg_share(chosen.names),
    )
