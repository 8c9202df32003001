"""What a set of decoded images looks like: too dark, of one colour, or all the same."""

from __future__ import annotations

import numpy as np

from ddpm_lib.core.spelling import option
from ddpm_lib.data.dataset import Source
from ddpm_lib.data.decode import COMPOSITED, SCALED_16BIT, ImageError
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.values import FULL_16BIT, ValueRange, propose

_LOOKED_AT = 64
_DARK = 32
_FLAT = 2
WHITE = (255, 255, 255)


def look_at(
    source: Source,
    spec: DecodeSpec,
    rows: np.ndarray,
    images: np.ndarray | None,
    flags: np.ndarray | None,
) -> list[str]:
    """Look at some images of a set, spread over it, and say what is likely not meant.

    Args:
        source: Where the images come from.
        spec: How they are decoded.
        rows: The good rows.
        images: All decoded images, uint8 (n, c, h, w), if they are in RAM.
        flags: What was done to each, if that is known.

    Returns:
        Notes; none where the images look as images do.
    """
    wide = rows[flags[rows] & SCALED_16BIT > 0] if flags is not None and len(flags) else rows[:0]
    found = _found(source, spec, _spread(wide)) if not getattr(source, "foreign", False) else None
    notes = []
    if found is not None:
        notes.append(_of_the_range(found))
    laid = flags is not None and len(flags) > 0 and bool((flags[rows] & COMPOSITED > 0).any())
    if (
        spec.background != WHITE
        and spec.fit != "pad"
        and not laid
        and (flags is None or len(flags))
    ):
        notes.append(
            "background has no effect here: no image has transparent pixels to lay on it, and none"
            " is padded"
        )
    if images is None or not len(rows):
        return notes
    chosen = images[_spread(rows)]
    colours = chosen[:, :3] if spec.channels == 4 else chosen
    flat = colours.max((1, 2, 3)).astype(int) - colours.min((1, 2, 3)) <= _FLAT
    if flat.all():
        text = "every image looked at is of one colour: nothing can be learned from them"
        notes.append(f"{text}. {_why_flat(colours, spec, laid, found)}")
    elif len(chosen) > 1 and (chosen == chosen[0]).all():
        notes.append(
            "all images looked at are the same: were copies of one picture saved under many names?"
        )
    elif found is None and colours.max() < _DARK:
        notes.append(
            f"all images looked at are nearly black (at most {colours.max()} of 255): were they"
            " made of values of another range? Scale them to 0 … 255"
        )
    return notes


def _spread(rows: np.ndarray) -> np.ndarray:
    return (
        rows[np.unique(np.linspace(0, max(0, len(rows) - 1), _LOOKED_AT).round().astype(int))]
        if len(rows)
        else rows
    )


def _found(source: Source, spec: DecodeSpec, rows: np.ndarray) -> ValueRange | None:
    ranges = []
    for row in rows.tolist():
        try:
            found = source.load(row, spec).found
        except (ImageError, OSError):
            # it has just been read: a disk that fails now is met again by whoever needs the image
            continue
        if found is not None:
            ranges.append(found)
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None


def _of_the_range(found: ValueRange) -> str:
    low, high = found
    text = (
        f"values of 16 bits: {low:,.0f} … {high:,.0f} of {FULL_16BIT[1]:,.0f} in the images"
        " looked at"
    )
    if high < FULL_16BIT[1] / 8:
        return f"{text}: nearly black; {propose(low, high)}"
    if high < FULL_16BIT[1] / 2 or low > FULL_16BIT[1] / 2:
        return f"{text}: little of the range; {propose(low, high)}"
    return text


def _why_flat(colours: np.ndarray, spec: DecodeSpec, laid: bool, found: ValueRange | None) -> str:
    colour = colours[0, :, 0, 0].tolist()
    if laid:
        ground = "#{:02x}{:02x}{:02x}".format(*spec.background)
        other = "black" if sum(spec.background) > 382 else "white"
        return (
            "They are drawn in the colour of the ground that transparent pixels are laid on"
            f" ({ground}): take another "
            f'with background="{other}" (--background {other})'
        )
    if spec.value_range is not None:
        return f"{option('value_range', spec.value_range)} is not the range of their values"
    if found is not None:
        return "See the range of their values above"
    return f"Its values are {colour}"
