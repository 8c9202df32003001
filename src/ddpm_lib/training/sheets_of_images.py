"""Sheets for the page of a run: training images as the network sees them, and those nearest to its
samples.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.spread import evenly
from ddpm_lib.core.text import printable
from ddpm_lib.data import ImageDataset
from ddpm_lib.images import make_grid, save_image, to_uint8
from ddpm_lib.metrics.memorisation import COPY_RATIO
from ddpm_lib.metrics.neighbours import distances
from ddpm_lib.metrics.sample_facts import COPY_SIDE, averaged
from ddpm_lib.runs.report.sheets import FOLDER, PADDING

CLASSES, PER_CLASS, PER_ROW = 10, 8, 10
"""Rows and columns of the sheet of training images."""
SAMPLES = 16
"""Samples on the sheet of nearest images."""
SEARCHED, STREAMED = 4096, 512
"""Images that are searched on each side, of a set in RAM and of one that is decoded on demand."""
_TILE = 128
_CHUNK = 512


def write_data_sheet(dataset: ImageDataset, run: Path) -> None:
    """Write report/data.png: some images of each class, or of the whole set, spread over it.

    Args:
        dataset: Training images, pictures.
        run: The run directory.

    Raises:
        OSError: If the disk refuses.
        BadImagesError: If an image cannot be read.
    """
    labels = dataset.labels
    if labels is None:
        n = min(len(dataset), 4 * PER_ROW)
        chosen = evenly(n, len(dataset)).tolist()
        rows = [("", chosen[k : k + PER_ROW]) for k in range(0, n, PER_ROW)]
    else:
        rows = []
        for k in range(min(dataset.num_classes or 0, CLASSES)):
            among = torch.nonzero(labels == k)[:, 0]
            some = among[evenly(min(PER_CLASS, len(among)), max(1, len(among)))].tolist()
            names = dataset.class_names
            rows.append((str(k) if names is None else names[k], some))
    columns = max((len(images) for _, images in rows), default=0)
    if not columns:
        return
    blank = torch.full((dataset.channels, *dataset.image_size), 255, dtype=torch.uint8)
    tiles: list[Tensor] = []
    for _, images in rows:
        found = [*dataset.steady().batch(images)["image"]] if images else []
        tiles += [to_uint8(tile) for tile in found] + [blank] * (columns - len(images))
    about = [{"label": printable(label), "images": len(images)} for label, images in rows]
    _write_sheet(run, "data", _fitted(torch.stack(tiles)), columns, {"rows": about})


class NearestImages:
    """Finds the training image and the held-out image nearest to each sample, by their pixels.

    Distances are root mean squares over the values of images averaged to at most 16×16, in [0, 1].
    The features of the images that are searched are kept from the first search on.

    Args:
        train: Training images, pictures.
        held_out: Held-out images, where there are some.
    """

    def __init__(self, train: ImageDataset, held_out: ImageDataset | None) -> None:
        self._sets = {"train": train.steady()}
        if held_out is not None and len(held_out):
            self._sets["held_out"] = held_out.steady()
        self._features: dict[str, Tensor] = {}

    def write(self, samples: Tensor, step: int, run: Path) -> None:
        """Write report/nearest.png and nearest.json: sample, nearest training image, nearest
        held-out image.

        Args:
            samples: uint8 images (n, c, h, w).
            step: At which they were drawn.
            run: The run directory.

        Raises:
            OSError: If the disk refuses.
            BadImagesError: If an image cannot be read.
        """
        samples = samples[:SAMPLES]
        found = {side: self._search(side, _features(samples)) for side in self._sets}
        rows, tiles = [], []
        for k, sample in enumerate(samples):
            row: dict[str, Any] = {}
            tiles.append(sample)
            for side, (near, at) in found.items():
                image = int(at[k, 0])
                tiles.append(to_uint8(self._sets[side].batch([image])["image"][0]))
                row[f"{side}_name"] = printable(self._sets[side].names[image])
                row[f"{side}_distance"] = float(near[k, 0])
            near = found["train"][0][k]
            if len(near) > 1:
                row["ratio"] = float(near[0] / near[1]) if float(near[1]) > 0 else 0.0
                row["copy"] = row["ratio"] <= COPY_RATIO
            rows.append(row)
        searched = {side: [self._count(side), len(images)] for side, images in self._sets.items()}
        about = {"step": step, "rows": rows, **searched}
        _write_sheet(run, "nearest", _fitted(torch.stack(tiles)), 1 + len(found), about)

    def _count(self, side: str) -> int:
        images = self._sets[side]
        return min(len(images), SEARCHED if images.in_memory else STREAMED)

    def _search(self, side: str, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances and rows of the two nearest images, each (n, 2), or (n, 1) of one
        image.
        """
        images, n = self._sets[side], self._count(side)
        rows = evenly(n, len(images))
        if side not in self._features:
            parts = [
                _features(to_uint8(images.batch(rows[k : k + _CHUNK])["image"]))
                for k in range(0, n, _CHUNK)
            ]
            self._features[side] = torch.cat(parts)
        every = self._features[side]
        centre = every[:_CHUNK].double().mean(0)
        found = torch.cat(
            [distances(wanted, every[k : k + _CHUNK], centre) for k in range(0, n, _CHUNK)], 1
        )
        near = found.topk(min(2, n), largest=False)
        return near.values / math.sqrt(wanted.shape[1]), torch.from_numpy(rows)[near.indices]


def _features(images: Tensor) -> Tensor:
    """Return uint8 images (n, c, h, w) as float32 (n, d) in [0, 1], averaged to at most 16×16."""
    return averaged(images.cpu().float() / 255.0, COPY_SIDE).flatten(1)


def _fitted(tiles: Tensor) -> Tensor:
    """Return tiles with at most 128 pixels a side."""
    factor = -(-max(tiles.shape[-2:]) // _TILE)
    if factor == 1:
        return tiles
    height, width = (-(-side // factor) for side in tiles.shape[-2:])
    return to_uint8(F.adaptive_avg_pool2d(tiles.float() / 255.0, (height, width)))


def _write_sheet(run: Path, name: str, tiles: Tensor, columns: int, about: dict[str, Any]) -> None:
    about = {**about, "tile": [*tiles.shape[-2:]], "columns": columns}
    save_image(make_grid(tiles, columns, PADDING), run / FOLDER / f"{name}.png")
    write_atomically(run / FOLDER / f"{name}.json", json.dumps(about, indent=1) + "\n")
