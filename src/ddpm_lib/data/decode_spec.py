"""How pictures of any size and mode become uint8 arrays of one shape: size, channels, fit,
background, range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageColor

from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.data.values import ValueRange, check_range

Fit = Literal["crop", "pad", "stretch"]
Background = str | int | Sequence[int]

MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class DecodeSpec:
    """How pictures become tensors of one shape.

    Args:
        image_size: (height, width) of the result.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        fit: "crop": keep the aspect ratio, fill the frame, cut what is outside (centred); "pad":
            keep the aspect ratio, show the whole picture, fill the border with `background`;
            "stretch": squash to the frame.
        background: Three values 0 … 255: under transparent pixels (channels 1 and 3) and around
            padded pictures.
        max_pixels: Pictures with more pixels are refused before they are decompressed.
        value_range: What is black and what is white in pictures of more than 8 bits; None: 0 and
            65,535.
        transform: Applied to each picture in its own size, before it is fitted; it has the mode of
            the result, and its size is as stored.
    """

    image_size: tuple[int, int]
    channels: int = 3
    fit: Fit = "crop"
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = MAX_PIXELS
    value_range: ValueRange | None = None
    transform: Callable[[Image.Image], Image.Image] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of the results."""
        return (self.channels, *self.image_size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the results."""
        return np.dtype(np.uint8)

    @property
    def draws(self) -> bool:
        """Whether readings of an image may differ by what is drawn for them."""
        return self.transform is not None

    @property
    def mode(self) -> str:
        """Pillow's name for the result: L, RGB or RGBA."""
        return {1: "L", 3: "RGB", 4: "RGBA"}[self.channels]


def size_pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Turn `64` or `(48, 64)` (height, width) into a pair.

    Raises:
        ValueError: If it is not one or two positive whole numbers.
    """
    pair = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in pair):
        raise ValueError(
            f"{option('image_size')} must be a positive int or (height, width); got {image_size!r}."
        )
    return pair[0], pair[1]


def make_spec(
    image_size: int | Sequence[int],
    channels: int = 3,
    fit: str = "crop",
    background: Background = "white",
    max_pixels: int = MAX_PIXELS,
    value_range: Sequence[float] | None = None,
) -> DecodeSpec:
    """Check the options and build a `DecodeSpec`; `background` may be a colour name, a grey value
    or three values.

    Raises:
        ValueError: If an option is out of range, naming it and the choices.
    """
    if channels not in (1, 3, 4):
        raise ValueError(
            f"channels must be 1 (grey), 3 (RGB) or 4 (RGBA); got {channels!r}. Measured values"
            f" have any number: {option('normalize', 'affine')}."
        )
    if fit not in get_args(Fit):
        raise ValueError(unknown_name("fit", fit, get_args(Fit)))
    ground = colour_of(background)
    if max_pixels < 1:
        raise ValueError(f"{option('max_pixels')} must be positive; got {max_pixels!r}.")
    given = check_range(value_range)
    size = size_pair(image_size)
    return DecodeSpec(size, channels, fit, ground, max_pixels, given)  # type: ignore[arg-type]


def colour_of(background: Background) -> tuple[int, int, int]:
    """Return the three values 0 … 255 of a colour name, a grey value or three values.

    Raises:
        ValueError: If it is no colour.
    """
    if isinstance(background, str):
        try:
            colour = tuple(ImageColor.getrgb(background)[:3])
        except ValueError:
            raise ValueError(
                f'background {background!r} is no colour. Use a name ("white") or "#rrggbb".'
            ) from None
    else:
        colour = (background,) * 3 if isinstance(background, int) else tuple(background)
    if len(colour) != 3 or any(not isinstance(v, int) or not 0 <= v <= 255 for v in colour):
        raise ValueError(
            "background must be a colour name, a grey value or three values 0 … 255; got"
            f" {background!r}."
        )
    return colour[0], colour[1], colour[2]
