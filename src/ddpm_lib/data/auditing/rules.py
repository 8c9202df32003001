"""What is wrong with single pictures, by what was measured of them."""

from __future__ import annotations

import numpy as np

from ddpm_lib.data.auditing.looking import CONSTANT_SPREAD, Measured

MOSTLY_BORDER = 0.5
"""Share of the area above which a border is most of a picture."""
GREY = 1.5
"""Mean difference of the channels, of 255, below which a picture is grey."""
_QUANTISED = 0.4
"""Power that rounding to 8 bits and to half a size leaves where there is nothing."""
_LEAST_POWER = 1.0
_OF_MEDIAN = 0.27
_ENLARGED = (0.08, 0.25)
_BLURRED = (0.10, 0.25)


def constant(measured: Measured) -> np.ndarray:
    """Which pictures are of one colour, bool (n,)."""
    found: np.ndarray = measured.good & (measured.spread < CONSTANT_SPREAD)
    return found


def border_share(measured: Measured) -> np.ndarray:
    """Return the share of each picture that is a border of one colour, float (n,)."""
    box = measured.box
    return np.asarray(1 - (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))


def mostly_border(measured: Measured) -> np.ndarray:
    """Which pictures are mostly border, bool (n,); not those that are of one colour."""
    found: np.ndarray = (border_share(measured) > MOSTLY_BORDER) & ~constant(measured)
    return found & measured.good


def grey(measured: Measured) -> np.ndarray:
    """Which pictures are grey, bool (n,)."""
    found: np.ndarray = measured.good & (measured.colourful < GREY)
    return found


def detail_ratios(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Return the power of the finest octave over that of the second, and of the second over that
    of the third; NaN where a picture is too small, or too even to tell.
    """
    first, second, third = (measured.octaves[:, k].astype(np.float64) for k in range(3))
    even = ~(third > _LEAST_POWER) | constant(measured) | ~measured.good
    with np.errstate(invalid="ignore", divide="ignore"):
        fine = np.maximum(first - _QUANTISED, 0) / second
        middle = np.maximum(second - _QUANTISED, 0) / third
    fine[even], middle[even] = np.nan, np.nan
    return fine, middle


def soft(measured: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures are blurry, and which were enlarged: two bool (n,).

    Pictures of the world have about as much in one octave of frequency as in the next. An enlarged
    one lacks the finest octave and has the second; a blurred one lacks both. So does one that was
    enlarged three times or more, which counts as blurry, unless its pixels are repeated. What is
    little follows from the set: some are softer than others as a whole.
    """
    fine, middle = detail_ratios(measured)
    known = np.isfinite(fine) & np.isfinite(middle)
    if not known.any():
        none = np.zeros(len(measured), dtype=bool)
        return none, (measured.repeated > 1) & measured.good
    least = [
        float(np.clip(_OF_MEDIAN * np.median(ratio[known]), *bounds))
        for ratio, bounds in ((fine, _ENLARGED), (middle, _BLURRED))
    ]
    with np.errstate(invalid="ignore"):
        blurry = known & (middle < least[1])
        enlarged = known & ~blurry & (fine < least[0])
    repeated = (measured.repeated > 1) & measured.good & ~constant(measured)
    return blurry & ~repeated, enlarged | repeated


def crop_losses(sizes: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """Return the share of each picture's area that a centre crop to a frame cuts off, float (n,).

    Args:
        sizes: Width and height, int (n, 2); 0 where unknown.
        frame: Height and width of the frame, of which the ratio counts.
    """
    height, width = frame
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (sizes[:, 0] / width) / (sizes[:, 1] / height)
        lost = 1 - np.minimum(ratio, 1 / ratio)
    lost[(sizes <= 0).any(1)] = 0.0
    return np.asarray(lost)


def quality(measured: Measured) -> np.ndarray:
    """Return a number per picture, larger for the one of several copies to keep: pixels that show
    something, less where they are soft, float (n,).
    """
    share = border_share(measured)
    shown = 1 - np.where(share > 0.25, share, 0)
    area = measured.sizes.astype(np.float64).prod(1) * shown
    blurry, enlarged = soft(measured)
    worth = area * np.where(blurry | enlarged, 0.2, 1.0) * np.where(grey(measured), 0.7, 1.0)
    # In steps of a factor of 1.4: what is about as good is equal, and the first one stays.
    return np.asarray(np.round(2 * np.log2(worth + 1)))
