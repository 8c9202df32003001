"""Pixels of more than 8 bits: their kind, the range of their values, and how they become 8 bits."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ddpm_lib.core.spelling import option

ValueRange = tuple[float, float]

FULL_16BIT = (0.0, 65535.0)


class NarrowValuesError(ValueError):
    """value_range was given for values of 8 bits, which need none."""


_WAY = "say what is black and what is white with value_range, such as {python} ({flag})"

MEASURED = (
    'Measured values in arrays and files take normalize="affine" (--normalize affine), which finds'
    " their range and gives samples back in their units"
)
"""What else serves where values are none of pictures."""


def check_range(value_range: Sequence[float] | None) -> ValueRange | None:
    """Check the option value_range: two finite numbers, the first below the second.

    Raises:
        ValueError: If it is anything else.
    """
    if value_range is None:
        return None
    pair = tuple(value_range) if isinstance(value_range, Sequence) else ()
    numbers = [v for v in pair if isinstance(v, (int, float)) and not isinstance(v, (bool, str))]
    if len(pair) != 2 or len(numbers) != 2 or not -np.inf < numbers[0] < numbers[1] < np.inf:
        raise ValueError(
            f"{option('value_range')} must be two numbers, that of black and that of white, such"
            " as (0, 4095); "
            f"got {value_range!r:.80}."
        )
    return float(numbers[0]), float(numbers[1])


def propose(low: float, high: float) -> str:
    """Word the option value_range for values that were found, in Python and as a flag."""
    if low >= 0 and high > 1 and float(low).is_integer() and float(high).is_integer():
        low, high = (
            0,
            2 ** max(8, int(high).bit_length()) - 1,
        )  # a sample need not hold the brightest
    elif low >= -1 and high <= 1:
        low, high = (0 if low >= 0 else -1), 1
    a, b = f"{low:.6g}", f"{high if high > low else low + 1:.6g}"
    return _WAY.format(python=f"value_range=({a}, {b})", flag=f"--value-range {a} {b}")


def kind(picture: Image.Image) -> str | None:
    """Word the kind of a grey picture's values where they have more than 8 bits, as the file has
    it.
    """
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return None
    if picture.mode == "F":
        return "floating-point"
    tags: Any = getattr(picture, "tag_v2", {})
    bits = tags.get(258, (16 if picture.mode != "I" or picture.format in ("PNG", "PPM") else 32,))[
        0
    ]
    signed = tags.get(339, (1,))[0] == 2
    return f"{'signed ' if signed else ''}{bits}-bit"


def scale(values: np.ndarray, given: ValueRange) -> np.ndarray:
    """Map the values low … high to 0 … 255, and what lies outside to the nearer end."""
    low, high = given
    if given == FULL_16BIT and values.dtype.kind in "iu":
        return ((values.astype(np.int64) + 128) // 257).clip(0, 255).astype(np.uint8)
    return (
        ((values.astype(np.float64) - low) / (high - low) * 255)
        .round()
        .clip(0, 255)
        .astype(np.uint8)
    )


def span(values: np.ndarray) -> ValueRange:
    """Return the least and the greatest value.

    Raises:
        ValueError: If there are NaN or infinite ones.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        raise ValueError("it holds NaN or infinite values")
    return low, high


def not_uint8(array: np.ndarray) -> str:
    """Say of an array that is not uint8 what to do."""
    way = proposal(array)
    more = f". {MEASURED}" if way else ""
    return f"its dtype is {array.dtype}; pictures must be uint8 (0 … 255){way}{more}"


def proposal(array: np.ndarray) -> str:
    """Word the range to give for an array: ", or say what …"; nothing where no range can make it a
    picture.
    """
    if array.dtype.kind not in "iuf" or not array.size or not np.isfinite(array).all():
        return ""
    return f", or {propose(*span(array))}"


def white_is_zero(picture: Any) -> bool:
    """Whether 0 stands for white in a grey TIFF file of more than 8 bits, which Pillow does not
    turn round.
    """
    return picture.mode[0] in "IF" and getattr(picture, "tag_v2", {}).get(262) == 0


def is_wide_colour(picture: Any) -> bool:
    """Whether Pillow gives only the high byte of this picture's 16-bit colours."""
    wide = any(";16" in raw for raw in _raw_modes(picture)) or _wide_ppm(picture) is not None
    return picture.mode in ("RGB", "RGBA") and wide


def _wide_ppm(picture: Any) -> int | None:
    """Return the greatest value that a PPM file may hold, if that is more than one byte."""
    tile = next(iter(getattr(picture, "tile", ())), None)
    if tile is None or tile.codec_name not in ("ppm", "ppm_plain") or picture.mode != "RGB":
        return None
    return int(tile.args[1]) if tile.args[1] > 255 else None


def wide_colours(picture: Any, again: Callable[[], Any]) -> np.ndarray | None:
    """Read colours of 16 bits, uint16 (h, w, c), or None where the low byte cannot be had.

    Pillow's decoders keep one byte of two: that of the file's byte order. Asked for the other
    order, they keep the other byte.
    """
    greatest = _wide_ppm(picture)
    if greatest is not None:
        return _ppm_values(picture, greatest)
    other = [_swap(tile) for tile in picture.tile]
    if any(tile is None for tile in other):
        return None
    high = np.asarray(picture).astype(np.uint16)
    with again() as second:
        second.tile = other
        low = np.asarray(second)
    return (high << 8) | low


def _ppm_values(picture: Any, greatest: int) -> np.ndarray:
    """Read the values of a PPM file, two bytes each or in digits, as parts of 65,535."""
    width, height = picture.size
    count = width * height * 3
    picture.fp.seek(picture.tile[0].offset)
    if picture.tile[0].codec_name == "ppm_plain":
        words = re.sub(rb"#[^\r\n]*", b"", picture.fp.read()).split()[:count]
        flat = np.array([int(word) for word in words], dtype=np.uint32)
    else:
        raw = picture.fp.read(count * 2)
        flat = np.frombuffer(raw[: len(raw) // 2 * 2], dtype=">u2").astype(np.uint32)
    if len(flat) < count:
        raise OSError("image file is truncated")
    if int(flat.max()) > greatest:
        raise ValueError(f"a value of {int(flat.max()):,} where {greatest:,} is the greatest")
    values = flat.reshape(height, width, 3)
    return ((values * 65535 + greatest // 2) // greatest).clip(0, 65535).astype(np.uint16)


def _raw_modes(picture: Image.Image) -> list[str]:
    args = [tile[3] for tile in getattr(picture, "tile", [])]
    return [str(a[0] if isinstance(a, tuple) else a) for a in args]


def _swap(tile: Any) -> Any:
    """Return a tile of the other byte order."""
    raw = tile.args[0] if isinstance(tile.args, tuple) else tile.args
    native = {"little": "L", "big": "B"}[sys.byteorder]
    name, _, order = raw.rpartition(";16")
    if name not in ("RGB", "RGBA", "RGBX", "R", "G", "B", "A"):
        return None
    raw = f"{name};16{'B' if (native if order == 'N' else order) == 'L' else 'L'}"
    return tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)


def show_fourth_band(picture: Any) -> None:
    """Have Pillow give the fourth band of a TIFF that is no transparency, which it hides, as that
    of RGBA.
    """
    if picture.mode == "RGB" and all(raw.startswith("RGBX") for raw in _raw_modes(picture)):
        tiles = []
        for tile in picture.tile:
            args: Any = tile.args
            tiles.append(tile._replace(args=(args[0].replace("X", "A"), *args[1:])))
        picture._mode, picture.tile = "RGBA", tiles


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PILLOW_BANDS = 6


def too_many_bands(file: Any) -> str | None:
    """Describe a TIFF file of more bands than Pillow takes, which it would complain of on stderr;
    None for others.
    """
    bands = _tiff_header(file)
    return tiff_bands(file) if bands is not None and bands[0] > _PILLOW_BANDS else None


def _tiff_header(file: Any) -> tuple[int, int] | None:
    """Read how many bands of how many bits the first page of a TIFF file has; None where it is no
    such file.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    if not hasattr(file, "seek"):
        with open(file, "rb") as stream:
            return _tiff_header(stream)
    file.seek(0)
    head = file.read(8)
    if not head.startswith(_TIFF):
        file.seek(0)
        return None
    try:
        head += file.read(8) if head[2:4] in (b"+\0", b"\0+") else b""
        tags = ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        return int(tags.get(277, 1)), int(tags.get(258, (1,))[0])
    except Exception:  # a damaged header, of which Pillow's decoder says more
        return None
    finally:
        file.seek(0)


def tiff_bands(file: Any) -> str | None:
    """Describe a TIFF file that Pillow cannot open: "a TIFF with 12 bands of 16 bits"; None for
    other files.
    """
    header = _tiff_header(file)
    if header is None:
        return None
    return _undecodable(*header)


def lost_planes(picture: Any, channels: int) -> str | None:
    """Describe a TIFF file of one plane per band of which Pillow would give a part, or noise; None
    for others.

    It takes the first of several grey planes for the picture, leaves out a fourth one, and reads
    those of 16 bits that are not compressed as if they had 8.
    """
    tags = getattr(picture, "tag_v2", {})
    if tags.get(284, 1) != 2:
        return None
    bands, bits, given = int(tags.get(277, 1)), int(tags.get(258, (1,))[0]), len(picture.getbands())
    lost = bands > given and (given == 1 or channels == 4)
    misread = bands > 1 and bits > 8 and any(tile.codec_name == "raw" for tile in picture.tile)
    return _undecodable(bands, bits, " in separate planes") if lost or misread else None


def _undecodable(bands: int, bits: int, how: str = "") -> str:
    return (
        f"a TIFF with {bands} band{'s' * (bands != 1)} of {bits} bits{how}, which cannot be decoded"
        ' here: take it for measured values, normalize="affine" (--normalize'
        " affine); or read it with another reader (tifffile, rasterio) and pass arrays (n, h, w, c)"
        " of 1, 3 or 4 bands, or of any number through ddpm_lib.data.tensor_dataset"
    )
