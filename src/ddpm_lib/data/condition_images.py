"""Conditions that are pictures: masks and images, one per image of the data, from folders and
arrays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ddpm_lib.data.condition_values import (
    ConditionValues,
    Pictures,
    TakenFrom,
    black_and_white,
    check_options,
    mask_values,
)
from ddpm_lib.data.decode import FORMATS, ImageError
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.folders import FolderSource
from ddpm_lib.data.metadata import match_names, some
from ddpm_lib.data.source import BadImagesError, reason
from ddpm_lib.nn.pixel_conditions import UNKNOWN

PictureSize = Callable[[int], tuple[int, int] | None]
"""The stored (width, height) of the picture of a row; None where that is not known."""
OpenFolder = Callable[[Path, tuple[int, int], int], Pictures]
"""Opens a folder of pictures as images of a size (height, width) and a number of channels."""
_MASK_MODES = ("P", "L", "1", "I", "I;16")
OUTSIDE = -1
"""What a fitted mask holds where its image does not reach."""
_FEW = 64
"""More values than this in the first pictures of a folder make images of them, not masks."""


def paired_pictures(
    name: str,
    folder: Path,
    written: Iterable[Sequence[bytes]],
    spec: DecodeSpec,
    options: Mapping[str, Any],
    drop: float,
    sizes: PictureSize,
    open_folder: OpenFolder,
) -> ConditionValues:
    """Read the masks or images of a folder whose files are called like the images.

    Args:
        name: Of the condition.
        folder: Where they are.
        written: The names of the images of the data, first as they are, then as they could be
            called from above; extensions may differ.
        spec: How the images of the data are fitted; these are fitted alike.
        options: Those of the condition.
        drop: Probability of hiding it.
        sizes: The stored sizes of the images of the data.
        open_folder: Opens the folder as images of a size and a number of channels.

    Raises:
        ValueError: If some have no partner, or one of another shape.
        BadImagesError: If some cannot be read.
    """
    source = FolderSource(folder, "none")
    there = [os.path.splitext(source.names.raw(row))[0] for row in range(len(source))]
    names, rows, by = _partners(there, written)
    lone = [k for k, row in enumerate(rows) if row < 0]
    if lone:
        raise ValueError(
            f"The condition {name!r}: {str(folder)!r} has no picture for {len(lone):,} of"
            f" {len(names):,} images: {some([names[k] for k in lone])}. Their names must be the"
            " same, but for the extension; add them, or leave these images out (files, --files)."
        )
    paths = source.paths()
    chosen = [paths[row] for row in rows]
    kind = options.get("kind") or _kind_of(chosen)
    check_options(name, kind, options)
    taken = TakenFrom(str(folder.resolve()), np.array(rows, dtype=np.int64), by)
    if kind == "mask":
        read, white = read_masks(chosen, spec, sizes, options.get("classes"))
        masks = mask_values(name, read, options, drop)
        return replace(masks, taken=taken, white=white)
    if kind != "image":
        raise ValueError(
            f"The condition {name!r}: a folder of pictures holds masks or images; got kind={kind}."
        )
    _same_shape(chosen, sizes)
    made = _images(name, folder, rows, spec, options, drop, open_folder)
    return replace(made, taken=taken)


def _partners(
    there: Sequence[bytes], written: Iterable[Sequence[bytes]]
) -> tuple[Sequence[bytes], list[int], Literal["name", "path"]]:
    """Return the names of the images, the row of the partner of each, −1 for none, and by what it
    was found.
    """
    first: Sequence[bytes] = ()
    best: list[int] = []
    by: Literal["name", "path"] = "name"
    for k, names in enumerate(written):
        rows = match_names(there, names)
        if k == 0:
            first, best = names, rows
        elif sum(row >= 0 for row in rows) > sum(row >= 0 for row in best):
            best, by = rows, "path"
        if min(best, default=0) >= 0:
            break
    return first, best, by


def _images(
    name: str,
    folder: Path,
    rows: Sequence[int],
    spec: DecodeSpec,
    options: Mapping[str, Any],
    drop: float,
    open_folder: OpenFolder,
) -> ConditionValues:
    factor, channels = options.get("factor", 1), options.get("channels", spec.channels)
    height, width = spec.image_size
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"factor of the condition {name!r} must divide the image size {height}×{width}; got"
            f" {factor}."
        )
    data = open_folder(folder, (height // factor, width // factor), channels)
    more = {"channels": channels, "factor": factor}
    return ConditionValues("image", data.subset(np.array(rows, dtype=np.int64)), drop, more)


def _kind_of(paths: Sequence[Path]) -> str:
    """Say whether pictures are masks: of one band, and of few values."""
    values: set[int] = set()
    for path in paths[:8]:
        try:
            with Image.open(path, formats=FORMATS) as picture:
                if picture.mode not in _MASK_MODES or picture.format == "JPEG":
                    return "image"
                values |= set(np.unique(np.asarray(picture)).tolist())
        except (OSError, ValueError):
            return "image"  # what is wrong with it is said where it is read
    return "mask" if len(values) <= _FEW else "image"


def read_masks(
    paths: Sequence[Path], spec: DecodeSpec, sizes: PictureSize, classes: int | None = None
) -> tuple[np.ndarray, bool]:
    """Read masks, fitted like the images but without mixing classes: uint8 (n, h, w); and whether
    they are black and white, read as two classes.

    Args:
        paths: The files.
        spec: How the images are fitted.
        sizes: The stored sizes of the images.
        classes: See `black_and_white`.

    Raises:
        BadImagesError: If some cannot be read, are in colour, or have another size than the image
            of their row.
    """
    kind: type[np.generic] = np.int16 if spec.fit == "pad" else np.uint8
    out = np.empty((len(paths), *spec.image_size), dtype=kind)
    bad: list[tuple[str, str]] = []
    for row, path in enumerate(paths):
        try:
            out[row] = read_mask(path, spec, sizes(row))
        except (ImageError, OSError) as error:
            bad.append((str(path), reason(error)))
    if bad:
        hint = (
            "A mask is a picture of whole numbers, the class of each pixel (PNG, palette or grey),"
            " in the size of its image."
        )
        raise BadImagesError(bad, len(paths), hint)
    values = black_and_white(out, classes)
    white = values is not out and bool((out == UNKNOWN).any())
    if spec.fit == "pad":
        values = np.where(values < 0, UNKNOWN, values).astype(np.uint8)
    return values, white


def read_mask(path: Path, spec: DecodeSpec, size: tuple[int, int] | None) -> np.ndarray:
    """Read one mask, int16 (h, w): classes, 255 for unknown, `OUTSIDE` where it is padded.

    Args:
        path: The file.
        spec: How its image is fitted.
        size: (width, height) that it must have; None: the proportions of the image size.

    Raises:
        ImageError: If it is no mask, or of another size.
        OSError: If it cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.mode not in _MASK_MODES:
                raise ImageError(f"in colour ({picture.mode}), a mask has one number per pixel")
            values = np.asarray(picture)
    except Image.UnidentifiedImageError:
        raise ImageError("not a picture of a supported format") from None
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.min() < 0 or values.max() > UNKNOWN:
        raise ImageError(f"has the class {int(values.max())}; 254 is the last, 255 is unknown")
    height, width = spec.image_size
    if size is not None and (values.shape[1], values.shape[0]) != size:
        raise ImageError(
            f"{values.shape[1]}×{values.shape[0]} pixels, its image has {size[0]}×{size[1]}"
        )
    if size is None and abs(values.shape[1] * height - values.shape[0] * width) > max(values.shape):
        raise ImageError(
            f"{values.shape[1]}×{values.shape[0]} pixels, the images have the proportions of"
            f" {width}×{height}"
        )
    return fit_mask(values.astype(np.int16), spec)


def fit_mask(values: np.ndarray, spec: DecodeSpec) -> np.ndarray:
    """Fit a mask (h, w) to the frame as `resize_to_frame` fits its image, by nearest pixels; what
    is padded is `OUTSIDE`.
    """
    height, width = spec.image_size
    h, w = values.shape
    if (h, w) == (height, width):
        return values
    if spec.fit == "pad":
        scale = min(width / w, height / h)
        inner = max(1, min(height, round(h * scale))), max(1, min(width, round(w * scale)))
        frame = np.full((height, width), OUTSIDE, dtype=np.int16)
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        part = fit_mask(values, replace(spec, image_size=inner, fit="stretch"))
        frame[top : top + inner[0], left : left + inner[1]] = part
        return frame
    scale_y, scale_x = height / h, width / w
    if spec.fit == "crop":
        scale_y = scale_x = max(scale_x, scale_y)
    rows = h / 2 + (np.arange(height) + 0.5 - height / 2) / scale_y
    columns = w / 2 + (np.arange(width) + 0.5 - width / 2) / scale_x
    found: np.ndarray = values[
        np.clip(rows.astype(np.int64), 0, h - 1)[:, None],
        np.clip(columns.astype(np.int64), 0, w - 1)[None],
    ]
    return found


def _same_shape(paths: Sequence[Path], sizes: PictureSize) -> None:
    """Refuse pictures of other proportions than the images that they belong to: fitted alike, they
    would not lie on each other.
    """
    bad = []
    for row, path in enumerate(paths):
        size = sizes(row)
        try:
            with Image.open(path, formats=FORMATS) as picture:
                w, h = picture.size
        except (OSError, ValueError):
            continue  # it is named where it is decoded
        if size is not None and abs(w * size[1] - h * size[0]) > max(w, h, *size):
            bad.append((str(path), f"{w}×{h} pixels, its image has {size[0]}×{size[1]}"))
    if bad:
        hint = "Both must have the same proportions. Crop them alike first."
        raise BadImagesError(bad, len(paths), hint)
