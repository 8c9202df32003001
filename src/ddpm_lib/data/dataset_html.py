"""What a notebook shows of a set of images: examples, counts, classes."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_lib import images as pictures
from ddpm_lib.core.markup import card, escape, facts, never_fails, note, picture, table
from ddpm_lib.core.spread import evenly

EXAMPLES = 12
"""Pictures that are shown."""

STREAMED = 6
"""The same, where each must be decoded."""

SECONDS = 1.0
"""After so long no further picture is decoded."""

SIDE = 64
"""Pixels of the side of an example; larger images are made smaller."""

_CLASSES = 12
_NOTES = 4


class ShownSet(Protocol):
    """What is read of an `ImageDataset`."""

    class_names: tuple[str, ...] | None
    notes: list[str]

    @property
    def image_size(self) -> tuple[int, ...]:
        """(height, width), or another spatial shape."""

    @property
    def channels(self) -> int:
        """Channels of every image."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None without labels."""

    @property
    def labels(self) -> Tensor | None:
        """int64 (n,), or None without labels."""

    @property
    def in_memory(self) -> bool:
        """Whether the images lie decoded in RAM."""

    def __len__(self) -> int: ...

    def batch(self, indices: Any, draws: Any = None) -> dict[str, Tensor]:
        """Return stacked items."""


@never_fails
def dataset_html(self: ShownSet) -> str:
    """Show how many images of which size and class there are, with a few of them, as HTML."""
    shape = "×".join(map(str, (self.channels, *self.image_size)))
    pairs: list[tuple[str, object]] = [
        ("images", f"{len(self):,}, {'in RAM' if self.in_memory else 'read when needed'}"),
        ("shape", f"{shape} (channels×size)"),
        ("classes", class_counts(self) or "no labels"),
    ]
    examples, remark = example_pictures(self)
    notes = "<br>".join(escape(line) for line in self.notes[:_NOTES])
    small = f'<span style="font-size:90%;opacity:.75">{notes}</span>' if notes else ""
    return card(type(self).__name__, facts(pairs), examples, note(remark) if remark else "", small)


def class_counts(data: ShownSet) -> str:
    """Word how many images each class has; empty without labels."""
    if data.labels is None:
        return ""
    total = data.num_classes or 0
    counts = torch.bincount(data.labels.clamp(min=0), minlength=total).tolist()
    names = data.class_names or tuple(map(str, range(total)))
    shown = [f"{name} {count:,}" for name, count in zip(names[:_CLASSES], counts)]
    more = [f"and {total - _CLASSES} more classes"] if total > _CLASSES else []
    return ", ".join([*shown, *more])


def example_pictures(data: ShownSet) -> tuple[str, str]:
    """Return a picture of a few images, spread over the set or its classes, and what kept it from
    being complete; both may be empty.
    """
    if len(data.image_size) != 2 or data.channels not in (1, 3, 4) or not len(data):
        return "", ""
    rows = example_rows(data, EXAMPLES if data.in_memory else STREAMED)
    began, tiles, remark = time.monotonic(), list[Tensor](), ""
    for row in rows.tolist():
        try:
            image = data.batch([row], draws=np.zeros(1, dtype=np.int64))["image"][0]
        except (OSError, ValueError) as error:
            remark = f"Not every example can be read: {error}"
            break
        tiles.append(pictures.thumbnail(image, SIDE))
        if time.monotonic() - began > SECONDS:
            break
    if not tiles:
        return "", remark
    grid = pictures.make_grid(torch.stack(tiles), columns=len(tiles))
    enlarged = max(1, SIDE // max(tiles[0].shape[-2:]))
    width = grid.shape[-1] * min(enlarged, 3)
    return picture(pictures.png_bytes(grid), "examples of the images", width), remark


def example_rows(data: ShownSet, most: int) -> np.ndarray:
    """Return the first images of each class in turn, or rows spread over a set without labels."""
    n = min(most, len(data))
    if data.labels is None:
        return evenly(n, len(data))
    labels = data.labels.numpy()
    _, first = np.unique(labels, return_index=True)
    chosen = list(first[:n])
    chosen += [row for row in evenly(n, len(data)) if row not in set(chosen)]
    rows = np.array(chosen[:n], dtype=np.int64)
    return rows[np.argsort(labels[rows], kind="stable")]


class ShownSummary(Protocol):
    """What is read of a `SysuSummary`."""

    train: dict[str, int]
    eval: dict[str, int]
    notes: list[str]


@never_fails
def summary_html(self: ShownSummary) -> str:
    """Show how many images of each class were laid out, and the notes, as HTML."""
    rows = [(name, self.train[name], self.eval.get(name, 0)) for name in self.train]
    rows.append(("all", sum(self.train.values()), sum(self.eval.values())))
    counts = table(("class", "training", "held out"), rows)
    return card("SYSU-Shape", counts, *map(note, self.notes[:_NOTES]))
