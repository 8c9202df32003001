"""How cleanly a picture shows one of the built-in shapes: what the best drawing of each class
leaves unexplained of its variance.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np

from ddpm_lib.data.shapes import _SHAPES, CLASS_NAMES

SIDE = 32


def _cover(label: int, x: float, y: float, radius: float) -> np.ndarray:
    """Return how much of each pixel a shape covers, without its mean and of length 1, (SIDE²,)."""
    pixels = np.arange(SIDE, dtype=np.float32) + 0.5
    across, down = (pixels - x) / radius, ((pixels - y) / radius)[:, None]
    distance = _SHAPES[CLASS_NAMES[label]](across.astype(np.float32), down.astype(np.float32))
    found = np.clip(0.5 - np.broadcast_to(distance, (SIDE, SIDE)) * radius, 0.0, 1.0).ravel()
    found = found - found.mean()
    return found / np.linalg.norm(found)


@cache
def _drawings(label: int) -> tuple[list[tuple[float, float, float]], np.ndarray]:
    centres = np.arange(9.0, 24.0, 0.5)
    places = [
        (x, y, r)
        for r in np.arange(7.0, 13.0, 0.5)
        for x, y in itertools.product(centres, centres)
        if 1.1 * r < min(x, y, SIDE - x, SIDE - y) + 0.8
    ]
    return places, np.stack([_cover(label, *place) for place in places]).astype(np.float32)


def unexplained(picture: np.ndarray) -> np.ndarray:
    """Return the share of a picture's variance, 0 … 1, that a flat shape of each class on a flat
    ground leaves, (classes,): centre, size and both colours as they fit best.

    Args:
        picture: Values (3, 32, 32) of any scale.
    """
    values = picture.reshape(3, -1).astype(np.float32)
    values = values - values.mean(1, keepdims=True)
    total = float(np.square(values).sum())
    found = []
    for label in range(len(CLASS_NAMES)):
        places, drawings = _drawings(label)
        fit = np.square(drawings @ values.T).sum(1)
        best, place = float(fit.max()), places[int(fit.argmax())]
        for step in (0.25, 0.12, 0.06):
            near = [
                tuple(c + step * d for c, d in zip(place, by, strict=True))
                for by in itertools.product((-1, 0, 1), repeat=3)
            ]
            fits = [float(np.square(_cover(label, *one) @ values.T).sum()) for one in near]
            if max(fits) > best:
                best, place = max(fits), near[int(np.argmax(fits))]
        found.append(1.0 - best / total)
    return np.asarray(found)


def tiles(grid: np.ndarray, columns: int = 6) -> np.ndarray:
    """Cut a grid of samples, (h, w, 3), into pictures (n, 3, 32, 32)."""
    scale = grid.shape[1] // (columns * (SIDE + 2) + 2)
    small = grid[::scale, ::scale]
    rows = small.shape[0] // (SIDE + 2)
    return np.stack(
        [
            small[2 + 34 * row :, 2 + 34 * column :][:SIDE, :SIDE].transpose(2, 0, 1)
            for row in range(rows)
            for column in range(columns)
        ]
    )
