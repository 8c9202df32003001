"""From a picture of any size to the frame that is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ddpm_lib.data.decode_spec import DecodeSpec


def enlargement(size: tuple[int, int], spec: DecodeSpec) -> float:
    """Enlargement from `size` (width, height) to the frame; above 1 pixels are invented."""
    ratios = spec.image_size[1] / size[0], spec.image_size[0] / size[1]
    return min(ratios) if spec.fit == "pad" else max(ratios)


def fit_bands(picture: Image.Image, spec: DecodeSpec) -> np.ndarray:
    """Fit each band by itself: Pillow would weight colours by a fourth band, as by transparency."""
    grounds = (*spec.background, 0)
    specs = [replace(spec, channels=1, background=(ground, ground, ground)) for ground in grounds]
    return np.stack(
        [np.asarray(resize_to_frame(band, one)) for band, one in zip(picture.split(), specs)],
        axis=2,
    )


def resize_to_frame(picture: Image.Image, spec: DecodeSpec) -> Image.Image:
    """Fit by Pillow's antialiased bicubic filter; nothing is resampled when the size is right
    already.
    """
    height, width = spec.image_size
    if picture.size == (width, height):
        return picture
    w, h = picture.size
    if spec.fit == "stretch":
        return _resample(picture, (width, height), (0.0, 0.0, float(w), float(h)))
    if spec.fit == "crop":
        scale = max(width / w, height / h)
        left, top = (w - width / scale) / 2, (h - height / scale) / 2
        return _resample(
            picture,
            (width, height),
            (max(0.0, left), max(0.0, top), min(w, w - left), min(h, h - top)),
        )
    scale = min(width / w, height / h)
    inner = max(1, min(width, round(w * scale))), max(1, min(height, round(h * scale)))
    fill: Any = {1: round(sum(spec.background) / 3), 3: spec.background, 4: (*spec.background, 0)}[
        spec.channels
    ]
    frame = Image.new(spec.mode, (width, height), fill)
    frame.paste(
        _resample(picture, inner, (0.0, 0.0, float(w), float(h))),
        ((width - inner[0]) // 2, (height - inner[1]) // 2),
    )
    return frame


def _resample(
    picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    return picture.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
