"""Several datasets as one: the images of the first, then those of the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ddpm_lib.data.condition_values import ConditionValues
from ddpm_lib.data.dataset import ImageDataset, MemoryStore, StreamStore
from ddpm_lib.data.decode import Decoded
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.names import PackedNames
from ddpm_lib.data.source import Examined, Source


class JoinedSource(Source):
    """Rows of several sources, one source after the other.

    Args:
        parts: Sources, each with its rows that belong to this one, int64 (n,).
        names: Of all of them.
    """

    def __init__(self, parts: Sequence[tuple[Source, np.ndarray]], names: PackedNames) -> None:
        self.parts, self.names, self.notes = list(parts), names, []
        self._ends = np.cumsum([0, *(len(rows) for _, rows in parts)])

    def _at(self, row: int) -> tuple[Source, int]:
        k = int(np.searchsorted(self._ends, row, side="right")) - 1
        source, rows = self.parts[k]
        return source, int(rows[row - int(self._ends[k])])

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Decode one image; raises `ImageError` or OSError."""
        source, own = self._at(row)
        return source.load(own, spec)

    def examine(self, row: int, spec: DecodeSpec) -> Examined:
        """Decode one image, with a hash of what it was made of."""
        source, own = self._at(row)
        return source.examine(own, spec)

    def sizes(self) -> np.ndarray:
        """Return one int64 per row that changes when the image is replaced."""
        return np.concatenate([source.sizes()[rows] for source, rows in self.parts])

    def place(self, row: int) -> str:
        """Return words for a row, for messages."""
        source, own = self._at(row)
        return source.place(own)


def join(parts: Sequence[ImageDataset]) -> ImageDataset:
    """Return one dataset of the images of several: in the same order, all in RAM or all streamed.

    Labels are numbered as in the first, and so must the others' be; there are none where a set has
    none. Conditions are those that all have. Its origin is that of the first, and so are, of
    measured values, normalization, unit and geometry.

    Args:
        parts: At least one; of one shape.

    Raises:
        ValueError: If shapes differ, or some lie in RAM and others are read by a user's Dataset.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    shapes = {(part.channels, *part.image_size) for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"Sets of images of different shapes cannot be joined: {shapes}.")
    names = PackedNames(_names(parts))
    stores = [part._store for part in parts]
    store: MemoryStore | StreamStore
    in_ram = [one for one in stores if isinstance(one, MemoryStore)]
    of_files = [one for one in stores if isinstance(one, StreamStore) and not one.source.foreign]
    if len(in_ram) == len(parts):
        images = [one.images[torch.from_numpy(part.rows)] for one, part in zip(in_ram, parts)]
        store = MemoryStore(torch.cat(images))
    elif len(of_files) == len(parts):
        pairs = [(one.source, part.rows) for one, part in zip(of_files, parts)]
        store = StreamStore(JoinedSource(pairs, names), of_files[0].spec)
    else:
        raise ValueError(
            "Sets can be joined if all lie in RAM or all are read from files. Give both the same"
            " cache, or join Datasets of your own with torch's ConcatDataset."
        )
    every = [part.labels for part in parts if part.labels is not None]
    labels = torch.cat(every).numpy() if len(every) == len(parts) else None
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.fingerprint.encode())
    whole = ImageDataset(
        store,
        labels=labels,
        class_names=first.class_names,
        names=names,
        rows=np.arange(len(names), dtype=np.int64),
        fingerprint=digest.hexdigest(),
        notes=first.notes,
        origin=first.origin,
    )
    whole.earlier_fingerprint = whole.fingerprint
    whole.opened_with, whole.stored = first.opened_with, first.stored
    whole.applied, whole.measured = first.applied, first.measured
    shared = [k for k in first.conditions if all(k in part.conditions for part in parts)]
    whole.conditions = {k: _values([part.conditions[k] for part in parts]) for k in shared}
    whole._reading = first._reading
    return whole.with_map(first.normalization) if first.measured else whole


def _names(parts: Sequence[ImageDataset]) -> list[bytes]:
    """Return the names; those of further sets with their number in front."""
    found = []
    for k, part in enumerate(parts):
        mark = b"" if k == 0 else b"+%d/" % k
        found += [mark + part.names.raw(i) for i in range(len(part))]
    return found


def _values(parts: Sequence[ConditionValues]) -> ConditionValues:
    arrays = [part.values for part in parts if isinstance(part.values, np.ndarray)]
    if len(arrays) == len(parts):
        values: Any = np.concatenate(arrays)
    else:
        values = join([part.values for part in parts])  # type: ignore[misc]
    written = _all([part.written for part in parts])
    texts = _all([part.texts for part in parts])
    first = parts[0]
    return ConditionValues(first.kind, values, first.drop_prob, first.more, written, texts)


def _all(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if len(there) == len(parts) else None
