"""One tile from one photo of SYSU-Shape: its outline read, the object cut out or framed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.decode_spec import DecodeSpec

_FILL = 0.94  # of the tile that the object's longer side takes


def read_outlines(path: Path) -> list[np.ndarray]:
    """Read the outlines of a photo's objects: float64 (k, 2) each, (x, y) in pixels of the photo,
    from 0.

    `box_coord` is [ymin ymax xmin xmax], 1-based and unsigned; `obj_contour` (2, k) is relative to
    the corner of the box.

    Raises:
        ImageError: If the annotation is missing or of another layout.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise ImageError(f"its annotation {path.parent.name}/{path.name} is missing")
    try:
        objects = np.atleast_1d(loadmat(str(path))["object"]).ravel()
        outlines = []
        for item in objects:
            ymin, _, xmin, _ = (
                float(v) for v in np.asarray(item["box_coord"], dtype=np.float64).ravel()
            )
            contour = np.asarray(item["obj_contour"], dtype=np.float64).reshape(2, -1)
            outlines.append(np.stack([contour[0] + xmin - 1, contour[1] + ymin - 1], axis=1))
    except Exception as error:
        raise ImageError(
            f"its annotation {path.name} is damaged: {type(error).__name__} {error}"
        ) from None
    outlines = [
        o for o in outlines if len(o) >= 3 and np.isfinite(o).all() and np.ptp(o, axis=0).min() > 0
    ]
    if not outlines:
        raise ImageError(f"its annotation {path.name} has no outline")
    return outlines


def largest_outline(path: Path) -> np.ndarray:
    """Return the outline that encloses the largest area: one object per tile."""
    return max(read_outlines(path), key=_area)


def masked_tile(
    photo: Image.Image, outline: np.ndarray, spec: DecodeSpec
) -> tuple[Image.Image, float]:
    """Cut the object out along its outline, centre it on the background and fit it, keeping its
    aspect ratio.

    Returns:
        The tile and the scale from photo to tile.
    """
    left, top, right, bottom = _bounds(outline, photo.size)
    height, width = spec.image_size
    scale = min(width * _FILL / (right - left), height * _FILL / (bottom - top))
    x0, y0 = max(0, int(left) - 2), max(0, int(top) - 2)
    x1, y1 = min(photo.width, int(np.ceil(right)) + 2), min(photo.height, int(np.ceil(bottom)) + 2)
    fine = 4
    mask = Image.new("L", ((x1 - x0) * fine, (y1 - y0) * fine), 0)
    ImageDraw.Draw(mask).polygon(
        [((x + 0.5 - x0) * fine, (y + 0.5 - y0) * fine) for x, y in outline], fill=255
    )
    mask = mask.reduce(fine)
    cut = Image.new("RGB", mask.size, spec.background)
    cut.paste(photo.crop((x0, y0, x1, y1)), mask=mask)
    # One resampling straight into the tile: a border just wide enough for the window around the
    # object's centre
    half_w, half_h = width / scale / 2, height / scale / 2
    centre_x, centre_y = (left + right) / 2 - x0, (top + bottom) / 2 - y0
    border_x = max(0, int(np.ceil(half_w - min(centre_x, cut.width - centre_x)))) + 1
    border_y = max(0, int(np.ceil(half_h - min(centre_y, cut.height - centre_y)))) + 1
    framed = Image.new(
        "RGB", (cut.width + 2 * border_x, cut.height + 2 * border_y), spec.background
    )
    framed.paste(cut, (border_x, border_y))
    centre_x, centre_y = centre_x + border_x, centre_y + border_y
    box = (centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h)
    return (
        framed.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0),
        scale,
    )


def window_tile(
    photo: Image.Image, outline: np.ndarray, spec: DecodeSpec
) -> tuple[Image.Image, float]:
    """Cut the window around the object that has the tile's aspect ratio and lies inside the photo:
    no border is invented.

    Returns:
        The tile and the scale from photo to tile.
    """
    left, top, right, bottom = _bounds(outline, photo.size)
    height, width = spec.image_size
    scale = min(width * _FILL / (right - left), height * _FILL / (bottom - top))
    scale = max(scale, width / photo.width, height / photo.height)
    w, h = min(photo.width, width / scale), min(photo.height, height / scale)
    x = min(max(0.0, (left + right - w) / 2), photo.width - w)
    y = min(max(0.0, (top + bottom - h) / 2), photo.height - h)
    return (
        photo.resize(
            (width, height), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h), reducing_gap=3.0
        ),
        scale,
    )


def _area(outline: np.ndarray) -> float:
    x, y = outline[:, 0], outline[:, 1]
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _bounds(outline: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of the object within the photo, at least two pixels apart (7
    boxes leave it).
    """
    left, top = np.clip(outline.min(0), 0, np.array(size) - 2.0)
    right, bottom = np.clip(outline.max(0) + 1, 2.0, np.array(size, dtype=np.float64))
    return float(left), float(top), float(max(right, left + 2)), float(max(bottom, top + 2))
