"""Sets of images that are compared, read by row: as uint8 pictures, or as measured values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.digests import digest_of
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.spread import evenly
from ddpm_lib.data.suffixes import JPEG, LOSSLESS
from ddpm_lib.images import to_uint8
from ddpm_lib.runtime.devices import LOW_PRECISION

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.measurements.normalization import Normalization

_LOOKED_AT = 1000
"""So many names of files are looked at to tell how a set is stored."""


@dataclass(frozen=True)
class ImageSet:
    """Images that can be read by row.

    Attributes:
        name: Word for names of scores: train, heldout, samples.
        n: Number of images.
        read: From rows to uint8 (len(rows), c, h, w), on any device; the same for the same rows.
            Of measured values float in [0, 1], (len(rows), c, *spatial).
        fingerprint: Says whether two sets are the same.
        cached: Whether features are kept for other evaluations (a dataset) or only until this one
            is done (samples).
        notes: What people are told of them.
        reader: "training", or the tool as which the files are read.
        shape: (height, width) of the images, where it is known.
        jpeg: Share of JPEG among files whose format is known from their names; None where there are
            none.
        normalization: Of measured values: what makes values in their units of what is read; None
            for pictures.
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
    normalization: Normalization | None = None

    @property
    def unit(self) -> str:
        """What values are measured in."""
        if self.normalization is None:
            return "of 0 … 1"
        return self.normalization.unit or "units of the data"

    def scale(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what 0 of `on_scale` is in units, and what 1 is more than that, by channel."""
        known = self.normalization
        if known is None:
            return np.zeros(channels), np.ones(channels)
        low, high = np.array(known.low), np.array(known.high)
        return low, np.where(high > low, high - low, 1.0)

    def on_scale(self, images: Tensor) -> Tensor:
        """Turn what `read` gives into values in their type, of which 0 and 1 are the lowest and the
        highest of the data: float64 (n, c, *spatial) on the CPU.
        """
        if self.normalization is None:
            here = images.cpu().double()
            return here / 255.0 if images.dtype == torch.uint8 else here
        values = self.normalization.inverse(images).astype(np.float64)
        low, span = (
            one.reshape(-1, *[1] * (values.ndim - 2)) for one in self.scale(values.shape[1])
        )
        return torch.from_numpy((values - low) / span)


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


def refuse_not_finite(samples: Tensor, precision: str = "no") -> Tensor:
    """Return samples as they are, if they are finite: as 8 bits what is NaN would be black.

    Args:
        samples: Float images.
        precision: In which the network drew them.

    Raises:
        ConfigError: If a value is NaN or infinite.
    """
    if bool(torch.isfinite(samples).all()):
        return samples
    cure = "Look at the weights that drew them"
    if precision in LOW_PRECISION:
        cure = f"Draw in float32: {option('mixed_precision', 'no')}"
    raise ConfigError(f"The samples hold NaN or infinite values, and cannot be compared. {cure}.")


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
    units = chosen.normalization

    def read(rows: range) -> Tensor:
        image: Tensor = chosen.batch(np.arange(rows.start, rows.stop))["image"]
        return as_pictures(image) if units is None else image

    shape = tuple(chosen.image_size)
    content = content_of(chosen)
    return ImageSet(
        safe_word(name),
        len(chosen),
        read,
        content if units is None else digest_of("values", content, units.to_json()),
        cached=True,
        shape=shape,
        jpeg=jpeg_share(chosen.names),
        normalization=units,
    )
