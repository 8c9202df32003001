"""The parts that data has: training images and held-out ones, and what they are read from."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lib.data.auditing.looking import Measured
from ddpm_lib.data.dataset import ImageDataset, MemoryStore
from ddpm_lib.data.decode import Decoded, ImageError, fit_array
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.source import BadImagesError, Source
from ddpm_lib.data.split_files import split_in
from ddpm_lib.data.split_names import best_split, split_of
from ddpm_lib.data.suffixes import PICTURES
from ddpm_lib.data.torchvision_sets import SETS, set_named


@dataclass(frozen=True)
class Part:
    """A part of the data, measured.

    Attributes:
        name: What to call it.
        source: Its images.
        measured: What was measured of them.
    """

    name: str
    source: Source
    measured: Measured


class OpenedSource(Source):
    """An `ImageDataset` that is open already, as a source.

    Args:
        data: The dataset; uint8 images of two dimensions.

    Raises:
        ValueError: If it holds anything else.
    """

    def __init__(self, data: ImageDataset) -> None:
        store = data._store
        floats = isinstance(store, MemoryStore) and "uint8" not in str(store.images.dtype)
        if len(data.image_size) != 2 or floats or data.channels not in (1, 3, 4):
            raise ValueError(
                f"The audit looks at images of 8 bits with 1, 3 or 4 channels; this set holds"
                f" entries of shape {(data.channels, *data.image_size)}"
                f"{' of other numbers' if floats else ''}."
            )
        self.opened = data
        self.names, self.notes = data.names, list(data.notes)
        self.labels = None if data.labels is None else data.labels.numpy()
        self.class_names, self.listed_groups = data.class_names, data.groups

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Fit one image; raises `ImageError` or OSError."""
        try:
            image = self.opened.batch([row])["image"][0].numpy()
        except BadImagesError as error:
            raise ImageError(error.bad[0][1]) from None
        return fit_array(image.transpose(1, 2, 0), spec)

    def sizes(self) -> np.ndarray:
        """Return zeros: there are no files."""
        return np.zeros(len(self), dtype=np.int64)


def splits_of(data: Any, asked: bool = False) -> list[str]:
    """Return the names of the splits that data has, the one to train on first; empty where it has
    none, or one.

    Args:
        data: What `open_dataset` takes.
        asked: Whether an option says that a set of torchvision is meant.
    """
    name = set_named(data, asked)
    if name is not None:
        held = SETS[name].held_out
        return [SETS[name].trained_on, held] if held else []
    if isinstance(data, dict) and type(data).__module__.split(".")[0] == "datasets":
        return _ordered(list(data))
    if not isinstance(data, (str, os.PathLike)) or not os.fspath(data):
        return []
    path = Path(os.fspath(data)).expanduser()
    if not path.is_dir():
        return []
    if (path / "dataset_dict.json").is_file():
        try:
            return _ordered(json.loads((path / "dataset_dict.json").read_text())["splits"])
        except (OSError, ValueError, KeyError, TypeError):
            return []  # opening it says what is wrong
    tables = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    if tables:
        return _ordered([found for found in {split_in(file) for file in tables} if found])
    return _ordered(_folders(path))


def _folders(path: Path) -> list[str]:
    """Return the sub-folders that are splits, if all that hold pictures are."""
    inside = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in inside if entry.is_dir())
    loose = any(os.fsencode(entry.suffix.lower()) in PICTURES for entry in inside)
    kinds = {name: split_of(name) for name in folders}
    if loose or None in kinds.values() or "train" not in kinds.values():
        return []
    return folders


def _ordered(names: list[str]) -> list[str]:
    """Put the split to train on first; without one that others are held out of, there are none."""
    if len(names) < 2:
        return []
    first = best_split(names)
    rest = sorted(name for name in names if name != first and split_of(name) == "other")
    return [first, *rest] if rest else []
