"""The one dataset type: uint8 images of one shape with optional class labels, from RAM or decoded on demand."""

from __future__ import annotations

import errno
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_lib import spelling
from ddpm_lib.data.decode import Decoded, DecodeSpec, ImageError
from ddpm_lib.data.names import ChosenNames, Names, NumberedNames

_SHOWN = 20
_TRANSIENT = (
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR} if hasattr(errno, "ESTALE") else set()
)


class BadImagesError(ValueError):
    """Images that cannot be used, all of them at once; `bad` holds (name, reason) pairs.

    Args:
        bad: Names and reasons.
        total: Number of images looked at, for the message.
        hint: What to do about it.
    """

    def __init__(self, bad: Sequence[tuple[str, str]], total: int, hint: str | None = None) -> None:
        self.bad = list(bad)
        self.total = total
        self.hint = hint
        lines = [f"  {name}: {reason}" for name, reason in self.bad[:_SHOWN]]
        if len(self.bad) > _SHOWN:
            lines.append(f"  … and {len(self.bad) - _SHOWN:,} more")
        hint = hint or f"Repair or remove them, or leave them out with {spelling.option('on_bad_image', 'skip')}."
        super().__init__(f"{len(self.bad):,} of {total:,} images cannot be used:\n" + "\n".join(lines) + f"\n{hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.bad, self.total, self.hint)


class Source(ABC):
    """Where images come from: `load(row, spec)` by row number, names, and labels where there are any."""

    names: Names
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    notes: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Decode one image; raises `ImageError` or OSError."""

    @abstractmethod
    def sizes(self) -> np.ndarray:
        """Return one int64 per row that changes when the image is replaced: the length of its file."""

    def mtimes(self) -> np.ndarray | None:
        """Return the times of last change, int64, where that is known."""
        return None


class Store(Protocol):
    """Rows of images of one shape."""

    in_memory: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, *spatial) of one row."""
        ...

    def get(self, rows: np.ndarray) -> Tensor:
        """Return uint8 images (n, c, h, w)."""
        ...


class MemoryStore:
    """Images in RAM: one uint8 tensor (n, c, h, w), or any other tensor (n, c, *spatial) in [0, 1]."""

    in_memory = True

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.shape = tuple(images.shape[1:])

    def get(self, rows: np.ndarray) -> Tensor:
        """Return uint8 images (n, c, h, w), copied."""
        return self.images[torch.from_numpy(rows)]


class StreamStore:
    """Images decoded when asked for; a disk that fails for a moment is asked again three times."""

    in_memory = False

    def __init__(self, source: Source, spec: DecodeSpec) -> None:
        self.source = source
        self.spec = spec
        self.shape = spec.shape

    def get(self, rows: np.ndarray) -> Tensor:
        """Return uint8 images (n, c, h, w), decoded.

        Raises:
            BadImagesError: If a file cannot be read or decoded, naming it.
        """
        out = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for k, row in enumerate(rows.tolist()):
            out[k] = self._load(row)
        return torch.from_numpy(out)

    def _load(self, row: int) -> np.ndarray:
        try:
            return load_patiently(self.source, row, self.spec).pixels
        except (ImageError, OSError) as error:
            hint = (
                "It was not checked when the set was opened, or has changed since. Restore it, or open the set again."
            )
            raise BadImagesError([(self.source.names[row], reason(error))], len(self.source), hint) from None


def reason(error: Exception) -> str:
    """Word an `ImageError` or OSError for a list of bad files."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def load_patiently(source: Source, row: int, spec: DecodeSpec, pause: float = 0.2) -> Decoded:
    """Load one image; retry three times, with growing pauses, after errors of the kind network drives have."""
    for attempt in range(3):
        try:
            return source.load(row, spec)
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
            time.sleep(pause * 4**attempt)
    return source.load(row, spec)


class ImageDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Images of one shape, with class labels where there are any. Build it with `open_dataset`.

    Items are `{"image": uint8 (c, h, w), "class_label": int64 ()}`; the label is absent without labels. Everything
    is held in arrays, so the object may be pickled and is shared, not copied, by forked workers. No random numbers
    are ever drawn.

    Args:
        store: The images.
        labels: int64 (n,), one per image, 0 … num_classes - 1.
        class_names: One name per class.
        names: One name per row of the store; default: row numbers.
        rows: Rows of the store that belong to the dataset, int64 (n,); default: all.
        fingerprint: Hex digest that says whether two datasets are the same.
        notes: Clear lines on what was opened and what was done to the images.
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
    ) -> None:
        if rows is None:
            n = len(store.images) if isinstance(store, MemoryStore) else len(names or ())
            rows = np.arange(n, dtype=np.int64)
        self._store = store
        self._rows = rows
        self._labels = None if labels is None else np.ascontiguousarray(labels, dtype=np.int64)
        self._names = names if names is not None else NumberedNames(int(rows.max()) + 1 if len(rows) else 0)
        self.class_names = None if class_names is None or labels is None else tuple(class_names)
        self.fingerprint = fingerprint
        self.notes = list(notes)

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
    def labels(self) -> Tensor | None:
        """int64 (n,), or None without labels."""
        return None if self._labels is None else torch.from_numpy(self._labels)

    @property
    def in_memory(self) -> bool:
        """Whether the images lie decoded in RAM (then no loader workers are needed)."""
        return self._store.in_memory

    @property
    def names(self) -> Names:
        """The file name (relative to the folder) or row number of each image, made when asked for."""
        return ChosenNames(self._names, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"Image {i} of a dataset of {len(self)}.")
        return {field: value[0] for field, value in self.batch([i]).items()}

    def batch(self, indices: Sequence[int] | np.ndarray | Tensor) -> dict[str, Tensor]:
        """Return stacked items: `image` uint8 (n, c, h, w) and, with labels, `class_label` int64 (n,).

        Raises:
            IndexError: If an index is out of range.
            BadImagesError: If a streamed image cannot be decoded, naming the file.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        out = {"image": self._store.get(self._rows[chosen])}
        if self._labels is not None:
            out["class_label"] = torch.from_numpy(self._labels[chosen])
        return out

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> ImageDataset:
        """Return the dataset of these images, in this order; images in RAM are shared, not copied."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        digest.update(np.arange(len(self), dtype=np.int64)[chosen].tobytes())
        return ImageDataset(
            self._store,
            labels=None if self._labels is None else self._labels[chosen],
            class_names=self.class_names,
            names=self._names,
            rows=self._rows[chosen],
            fingerprint=digest.hexdigest(),
            notes=[f"{len(chosen):,} of {len(self):,} images"],
        )

    def split(self, held_out: float | int, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
        """Cut into (train, held out) by a hash of each name, class by class.

        A fraction keeps each image on its side when other files are added or removed; a count is exact, and moves
        few images then. Byte-identical images (for sets in RAM) go to the same side.

        Args:
            held_out: A float in (0, 1), the fraction held out, or an int, the number of images.
            seed: Another seed, another cut.

        Raises:
            ValueError: If a side would be empty.
        """
        from ddpm_lib.data.split import hold_out

        held = hold_out(self.names, self._labels, self._twins(), held_out, seed)
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def _twins(self) -> np.ndarray | None:
        """Number the groups of byte-identical images, int64 (n,); None where that would mean decoding everything."""
        if not isinstance(self._store, MemoryStore):
            return None
        images = self._store.images.numpy()
        groups: dict[bytes, int] = {}
        digests = (hashlib.blake2b(images[row].tobytes(), digest_size=16).digest() for row in self._rows.tolist())
        return np.array([groups.setdefault(digest, k) for k, digest in enumerate(digests)], dtype=np.int64)

    def __repr__(self) -> str:
        size = "×".join(map(str, (self.channels, *self.image_size)))
        classes = "no labels" if self._labels is None else f"{self.num_classes} classes"
        where = "in RAM" if self.in_memory else "streamed"
        return f"ImageDataset({len(self):,} images, {size}, {classes}, {where})"
