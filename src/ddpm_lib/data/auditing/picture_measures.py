"""What is measured of one picture at the size it is stored in: values, border, detail."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

SIDE = 32
"""Pixels of the side of the small pictures."""
FINE_SIDE = 64
"""The same of the finer ones, by which pictures that are much alike are told apart."""
_LEAST_FINE = 48
"""Pixels of the shorter side from which there is a finer one."""
LEAST_BORDER = 0.04
"""Share of the area below which a border is none."""
OCTAVES = 3
_LOOKED_AT = 512
"""Pixels of the side of the piece that detail is measured in."""
_BORDER_SIDE = 192
_BORDER_TOLERANCE = 6


class Versions(NamedTuple):
    """Small versions of a picture, whatever its proportions.

    Attributes:
        small: uint8 (3, SIDE, SIDE).
        fine: Its brightness, uint8 (FINE_SIDE, FINE_SIDE); zeros where the picture is too small.
    """

    small: np.ndarray
    fine: np.ndarray


@dataclass(frozen=True)
class Picture:
    """What one picture was measured to be; see `Measured`."""

    pixels: int
    mean: np.ndarray
    square: np.ndarray
    low: int
    high: int
    spread: float
    colourful: float
    box: tuple[float, float, float, float]
    octaves: tuple[float, ...]
    repeated: int
    fine: np.ndarray
    inner: Versions | None


def measure(picture: Image.Image) -> Picture:
    """Measure one picture.

    Args:
        picture: RGB, as stored.
    """
    array = np.asarray(picture)
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=8)
    digest.update(array.tobytes())
    exact = int.from_bytes(digest.digest(), "little") >> 1
    values = array.reshape(-1, 3)
    if len(values) > 262_144:  # a million values tell mean and variance well enough
        values = values[:: len(values) // 262_144]
    part = values.astype(np.float32)
    mean = part.mean(0) / 255
    square = np.einsum("nc,nc->c", part, part) / (len(part) * 255.0**2)
    gap = np.abs(part[:, 0] - part[:, 1]).mean() + np.abs(part[:, 1] - part[:, 2]).mean()
    box = border_box(picture)
    light = picture.convert("L")
    least = light.resize((min(SIDE, light.width), min(SIDE, light.height)), _BOX)
    return Picture(
        exact,
        mean,
        square,
        int(array.min()),
        int(array.max()),
        float(np.asarray(least, dtype=np.float32).std()),
        float(gap) / 2,
        box,
        octave_powers(light),
        repeats(array),
        fine_version(light),
        inside(picture, box),
    )


_SQUARES = np.arange(256, dtype=np.int64) ** 2
_BOX = Image.Resampling.BOX
_SMOOTH = Image.Resampling.BICUBIC


def border_box(picture: Image.Image) -> tuple[float, float, float, float]:
    """Return what a border of one colour leaves of a picture: left, top, right, bottom in [0, 1].

    Each side has a colour of its own; the noise of JPEG is let through.
    """
    width, height = picture.size
    if max(width, height) > _BORDER_SIDE:
        factor = _BORDER_SIDE / max(width, height)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        picture = picture.resize(size, _BOX)
    array = np.asarray(picture).astype(np.int16)
    h, w = array.shape[:2]
    top = _thickness(array)
    if top == h:
        return 0.0, 0.0, 0.0, 0.0
    bottom = _thickness(array[::-1])
    array = array[top : h - bottom]
    left = _thickness(array.transpose(1, 0, 2))
    right = _thickness(array.transpose(1, 0, 2)[::-1])
    if left + right >= w:
        return 0.0, 0.0, 0.0, 0.0
    return left / w, top / h, 1 - right / w, 1 - bottom / h


def _thickness(rows: np.ndarray) -> int:
    """Return how many of the first rows are of the first one's colour, if that has one."""
    first = np.sort(rows[0], axis=0)
    if (first[-1] - first[0]).max() > 2 * _BORDER_TOLERANCE:
        return 0  # whatever its colour is: most pictures, at little cost
    colour = (first[(len(first) - 1) // 2] + first[len(first) // 2]) / 2  # the median
    if np.abs(rows[0] - colour).max() > _BORDER_TOLERANCE:
        return 0
    other = np.abs(rows - colour).max((1, 2)) > _BORDER_TOLERANCE
    return int(other.argmax()) if other.any() else len(rows)


def inside(
    picture: Image.Image, box: tuple[float, float, float, float] | None = None
) -> Versions | None:
    """Return what a border leaves of a picture, None where there is no border, or nothing else."""
    box = border_box(picture) if box is None else box
    width, height = picture.size
    left, top, right, bottom = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    area = (box[2] - box[0]) * (box[3] - box[1])
    if area >= 1 - LEAST_BORDER or right - left < 8 or bottom - top < 8:
        return None
    # The box of a large picture was found in a smaller one, so that a line of border may be left.
    off = max(width, height) / _BORDER_SIDE if max(width, height) > _BORDER_SIDE else 0
    left, top = left + off * (left > 0), top + off * (top > 0)
    right, bottom = right - off * (right < width), bottom - off * (bottom < height)
    return versions(picture.crop((round(left), round(top), round(right), round(bottom))))


def versions(picture: Image.Image) -> Versions:
    """Return small versions of a picture (RGB)."""
    small = picture.resize((SIDE, SIDE), _SMOOTH, reducing_gap=3.0)
    return Versions(np.asarray(small).transpose(2, 0, 1), fine_version(picture.convert("L")))


def fine_version(light: Image.Image) -> np.ndarray:
    """Return the finer version of a grey picture; zeros where it is too small."""
    if min(light.size) < _LEAST_FINE:
        return np.zeros((FINE_SIDE, FINE_SIDE), dtype=np.uint8)
    return np.asarray(light.resize((FINE_SIDE, FINE_SIDE), _SMOOTH, reducing_gap=3.0))


def octave_powers(light: Image.Image) -> tuple[float, ...]:
    """Return the power of a grey picture in octaves of frequency, the finest first.

    Pictures of the world have about as much in each octave (Field, 1987: amplitudes fall as 1/f);
    one that was blurred or enlarged has next to nothing in the finest ones.
    """
    width, height = light.size
    cut = min(width, _LOOKED_AT), min(height, _LOOKED_AT)
    left, top = (width - cut[0]) // 2, (height - cut[1]) // 2
    if cut != light.size:
        light = light.crop((left, top, left + cut[0], top + cut[1]))
    powers = []
    now = light
    for _ in range(OCTAVES):
        half = now.width // 2, now.height // 2
        if min(half) < 4:
            powers.append(float("nan"))
            continue
        even = half[0] * 2, half[1] * 2
        whole = now if now.size == even else now.crop((0, 0, *even))
        less = whole.resize(half, Image.Resampling.LANCZOS)
        back = less.resize(whole.size, Image.Resampling.LANCZOS)
        lost = ImageChops.difference(whole, back).histogram()  # how often by how much
        powers.append(float(_SQUARES @ lost) / (even[0] * even[1]))
        now = less
    return tuple(powers)


def repeats(array: np.ndarray) -> int:
    """Return k where a picture is one of a k-th of its size whose pixels are repeated, else 1."""
    h, w = array.shape[:2]
    for k in range(8, 1, -1):
        if h % k or w % k or min(h, w) < 4 * k:
            continue
        corner = array[::k, ::k]
        if (array[k - 1 :: k, k - 1 :: k] == corner).all() and (
            np.repeat(np.repeat(corner, k, 0), k, 1) == array
        ).all():
            return k if corner.max() - corner.min() > 8 else 1
    return 1
