"""Pictures as text inside the page, small enough that the page stays small."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ddpm_lib.core.spread import evenly

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

LARGEST = 40_000_000
"""Pixels of a picture that is opened at all: one that claims more is damaged, or an attack."""
SIDE = 1024
"""Pixels of the longer side of a picture in the page."""
_QUALITIES = (90, 80, 65, 45)


@dataclass(frozen=True)
class Embedded:
    """A picture for the page.

    Attributes:
        uri: A data URI.
        width: Pixels.
        height: Pixels.
    """

    uri: str
    width: int
    height: int


def some(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many of them, spread evenly, with the first and the last.

    >>> some(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[k] for k in sorted({*evenly(most - 1, len(items) - 1).tolist(), len(items) - 1})]


def embed_file(path: Path, most: int) -> Embedded | None:
    """Return a picture of a file for the page, None if it cannot be read.

    Args:
        path: The file.
        most: Bytes that it may take in the page.
    """
    try:
        facts = path.stat()
        return _embed_file(path, facts.st_mtime_ns, facts.st_size, most)
    except (OSError, ValueError, SyntaxError):
        return None  # a file that is being replaced, or a damaged one


@functools.lru_cache(maxsize=128)
def _embed_file(path: Path, changed: int, size: int, most: int) -> Embedded:
    return embed(open_picture(path), most)


def open_picture(path: Path) -> Image.Image:
    """Return a picture of a file, decoded, RGB.

    Raises:
        OSError: If it cannot be read, or is none.
        ValueError: If it is larger than `LARGEST`.
    """
    from PIL import Image

    with Image.open(path) as picture:
        if picture.width * picture.height > LARGEST:
            raise ValueError(f"{path.name} has {picture.width}×{picture.height} pixels.")
        return picture.convert("RGB")


def embed(picture: Image.Image, most: int) -> Embedded:
    """Return a picture for the page: without loss where it fits, else at lower quality, else
    smaller.

    Args:
        picture: RGB.
        most: Bytes that it may take in the page.
    """
    from PIL import Image

    small = _unscaled(picture)
    while max(small.size) > SIDE:
        small = small.resize((-(-small.width // 2), -(-small.height // 2)), Image.Resampling.BOX)
    while True:
        for quality in (None, *_QUALITIES):
            uri = _uri(small, quality)
            if len(uri) <= most:
                return Embedded(uri, *small.size)
        if max(small.size) <= 64:
            return Embedded(uri, *small.size)
        small = small.resize((-(-small.width // 2), -(-small.height // 2)), Image.Resampling.BOX)


def _uri(picture: Image.Image, quality: int | None) -> str:
    from PIL import features

    raw = io.BytesIO()
    if features.check("webp"):
        kind = "webp"
        how = {"lossless": True} if quality is None else {"quality": quality}
        picture.save(raw, "WEBP", method=4, **how)
    elif quality is None:
        kind = "png"
        picture.save(raw, "PNG", optimize=True)
    else:
        kind = "jpeg"
        picture.save(raw, "JPEG", quality=quality)
    return f"data:image/{kind};base64,{base64.b64encode(raw.getvalue()).decode('ascii')}"


def _unscaled(picture: Image.Image) -> Image.Image:
    """Undo an enlargement by whole pixels: the page enlarges by itself."""
    from PIL import Image, ImageChops

    for factor in range(16, 1, -1):
        if picture.width % factor or picture.height % factor:
            continue
        small = picture.resize(
            (picture.width // factor, picture.height // factor), Image.Resampling.NEAREST
        )
        again = small.resize(picture.size, Image.Resampling.NEAREST)
        if ImageChops.difference(picture, again).getbbox() is None:
            return small
    return picture
