"""Shapes: a built-in set of pictures drawn by code, so that everything can be tried without data.

Each picture shows one large, saturated shape on a flat, light background: anybody sees at once
whether a sample is a clean and distinct shape, and a small network learns it in minutes on a CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ddpm_lib.core.keys import hashes, uniform
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.data.dataset import ImageDataset, MemoryStore
from ddpm_lib.data.decode_spec import size_pair

_COLOURS = np.array(
    [
        (214, 39, 40),
        (31, 119, 200),
        (34, 150, 60),
        (130, 60, 180),
        (235, 110, 10),
        (20, 140, 150),
        (200, 40, 130),
        (60, 60, 70),
    ],
    dtype=np.float32,
)
COLOUR_NAMES = ("red", "blue", "green", "purple", "orange", "teal", "pink", "grey")
"""Names of the colours of the shapes, before light is added."""
FACTS = ("size", "colour", "mask", "angle")
"""What is known of every shape; the angle of turned ones."""
_BACKGROUNDS = np.array(
    [
        (250, 250, 250),
        (252, 240, 214),
        (222, 236, 250),
        (226, 246, 226),
        (250, 226, 232),
        (232, 228, 248),
    ],
    dtype=np.float32,
)
_CHUNK = 512


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.96


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.84


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    sloped = np.abs(x) * np.float32(0.8944) - (y + 1.0) * np.float32(0.4472)
    return np.maximum(sloped, y - 0.9)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.72) - 0.26


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(a, b) - 0.32, np.maximum(a, b) - 0.96)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: fold the plane into one tenth of a turn, then take the distance to one straight
    edge.
    """
    outer, inner, sector = 1.08, 0.46, np.pi / 5
    turn = np.arctan2(x, -y)
    folded = np.abs((turn + sector) % (2 * sector) - sector)
    radius = np.hypot(x, y)
    along, across = radius * np.cos(folded), radius * np.sin(folded)
    tip, notch = np.array([outer, 0.0]), inner * np.array([np.cos(sector), np.sin(sector)])
    edge = notch - tip
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    side = (along - tip[0]) * normal[0] + (across - tip[1]) * normal[1]
    return np.maximum(side, along - outer)


_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
    "star": _star,
}
CLASS_NAMES = tuple(_SHAPES)


def draw_shapes(
    indices: np.ndarray,
    size: tuple[int, int],
    channels: int = 3,
    seed: int = 0,
    turned: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the pictures with these indices; each depends on its index, `size`, `channels` and
    `seed` alone.

    Args:
        indices: Any non-negative whole numbers, shape (n,).
        size: (height, width) in pixels.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA on a transparent background).
        seed: Another seed, another set.
        turned: Whether each shape is turned by an angle of its own.

    Returns:
        uint8 pictures (n, c, h, w) and int64 labels (n,), positions in `CLASS_NAMES`.
    """
    indices = np.asarray(indices, dtype=np.int64)
    labels = shape_classes(indices, seed)
    images = np.empty((len(indices), channels, *size), dtype=np.uint8)
    for start in range(0, len(indices), _CHUNK):
        part = slice(start, start + _CHUNK)
        images[part] = _draw(indices[part], labels[part], size, channels, seed, turned)
    return images, labels


def shape_classes(indices: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the classes of the pictures, int64 (n,), positions in `CLASS_NAMES`."""
    found = hashes(indices, seed, "shapes", "class") % np.uint64(len(CLASS_NAMES))
    return found.astype(np.int64)


def _uniform(indices: np.ndarray, seed: int, what: str) -> np.ndarray:
    return uniform(indices, seed, "shapes", what).numpy().astype(np.float32)[:, None, None]


def _radius(indices: np.ndarray, size: tuple[int, int], seed: int, reach: float) -> np.ndarray:
    side = min(size)
    largest = (side / 2 - 1) / reach  # the edge pixels stay background, however small the picture
    return np.minimum(side * (0.24 + 0.14 * _uniform(indices, seed, "radius")), largest)


def _cover(
    indices: np.ndarray, labels: np.ndarray, size: tuple[int, int], seed: int, turned: bool
) -> np.ndarray:
    """Return how much of each pixel the shapes cover, float32 (n, h, w) in [0, 1]."""
    height, width = size
    reach = 1.2 if turned else 1.1
    radius = _radius(indices, size, seed, reach)
    margin = radius * reach + 1
    centre_x = margin + (width - 2 * margin) * _uniform(indices, seed, "x")
    centre_y = margin + (height - 2 * margin) * _uniform(indices, seed, "y")
    x = (np.arange(width, dtype=np.float32) + 0.5 - centre_x) / radius
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - centre_y) / radius
    if turned:
        turn = np.float32(2 * np.pi) * _uniform(indices, seed, "angle")
        x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    distance = np.empty((len(indices), height, width), dtype=np.float32)
    for label, shape in enumerate(_SHAPES.values()):
        rows = labels == label
        distance[rows] = np.broadcast_to(shape(x[rows], y[rows]), (int(rows.sum()), height, width))
    return np.clip(0.5 - distance * radius, 0.0, 1.0)


def _draw(
    indices: np.ndarray,
    labels: np.ndarray,
    size: tuple[int, int],
    channels: int,
    seed: int,
    turned: bool,
) -> np.ndarray:
    height, width = size
    cover = _cover(indices, labels, size, seed, turned)[:, None]

    def pick(palette: np.ndarray, what: str) -> np.ndarray:
        colour = palette[
            (hashes(indices, seed, "shapes", what) % np.uint64(len(palette))).astype(np.int64)
        ]
        return colour[:, :, None, None]

    light = 0.9 + 0.2 * _uniform(indices, seed, "light")[:, None]
    front = np.clip(pick(_COLOURS, "colour") * light, 0, 255)
    back = pick(_BACKGROUNDS, "background")
    if channels == 4:
        opaque = np.broadcast_to(front, (len(indices), 3, height, width))
        return np.concatenate([opaque, cover * 255], axis=1).round().astype(np.uint8)
    picture = back + (front - back) * cover
    if channels == 1:
        picture = (picture * np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]).sum(
            1, keepdims=True
        )
    return picture.round().astype(np.uint8)


def shape_facts(
    what: str, indices: np.ndarray, size: tuple[int, int], seed: int = 0, turned: bool = False
) -> np.ndarray | list[str]:
    """Return what is known of pictures of `draw_shapes`, one entry each.

    Args:
        what: "size" (the diameter as a share of the shorter side), "angle" (degrees clockwise, of
            turned shapes), "colour" (its name), or "mask" (0 background, else 1 + class; uint8
            (n, h, w)).
        indices: As for `draw_shapes`, like the others.
        size: (height, width).
        seed: Of the set.
        turned: Whether shapes are turned.

    Raises:
        ValueError: If there is no such fact.
    """
    if what == "size":
        radius = _radius(indices, size, seed, 1.2 if turned else 1.1)
        return (2 * radius[:, 0, 0] / min(size)).astype(np.float32)
    if what == "angle" and turned:
        return 360.0 * _uniform(indices, seed, "angle")[:, 0, 0]
    if what == "colour":
        numbers = hashes(indices, seed, "shapes", "colour") % np.uint64(len(COLOUR_NAMES))
        return [COLOUR_NAMES[k] for k in numbers.tolist()]
    if what == "mask":
        labels = shape_classes(indices, seed)
        found = _cover(indices, labels, size, seed, turned) >= 0.5
        return found.astype(np.uint8) * (1 + labels.astype(np.uint8))[:, None, None]
    raise ValueError(unknown_name("fact of the built-in shapes", what, FACTS))


class Shapes(ImageDataset):
    """Circles, squares, triangles, rings, crosses and stars, drawn by code and held in RAM.

    Args:
        size: Side in pixels, or (height, width); at least 8.
        n: Number of pictures.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA on a transparent background).
        seed: Another seed, another set. Picture i depends on `seed` and i alone.
        turned: Whether each shape is turned by an angle of its own.

    Raises:
        ValueError: If an argument is out of range.

    >>> data = Shapes(size=16, n=4)
    >>> data[0]["image"].shape, len(data), data.class_names[:3]
    (torch.Size([3, 16, 16]), 4, ('circle', 'square', 'triangle'))
    """

    def __init__(
        self,
        size: int | Sequence[int] = 32,
        n: int = 8192,
        channels: int = 3,
        seed: int = 0,
        turned: bool = False,
    ) -> None:
        pair = size_pair(size)
        if min(pair) < 8:
            raise ValueError(f"Shapes need at least 8×8 pixels; got {pair[0]}×{pair[1]}.")
        if n < 1:
            raise ValueError(f"Shapes need n ≥ 1 pictures; got {n}.")
        if channels not in (1, 3, 4):
            raise ValueError(f"channels must be 1 (grey), 3 (RGB) or 4 (RGBA); got {channels!r}.")
        images, labels = draw_shapes(np.arange(n), pair, channels, seed, turned)
        named = repr(("shapes", 1, pair, n, channels, seed, *["turned"] * turned)).encode()
        self.seed, self.turned = seed, turned
        super().__init__(
            MemoryStore(torch.from_numpy(images)),
            labels=labels,
            class_names=CLASS_NAMES,
            fingerprint=hashlib.blake2b(named, digest_size=16).hexdigest(),
            notes=[f"{n:,} shapes drawn ({images.nbytes / 1e6:.1f} MB)"],
        )

    def column(self, name: str) -> np.ndarray | list[str]:
        """Return what is known of every shape; see `shape_facts`."""
        size = self.image_size[0], self.image_size[1]
        return shape_facts(name, self.rows, size, self.seed, self.turned)
