"""Copies of the set's own pictures, made to see whether the search finds them."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from ddpm_lib.core.keys import key

PER_KIND = 25


def _again(picture: Image.Image, _: np.random.Generator) -> Image.Image:
    raw = io.BytesIO()
    picture.save(raw, "JPEG", quality=60)
    return Image.open(io.BytesIO(raw.getvalue())).convert("RGB")


def _mirrored(picture: Image.Image, _: np.random.Generator) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _cut(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    w, h = picture.size
    side = draw.uniform(0.8, 0.92)
    width, height = max(1, round(w * side)), max(1, round(h * side))
    left, top = int(draw.integers(0, w - width + 1)), int(draw.integers(0, h - height + 1))
    return picture.crop((left, top, left + width, top + height))


def _scaled(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    factor = float(draw.choice([0.5, 0.75, 2.0]))
    w, h = picture.size
    size = max(1, round(w * factor)), max(1, round(h * factor))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _brighter(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(float(draw.choice([0.75, 1.25])))


def _bordered(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    w, h = picture.size
    thick = max(1, round(min(w, h) * draw.uniform(0.06, 0.18)))
    colour = int(draw.choice([0, 255]))
    frame = Image.new("RGB", (w + 2 * thick, h + 2 * thick), (colour,) * 3)
    frame.paste(picture, (thick, thick))
    return frame


def _turned(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    angle = draw.uniform(2, 5) * draw.choice([-1, 1])
    w, h = picture.size
    off = int(np.ceil(max(w, h) * abs(np.sin(np.deg2rad(angle))) / 2))
    turned = picture.rotate(angle, Image.Resampling.BICUBIC)
    return turned.crop((off, off, w - off, h - off)) if min(w, h) > 4 * off else turned


def _noisy(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    values = np.asarray(picture).astype(np.float32)
    values += draw.normal(0, 6, values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


KINDS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "saved again as JPEG": _again,
    "mirrored": _mirrored,
    "cut": _cut,
    "scaled": _scaled,
    "brighter or darker": _brighter,
    "with a border": _bordered,
    "turned a little": _turned,
    "with noise": _noisy,
}


def trial_rows(n: int) -> dict[int, str]:
    """Choose rows of n, spread evenly, of which copies are made, and the kind of each."""
    count = min(n, PER_KIND * len(KINDS))
    rows = np.unique(np.linspace(0, n - 1, count).round().astype(int)).tolist() if n else []
    kinds = list(KINDS)
    return {row: kinds[k % len(kinds)] for k, row in enumerate(rows)}


def trial_copy(picture: Image.Image, kind: str, row: int) -> Image.Image:
    """Make a copy of a picture (RGB); the same for the same row."""
    return KINDS[kind](picture, np.random.default_rng(key("trial", row) >> 1))
