"""Sources of measured values: files in folders and archives, stacked arrays, slices of volumes."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm_lib.data.decode import Decoded, ImageError
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.folders import FolderSource
from ddpm_lib.data.measurements.measured_spec import MeasuredSpec, fit_values
from ddpm_lib.data.measurements.value_files import SUFFIXES, Values, ending_of, read_values
from ddpm_lib.data.names import Names, NumberedNames, PackedNames
from ddpm_lib.data.source import Examined, Source, content_hash

_VOLUMES = 2
"""Volumes that a process keeps unpacked."""


class ValueSource(Source):
    """Where measured values come from: `values(row)` by row number.

    Attributes:
        groups: int64 (n,): rows of one number stay on one side of a split; None: each is alone.
    """

    groups: np.ndarray | None = None

    @abstractmethod
    def values(self, row: int) -> Values:
        """Return the values of one row; raises `ImageError` or OSError."""

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Read one image and fit it; raises `ImageError` or OSError."""
        assert isinstance(spec, MeasuredSpec)
        return fit_values(self.values(row).array, spec)

    def examine(self, row: int, spec: DecodeSpec) -> Examined:
        """Read one image, and hash its values as they are stored."""
        assert isinstance(spec, MeasuredSpec)
        array = self.values(row).array
        return Examined(fit_values(array, spec), content_hash(np.ascontiguousarray(array)))


class ValueFiles(FolderSource):
    """One image or volume per file: .npy, .npz, TIFF, PNG, NIfTI."""

    extensions = SUFFIXES
    groups: np.ndarray | None = None

    def values(self, row: int) -> Values:
        """Read one file; raises `ImageError` or OSError."""
        if row in self.problems:
            raise ImageError(self.problems[row])
        if not self._sizes[row]:
            raise ImageError("empty (zero bytes)")
        with self.open_file(row) as file:
            return read_values(file, ending_of(self._files.raw(row)))

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Read one file and fit what it holds; raises `ImageError` or OSError."""
        assert isinstance(spec, MeasuredSpec)
        return fit_values(self.values(row).array, spec)


class StackSource(ValueSource):
    """Images along the first axis of an array, in memory or in a file.

    Args:
        opened: Opens the array; called once in each process, which must not share an open file.
        names: Of the images; default: row numbers.
        labels: int64 (n,), with `class_names`; or None.
        stamp: What changes when the file is replaced: its size and its time of change in ns.
        place: The file, and the array in it.

    Raises:
        ValueError: If it is no stack of images.
    """

    def __init__(
        self,
        opened: Callable[[], Any],
        where: str,
        labels: tuple[np.ndarray | None, tuple[str, ...] | None] = (None, None),
        stamp: tuple[int, int] | None = None,
        place: str | None = None,
    ) -> None:
        self.notes = []
        self._opened, self._stamp, self._place = opened, stamp, place
        self._array: Any = None
        self._owner = 0
        array = self._mine()
        self.shape, self.dtype = tuple(map(int, array.shape)), np.dtype(array.dtype)
        if len(self.shape) < 3 or not self.shape[0]:
            raise ValueError(
                f"{where} has the shape {self.shape}; a stack of images is (n, h, w), (n, h, w, c)"
                " or (n, c, h, w) with n ≥ 1, of volumes (n, d, h, w) or one more. One image gets a"
                " first axis: array[None]."
            )
        self.labels, self.class_names = labels
        self.names = NumberedNames(self.shape[0])
        self._array = None  # a file that was opened here must not be shared with forked processes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    def _mine(self) -> Any:
        if self._array is None or self._owner != os.getpid():
            self._array, self._owner = self._opened(), os.getpid()
        return self._array

    def values(self, row: int) -> Values:
        """Read one image."""
        try:
            return Values(np.asarray(self._mine()[row]))
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ImageError(" ".join(str(error).split())[:200] or type(error).__name__) from None

    def sizes(self) -> np.ndarray:
        """Return the size of the file for each row; zeros for an array in memory."""
        return np.full(len(self), self._stamp[0] if self._stamp else 0, dtype=np.int64)

    def where(self) -> str | None:
        """Return the file, and the array in it."""
        return self._place

    def mtimes(self) -> np.ndarray | None:
        """Return the time of change of the file for each row."""
        return None if self._stamp is None else np.full(len(self), self._stamp[1], dtype=np.int64)


class SliceSource(ValueSource):
    """Slices of volumes, each an image; those of one volume stay on one side of a split.

    Args:
        volumes: The volumes.
        axis: Along which axis they are cut, 0, 1 or 2.

    Raises:
        ValueError: If there are none of three dimensions, or the axis does not exist.
    """

    def __init__(self, volumes: ValueSource | ValueFiles, axis: int) -> None:
        self.volumes, self.axis = volumes, axis
        self.notes = list(volumes.notes)
        self._kept: OrderedDict[int, Values] = OrderedDict()
        counts, self._bad = [], {}
        for row in range(len(volumes)):
            try:
                shape = volumes.values(row).array.shape
                if len(shape) not in (3, 4):
                    raise ImageError(f"its shape {shape} is not that of a volume")
                counts.append(shape[axis])
            except (ImageError, OSError) as error:
                self._bad[sum(counts)] = str(error)
                counts.append(1)
        self._volume = np.repeat(np.arange(len(counts)), counts)
        self._index = np.concatenate([np.arange(n) for n in counts])
        self.groups = self._volume.astype(np.int64)
        self.names: Names = PackedNames(
            volumes.names.raw(int(v)) + b"#%04d" % int(k) for v, k in zip(self._volume, self._index)
        )
        if volumes.labels is not None:
            self.labels = volumes.labels[self._volume]
            self.class_names = volumes.class_names
        self.notes.append(
            f"{len(self):,} slices along axis {axis} of {len(volumes):,} volume"
            f"{'s' * (len(volumes) > 1)}; those of one volume stay on one side of a split"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}

    def values(self, row: int) -> Values:
        """Return one slice; raises `ImageError` or OSError."""
        if row in self._bad:
            raise ImageError(self._bad[row])
        number = int(self._volume[row])
        if number not in self._kept:
            self._kept[number] = self.volumes.values(number)
            if len(self._kept) > _VOLUMES:
                self._kept.popitem(last=False)
        volume = self._kept[number]
        array = np.take(volume.array, int(self._index[row]), axis=self.axis)
        geometry = {**volume.geometry, "slice_axis": self.axis} if volume.geometry else {}
        return Values(array, volume.unit, geometry)

    def sizes(self) -> np.ndarray:
        """Return the size of each slice's volume file."""
        return self.volumes.sizes()[self._volume]

    def where(self) -> str | None:
        """Return where the files lie."""
        return self.volumes.where()

    def mtimes(self) -> np.ndarray | None:
        """Return the time of change of each slice's volume file; along another axis another one."""
        times = self.volumes.mtimes()
        return None if times is None else times[self._volume] + self.axis


AnyValues = ValueFiles | ValueSource


def first_values(source: AnyValues, tried: int = 64) -> Values:
    """Return what the first image that can be read holds.

    Raises:
        ValueError: If none of the first ones can be read, saying why.
    """
    reasons: list[str] = []
    for row in range(min(len(source), tried)):
        try:
            return source.values(row)
        except (ImageError, OSError) as error:
            reasons.append(f"{source.names[row]}: {error}")
    raise ValueError(
        f"None of the first {len(reasons):,} images can be read: {'; '.join(reasons[:3])}."
    )


def geometries(source: AnyValues, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return the geometry of some rows, where they can be read."""
    found = []
    for row in rows:
        try:
            found.append(source.values(row).geometry)
        except (ImageError, OSError):
            continue  # the check of all images names it
    return found
