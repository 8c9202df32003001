"""From the bytes of one picture to a uint8 array (c, h, w): every surprising kind of file has one
defined outcome.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageOps

from ddpm_lib.core.spelling import option
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.fitting import enlargement, fit_bands, resize_to_frame
from ddpm_lib.data.signatures import what_is_it
from ddpm_lib.data.transforms import TransformError
from ddpm_lib.data.values import (
    FULL_16BIT,
    MEASURED,
    ValueRange,
    is_wide_colour,
    kind,
    lost_planes,
    not_uint8,
    propose,
    scale,
    show_fourth_band,
    span,
    too_many_bands,
    white_is_zero,
    wide_colours,
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""The only Pillow decoders that are ever run: common raster formats (no PSD, EPS, PDF, FITS)."""

UPSCALED, FIRST_FRAME, COMPOSITED, SCALED_16BIT, CMYK, ROTATED, GREY_TO_COLOUR, COLOUR_TO_GREY = (
    1 << k for k in range(8)
)
BAND_DROPPED = 1 << 8
FLAG_NOTES = {
    UPSCALED: "smaller than the image size: enlarged (blurred)",
    FIRST_FRAME: (
        'animated or multi-page: first frame taken (of a folder, frames="all", --frames all, makes'
        " every one an image)"
    ),
    COMPOSITED: "with transparency: laid on the background",
    SCALED_16BIT: "of 16 bits: scaled to 8 bits",
    CMYK: "in CMYK: converted to RGB",
    ROTATED: "turned as their EXIF orientation says",
    GREY_TO_COLOUR: "in grey: the grey value repeated in the colour channels",
    COLOUR_TO_GREY: "in colour: converted to grey",
    BAND_DROPPED: (
        "with a band beyond the channels asked for (near infrared?): left out; channels=4 keeps"
        " four"
    ),
}


class ImageError(ValueError):
    """One picture cannot be used; the message is the reason, without the name."""


class Decoded(NamedTuple):
    """A fitted picture: `pixels` uint8 (c, h, w), what was done to it (bits), its size, and the
    range of its values.
    """

    pixels: np.ndarray
    flags: int
    width: int
    height: int
    found: ValueRange | None = None


def decode(file: str | bytes | IO[bytes], spec: DecodeSpec, frame: int | None = None) -> Decoded:
    """Decode one file (a path, or an open binary file) and fit it.

    `frame` chooses a page or frame, where all are images; None takes the first.

    Raises:
        ImageError: If it is no usable picture; the message is the reason.
        OSError: If the file itself cannot be read (missing, no permission, a failing disk).
    """

    def start() -> Image.Image:
        picture = _open(file, spec)
        if frame:
            picture.seek(frame)
        if spec.channels == 4:
            show_fourth_band(picture)
        return picture

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of odd metadata, without the file's name; what matters is an error
        with start() as picture:
            return fit_picture(picture, spec, start, frame is not None)


def count_frames(file: str | bytes | IO[bytes]) -> int:
    """Return how many frames or pages a file has; 1 for what cannot be opened, of which decoding
    says why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as picture:
                return int(getattr(picture, "n_frames", 1))
    except Exception:
        return 1


def _open(file: str | bytes | IO[bytes], spec: DecodeSpec) -> Image.Image:
    """Open a picture by the allowed decoders; see `decode`."""
    try:
        if hasattr(file, "seek"):
            file.seek(0)
        described = too_many_bands(file)
        if described is not None:
            raise ImageError(described)
        return Image.open(file, formats=FORMATS)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(what_is_it(file, FORMATS)) from None
    except Image.DecompressionBombError:
        raise ImageError(_too_many(spec)) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise ImageError(_words(error)) from None
    except Exception as error:
        raise ImageError(_words(error)) from None


def _too_many(spec: DecodeSpec) -> str:
    most = 2 * int(Image.MAX_IMAGE_PIXELS or spec.max_pixels)
    if spec.max_pixels > most:
        return f"more than {most:,} pixels, the most that is decoded: cut it into tiles"
    return f"more than {spec.max_pixels:,} pixels; max_pixels (--max-pixels) sets another limit"


def decode_bytes(data: bytes, spec: DecodeSpec) -> Decoded:
    """Decode one encoded picture from memory; see `decode`."""
    if not data:
        raise ImageError("empty (zero bytes)")
    return decode(io.BytesIO(data), spec)


def fit_picture(
    picture: Image.Image,
    spec: DecodeSpec,
    again: Callable[[], Image.Image] | None = None,
    all_frames: bool = False,
) -> Decoded:
    """Fit an opened Pillow picture; see `decode`.

    `again` opens it once more, which colours of 16 bits need; with `all_frames` its other frames
    are images too.

    Raises:
        ImageError: If its pixels cannot be decoded or have no defined 8-bit meaning.
    """
    width, height = picture.size
    if width * height > spec.max_pixels:
        raise ImageError(f"{width}×{height} has {_too_many(spec)}")
    if width < 1 or height < 1:
        raise ImageError(f"an empty picture of {width}×{height} pixels")
    try:
        flags = FIRST_FRAME if getattr(picture, "n_frames", 1) > 1 and not all_frames else 0
        orientation = picture.getexif().get(0x0112, 1) if _has_exif(picture) else 1
        turned = orientation in (5, 6, 7, 8)
        _draft(picture, spec, turned)
        separate = spec.channels == 4 and _hidden_band(picture)
        picture, wide, found = _eight_bits(picture, spec, again)
        flags |= wide
        if orientation in range(2, 9):
            picture, flags = ImageOps.exif_transpose(picture), flags | ROTATED
        picture, more = _to_mode(picture, spec)
        if turned:
            width, height = height, width
        if spec.transform is not None:
            picture = _transformed(picture, spec.transform)
        if enlargement(picture.size if spec.transform else (width, height), spec) > 1:
            flags |= UPSCALED
        pixels = (
            fit_bands(picture, spec) if separate else np.asarray(resize_to_frame(picture, spec))
        )
    except (ImageError, TransformError):
        raise
    except Exception as error:
        raise ImageError(_words(error)) from None
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return Decoded(np.ascontiguousarray(pixels), flags | more, width, height, found)


def _transformed(
    picture: Image.Image, transform: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    try:
        return transform(picture)
    except TransformError:
        raise
    except Exception as error:  # code of the user's may raise anything
        raise ImageError(
            f"the transform failed ({type(error).__name__}: {_words(error)})"
        ) from None


def _eight_bits(
    picture: Image.Image, spec: DecodeSpec, again: Callable[[], Image.Image] | None
) -> tuple[Image.Image, int, ValueRange | None]:
    """Load a picture; where it has more than 8 bits, bring the values of `spec.value_range` to 0 …
    255.
    """
    planes = lost_planes(picture, spec.channels)
    if planes is not None:
        raise ImageError(planes)
    sort = kind(picture)
    if sort is None and not is_wide_colour(picture):
        return _true_bands(picture, spec)
    if sort is not None:
        values: np.ndarray | None = np.asarray(picture)
    else:
        sort, values = "16-bit", None if again is None else wide_colours(picture, again)
    if values is None and spec.value_range is not None:
        raise ImageError(
            f"only the high bytes of its 16-bit colours can be read, which {option('value_range')}"
            " cannot use"
        )
    if values is None:
        values = np.asarray(picture).astype(np.uint16) * 257
    alpha = (
        values[..., 3:]
        if values.ndim == 3 and picture.mode == "RGBA" and not _hidden_band(picture)
        else None
    )
    values = values if alpha is None else values[..., :3]
    try:
        found = span(values)
    except ValueError as error:
        raise ImageError(f"{sort} pixels, and {error}") from None
    if spec.value_range is None and sort != "16-bit":
        shown = f"{found[0]:,.6g} … {found[1]:,.6g}"
        way = f"{propose(*found)}. {MEASURED}"
        raise ImageError(f"{sort} pixels (here {shown}) have no defined range: {way}")
    pixels = scale(values, spec.value_range or FULL_16BIT)
    pixels = 255 - pixels if white_is_zero(picture) else pixels
    if alpha is not None:
        pixels = np.concatenate([pixels, scale(alpha, FULL_16BIT)], axis=2)
    result = Image.fromarray(pixels)
    if _has_exif(picture):
        result.getexif().update(picture.getexif())
    flags = SCALED_16BIT if sort == "16-bit" and spec.value_range is None else 0
    return result, flags | _dropped(picture), found


def _hidden_band(picture: Image.Image) -> bool:
    """Whether the fourth band of a TIFF file is said to be no transparency."""
    tags: Any = getattr(picture, "tag_v2", {})
    return tags.get(277, 1) == 4 and tuple(tags.get(338, ())) == (0,)


def _dropped(picture: Image.Image) -> int:
    """Flag pictures whose file has more bands than Pillow gives."""
    bands = getattr(picture, "tag_v2", {}).get(277, 1)
    return BAND_DROPPED if bands > len(picture.getbands()) and picture.mode != "P" else 0


def _true_bands(picture: Image.Image, spec: DecodeSpec) -> tuple[Image.Image, int, None]:
    """Load a picture of 8 bits."""
    if spec.value_range is not None:
        raise ImageError(
            f"it has 8 bits per value, and {option('value_range')} is for pictures of more: leave"
            " it out"
        )
    flags = _dropped(picture)
    picture.load()
    return (
        picture,
        flags | (BAND_DROPPED if _hidden_band(picture) and spec.channels != 4 else 0),
        None,
    )


def fit_array(array: np.ndarray, spec: DecodeSpec) -> Decoded:
    """Fit one uint8 array (h, w), (h, w, c) or (c, h, w) with 1, 3 or 4 channels.

    Raises:
        ImageError: If it is not uint8 or its shape is not that of a picture.
    """
    if array.dtype == np.uint8 and spec.value_range is not None:
        raise ImageError(
            f"it is uint8 already, and {option('value_range')} is for values of more than 8 bits:"
            " leave it out"
        )
    found = None
    if array.dtype != np.uint8:
        if spec.value_range is None or array.dtype.kind not in "iuf" or not array.size:
            raise ImageError(not_uint8(array))
        try:
            found, array = span(array), scale(array, spec.value_range)
        except ValueError as error:
            raise ImageError(str(error)) from None
        spec = replace(spec, value_range=None)
    if array.shape == spec.shape and spec.transform is None:
        return Decoded(np.ascontiguousarray(array), 0, array.shape[2], array.shape[1], found)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(
            f"its shape {array.shape} is not (h, w), (h, w, c) or (c, h, w) with c of 1, 3 or 4"
        )
    return fit_picture(Image.fromarray(np.ascontiguousarray(array)), spec)._replace(found=found)


def _has_exif(picture: Image.Image) -> bool:
    return (
        "exif" in picture.info
        or "Raw profile type exif" in picture.info
        or picture.format == "TIFF"
    )


def _draft(picture: Image.Image, spec: DecodeSpec, turned: bool) -> None:
    """Let the JPEG decoder leave out detail beyond twice the resolution that is needed (2-3 times
    faster).
    """
    if picture.format == "JPEG" and spec.transform is None:
        width, height = reversed(picture.size) if turned else picture.size
        scale = 2 * enlargement((width, height), spec)
        picture.draft(
            None, (math.ceil(picture.size[0] * scale), math.ceil(picture.size[1] * scale))
        )


def _to_mode(picture: Image.Image, spec: DecodeSpec) -> tuple[Image.Image, int]:
    """Bring any mode to that of the spec, before resizing, so that filters act on real colours."""
    flags = 0
    if picture.mode == "CMYK":
        if picture.format == "JPEG" and "adobe" not in picture.info:
            picture = ImageChops.invert(
                picture
            )  # Pillow takes every CMYK JPEG for an inverted (Adobe) one
        picture, flags = picture.convert("RGB"), CMYK
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if spec.channels != 4:
            if np.asarray(picture.getchannel("A")).min() < 255:
                flags |= COMPOSITED
            below = Image.new("RGBA", picture.size, (*spec.background, 255))
            picture = Image.alpha_composite(below, picture).convert("RGB")
    if picture.mode == spec.mode:
        return picture, flags | (GREY_TO_COLOUR if grey and spec.channels == 3 else 0)
    if grey and spec.channels != 1:
        flags |= GREY_TO_COLOUR
    elif not grey and spec.channels == 1:
        flags |= COLOUR_TO_GREY
    if picture.mode == "P":
        picture = picture.convert("RGB")
    return picture.convert(spec.mode), flags


def _words(error: BaseException) -> str:
    """One line for a decoder's exception; some have no text of their own."""
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__
