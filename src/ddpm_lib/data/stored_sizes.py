"""How large the pictures of a set are as stored, and what fitting them to one frame loses."""

from __future__ import annotations

import os
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from ddpm_lib.data.decode import FORMATS
from ddpm_lib.data.decode_spec import DecodeSpec


class StoredSizes(NamedTuple):
    """Sizes of a set's pictures before they were fitted.

    Attributes:
        least: The smallest width and height.
        most: The largest width and height.
        crop_loss: Mean share of a picture's area that the centre crop cuts off, in [0, 1); 0 where
            nothing is cropped.
    """

    least: tuple[int, int]
    most: tuple[int, int]
    crop_loss: float

    def __str__(self) -> str:
        """Return a line, as `48 … 640 pixels wide, 48 … 480 high`."""
        wide, high = (
            f"{low:,}" if low == high else f"{low:,} … {high:,}"
            for low, high in zip(self.least, self.most)
        )
        return f"{wide} pixels wide, {high} high"


def stored_sizes(sizes: np.ndarray, spec: DecodeSpec) -> StoredSizes | None:
    """Sum up the sizes of a set's pictures; None where there are none.

    Args:
        sizes: Width and height of each picture as stored, int (n, 2); pictures whose size is not
            known (0) are left out.
        spec: How they are fitted.
    """
    known = sizes[(sizes > 0).all(1)].astype(np.float64)
    if not len(known):
        return None
    height, width = spec.image_size
    ratio = (known[:, 0] / width) / (known[:, 1] / height)
    kept = np.minimum(ratio, 1 / ratio) if spec.fit == "crop" else np.ones(len(known))
    (w0, h0), (w1, h1) = known.min(0).astype(int).tolist(), known.max(0).astype(int).tolist()
    return StoredSizes((w0, h0), (w1, h1), float(1 - kept.mean()))


def stored_size(path: str | bytes | os.PathLike[str] | IO[bytes]) -> tuple[int, int] | None:
    """Return (width, height) of a picture file as it is shown, None if it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return picture.size[::-1] if turned else picture.size
    except (OSError, ValueError):
        return None
