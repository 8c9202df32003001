"""The one dataset type: uint8 images of one shape with optional class labels, from RAM or decoded
on demand.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.data.dataset_conditions import condition_table, taken, with_conditions
from ddpm_lib.data.dataset_html import dataset_html
from ddpm_lib.data.names import ChosenNames, Names, NumberedNames
from ddpm_lib.data.source import BadImagesError as BadImagesError
from ddpm_lib.data.source import Source as Source
from ddpm_lib.data.stores import Map
from ddpm_lib.data.stores import MemoryStore as MemoryStore
from ddpm_lib.data.stores import Store as Store
from ddpm_lib.data.stores import StreamStore as StreamStore
from ddpm_lib.data.transforms import AppliedTransform

if TYPE_CHECKING:
    from ddpm_lib.data.condition_values import ConditionValues
    from ddpm_lib.data.contents import Origin
    from ddpm_lib.data.stored_sizes import StoredSizes


class ImageDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Images of one shape, with class labels where there are any. Build it with `open_dataset`.

    Items are `{"image": uint8 (c, h, w), "class_label": int64 ()}`; the label is absent without
    labels. Everything is held in arrays, so the object may be pickled and is shared, not copied, by
    forked workers. No random numbers are ever drawn here; what the transforms of a user's Dataset
    draw from the global generators is named by `draws`.

    Args:
        store: The images.
        labels: int64 (n,), one per image, 0 … num_classes - 1.
        class_names: One name per class.
        names: One name per row of the store; default: row numbers.
        rows: Rows of the store that belong to the dataset, int64 (n,); default: all.
        fingerprint: Hex digest that says whether two datasets are the same.
        notes: Clear lines on what was opened and what was done to the images.
        origin: The whole set that these rows were opened from, with what is compared of it.
    """

    def __init__(
        self,
        store: Store,
        *,
        labels: np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
        names: Names | None = None,
        rows: np.ndarray | None = None,
        fingerprint: str = "",
        notes: Iterable[str] = (),
        origin: Origin | None = None,
    ) -> None:
        if rows is None:
            n = len(store.images) if isinstance(store, MemoryStore) else len(names or ())
            rows = np.arange(n, dtype=np.int64)
        self._store = store
        self._rows = rows
        self._labels = None if labels is None else np.ascontiguousarray(labels, dtype=np.int64)
        self._names = (
            names if names is not None else NumberedNames(int(rows.max()) + 1 if len(rows) else 0)
        )
        self.class_names = None if class_names is None or labels is None else tuple(class_names)
        self.fingerprint = fingerprint
        self.earlier_fingerprint = fingerprint if origin is None else origin.earlier
        self.notes = list(notes)
        self.origin = origin
        self.opened_with: dict[str, Any] = {}
        """The options of `open_dataset` that said how the images are read."""
        self.applied = AppliedTransform()
        """The transform of `open_dataset` by which the pictures were read."""
        self.groups: np.ndarray | None = None
        """int64 (n,): images of one number stay together when the set is split; None: each is on
        its own.
        """
        self.conditions: dict[str, ConditionValues] = {}
        """Further fields of the items, by name; see `with_conditions`."""
        self.grown_from: tuple[tuple[str, int, dict[str, str]], ...] = ()
        """Fingerprint, number of images and hashes of conditions before each set that was joined to
        the first.
        """
        self.stored: StoredSizes | None = None
        """How large the pictures of the whole set were, where decoding them has told."""
        self.measured: dict[str, Any] = {}
        """Of measured values: their type as stored, unit and geometry, and the fingerprint of the
        images that a map was fitted on when they were opened; empty for pictures.
        """
        self._reading: int | None = 0

    @property
    def normalization(self) -> Any:
        """How measured values become what is trained on, a `Normalization`; None for pictures."""
        return getattr(self._store, "after", None)

    def with_map(self, after: Map | None) -> ImageDataset:
        """Return the same images, of which `after` makes what is trained on; None: as stored."""
        same = copy.copy(self)
        store: Any = copy.copy(self._store)
        store.after = after
        same._store, same.notes = store, list(self.notes)
        return same

    def stored_values(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return measured values (n, c, *spatial) in their units and type."""
        store: Any = self._store
        rows = self._rows[np.asarray(indices, dtype=np.int64)]
        return np.asarray(store.stored(rows, self.next_draws(len(rows))))

    @property
    def image_size(self) -> tuple[int, ...]:
        """(height, width) of every image; the spatial shape of other data."""
        return self._store.shape[1:]

    @property
    def channels(self) -> int:
        """Channels of every image: 1, 3 or 4."""
        return self._store.shape[0]

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None without labels."""
        if self._labels is None:
            return None
        if self.class_names is not None:
            return len(self.class_names)
        return int(self._labels.max()) + 1 if len(self._labels) else 0

    @property
    def rows(self) -> np.ndarray:
        """The rows of the store that belong to the dataset, int64 (n,)."""
        return self._rows

    @property
    def stored_rows(self) -> int:
        """How many rows the store has, with those that do not belong to the dataset."""
        return len(self._names)

    @property
    def labels(self) -> Tensor | None:
        """int64 (n,), or None without labels."""
        return None if self._labels is None else torch.from_numpy(self._labels)

    @property
    def in_memory(self) -> bool:
        """Whether the images lie decoded in RAM (then no loader workers are needed)."""
        return self._store.in_memory

    @property
    def drawn(self) -> bool:
        """Whether reading an image may draw random numbers: those of a user's Dataset or transform,
        streamed.
        """
        return isinstance(self._store, StreamStore) and self._store.draws

    @property
    def read_here(self) -> bool:
        """Whether images are read in this process only (num_workers=0 for a Dataset of the
        user's).
        """
        return isinstance(self._store, StreamStore) and self._store.source.here

    @property
    def user_dataset(self) -> Any:
        """The user's Dataset that images are streamed from, or None."""
        return (
            getattr(self._store.source, "data", None)
            if isinstance(self._store, StreamStore)
            else None
        )

    def place(self, row: int) -> str:
        """Return words for a row of the store, for messages."""
        return (
            self._store.source.place(row) if isinstance(self._store, StreamStore) else f"row {row}"
        )

    def report_rows(self, at: np.ndarray) -> None:
        """Write the row of the store that is being read to `at[0]` from now on."""
        if isinstance(self._store, StreamStore):
            self._store.at = at

    @property
    def names(self) -> Names:
        """The file name (relative to the folder) or row number of each image, made when asked
        for.
        """
        return ChosenNames(self._names, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"Image {i} of a dataset of {len(self)}.")
        return {field: value[0] for field, value in self.batch([i]).items()}

    def batch(
        self,
        indices: Sequence[int] | np.ndarray | Tensor,
        draws: Sequence[int] | np.ndarray | None = None,
    ) -> dict[str, Tensor]:
        """Return stacked items: `image` uint8 (n, c, h, w); with labels `class_label` int64 (n,);
        and the conditions.

        Args:
            indices: Which images.
            draws: One number per image, for Datasets with random transforms: the same number and
                image give the same random numbers (those of the global generators of Python, numpy
                and torch). Default: others in each call.

        Raises:
            IndexError: If an index is out of range.
            BadImagesError: If a streamed image cannot be decoded, naming the file.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if draws is None:
            draws = self.next_draws(len(chosen))
        out = {"image": self._store.get(self._rows[chosen], np.asarray(draws, dtype=np.int64))}
        if self._labels is not None:
            out["class_label"] = torch.from_numpy(self._labels[chosen])
        out |= {name: values.get(chosen) for name, values in self.conditions.items()}
        return out

    def next_draws(self, n: int) -> np.ndarray:
        """Return numbers for the next n readings: new ones, or 0 for a set that is the same in
        every reading.
        """
        if self._reading is not None:
            self._reading += 1
        return np.full(n, self._reading or 0, dtype=np.int64)

    def steady(self) -> ImageDataset:
        """Return the same set, whose random transforms draw the same in every reading that no
        `draws` name.
        """
        same = copy.copy(self)
        same._reading = None
        return same

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> ImageDataset:
        """Return the dataset of these images, in this order; images in RAM are shared, not
        copied.
        """
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        part = ImageDataset(
            self._store,
            labels=None if self._labels is None else self._labels[chosen],
            class_names=self.class_names,
            names=self._names,
            rows=self._rows[chosen],
            fingerprint=self._digest(self.fingerprint, chosen),
            notes=[f"{len(chosen):,} of {len(self):,} images"],
            origin=self.origin,
        )
        part.earlier_fingerprint = self._digest(self.earlier_fingerprint, chosen)
        part._reading = None if self._reading is None else 0
        part.opened_with, part.stored = self.opened_with, self.stored
        part.applied = self.applied
        part.measured = self.measured
        part.groups = None if self.groups is None else self.groups[chosen]
        part.conditions = taken(self.conditions, chosen)
        return part

    def relabelled(self, labels: np.ndarray, class_names: Sequence[str]) -> ImageDataset:
        """Return the same images with other labels int64 (n,), by other names."""
        same = copy.copy(self)
        same._labels, same.class_names = np.asarray(labels, np.int64), tuple(class_names)
        return same

    def _digest(self, whole: str, chosen: np.ndarray) -> str:
        digest = hashlib.blake2b(whole.encode(), digest_size=16)
        digest.update(np.arange(len(self), dtype=np.int64)[chosen].tobytes())
        return digest.hexdigest()

    def split(self, held_out: float | int, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
        """Cut into (train, held out) by a hash of each name, class by class.

        A fraction keeps each image on its side when other files are added or removed; a count is
        exact, and moves few images then. Byte-identical images (for sets in RAM) and images of
        one of the `groups` go to the same side.

        Args:
            held_out: A float in (0, 1), the fraction held out, or an int, the number of images.
            seed: Another seed, another cut.

        Raises:
            ValueError: If a side would be empty.
        """
        from ddpm_lib.data.split import hold_out, joined

        groups = joined(self._twins(), self.groups)
        held = hold_out(self.names, self._labels, groups, held_out, seed)
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def _twins(self) -> np.ndarray | None:
        """Number the groups of byte-identical images, int64 (n,); None where that would mean
        decoding everything.
        """
        if not isinstance(self._store, MemoryStore):
            return None
        if self._store.twins is not None:
            return self._store.twins[self._rows]
        images = self._store.images.numpy()
        groups: dict[bytes, int] = {}
        digests = (
            hashlib.blake2b(images[row].tobytes(), digest_size=16).digest()
            for row in self._rows.tolist()
        )
        return np.array(
            [groups.setdefault(digest, k) for k, digest in enumerate(digests)], dtype=np.int64
        )

    def __repr__(self) -> str:
        size = "×".join(map(str, (self.channels, *self.image_size)))
        classes = "no labels" if self._labels is None else f"{self.num_classes} classes"
        where = "in RAM" if self.in_memory else "streamed"
        return f"ImageDataset({len(self):,} images, {size}, {classes}, {where})"

    with_conditions = with_conditions
    condition_table = property(condition_table)
    _repr_html_ = dataset_html
