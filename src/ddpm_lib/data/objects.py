"""Data given as an object of everyday types: arrays, pairs, lists, tables; and what to pass instead
of those that cannot be.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddpm_lib.core.spelling import option
from ddpm_lib.data.arrays import ArraySource, as_array, open_arrays
from ddpm_lib.data.columns import IMAGE_NAMES, LABEL_NAMES, choose_column
from ddpm_lib.data.decode import Decoded, ImageError, decode
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.fits import check_fits
from ddpm_lib.data.items import TorchSource
from ddpm_lib.data.labels import make_labels
from ddpm_lib.data.names import PackedNames
from ddpm_lib.data.source import Examined, Source, file_hash

PATH_NAMES = (
    "path",
    "image_path",
    "img_path",
    "file_path",
    "filepath",
    "file_name",
    "filename",
    "file",
    "image_file",
    *IMAGE_NAMES,
)


@dataclass(frozen=True)
class Columns:
    """How labels and columns are chosen; see `open_dataset`."""

    labels: str = "auto"
    image: str | None = None
    label: str | None = None
    insist: bool = False

    @property
    def asked(self) -> bool:
        """Whether labels were asked for."""
        return self.insist or self.label is not None


def from_object(data: Any, spec: DecodeSpec, columns: Columns, here: bool) -> Source:
    """Open data that is neither a path or name nor a 🤗 dataset.

    Raises:
        TypeError: If it cannot be read in any order, or is of no kind that is known; saying what to
            pass.
    """
    _refuse(data)
    if hasattr(data, "to_arrow"):  # polars
        data = data.to_arrow()
    module = type(data).__module__.split(".")[0]
    if module == "pandas":
        return _from_frame(data, columns, here)
    if module == "pyarrow" and hasattr(data, "column_names"):
        from ddpm_lib.data.tables import from_arrow

        return from_arrow(data, columns.labels, columns.image, columns.label, columns.insist)
    if isinstance(data, torch.Tensor):
        data = as_array(data)
    if isinstance(data, np.ndarray):
        return ArraySource(data, None, spec)
    if isinstance(data, Mapping) and any(_ndim(data[name]) >= 3 for name in data):
        where = type(data).__name__
        return open_arrays(
            data, where, spec, columns.labels, columns.image, columns.label, columns.insist
        )
    if isinstance(data, (list, tuple)):
        return _from_list(data, spec, columns, here)
    if (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not isinstance(data, (Mapping, bytes))
    ):
        return TorchSource(data, columns.labels, columns.image, columns.label, columns.insist, here)
    raise TypeError(
        "data must be a path, a dataset name, a 🤗 Dataset, a torch Dataset with a length, a uint8"
        " array, a pair (images, labels), a dict of arrays, a list of paths or pictures, or a"
        f" table of them; got {type(data).__name__}."
    )


def _refuse(data: Any) -> None:
    """Refuse what has no order to read in again and again.

    Raises:
        TypeError: Naming what to pass.
    """
    way = None
    if isinstance(data, torch.utils.data.DataLoader):
        way = (
            "A DataLoader has batches and an order of its own: pass the dataset in it"
            " (loader.dataset)."
        )
    elif isinstance(data, torch.utils.data.IterableDataset):
        way = (
            "An IterableDataset can only be read from its beginning, so that a run could neither"
            " shuffle nor resume: pass a Dataset with __getitem__ and __len__, or list(dataset) if"
            " it fits in RAM."
        )
    elif isinstance(data, Iterator):
        way = "An iterator can be read once only: pass list(data)."
    elif isinstance(data, (set, frozenset)):
        way = "A set has no order: pass sorted(data)."
    if way is not None:
        raise TypeError(
            f"data must be something that can be read in any order; got {type(data).__name__}."
            f" {way}"
        )


def _ndim(value: Any) -> int:
    return value.ndim if isinstance(value, (np.ndarray, torch.Tensor)) else 0


def _from_list(data: Sequence[Any], spec: DecodeSpec, columns: Columns, here: bool) -> Source:
    if not data:
        raise ValueError("The list of images is empty.")
    if (
        len(data) == 2
        and _ndim(data[0]) >= 3
        and _is_flat(data[1])
        and len(data[0]) == len(data[1])
    ):
        _no_keys(columns)
        images = as_array(data[0]) if isinstance(data[0], torch.Tensor) else data[0]
        return ArraySource(
            images, None if columns.labels == "none" else data[1], spec, columns.asked
        )
    first = next((item for item in data if item is not None), None)
    if not isinstance(first, Mapping):
        _no_keys(columns)
    if _is_path(first):
        return PathSource(data, None, columns)
    if isinstance(first, (tuple, list)) and first and _is_path(first[0]):
        pairs = [item if item is not None else (None, None) for item in data]
        return PathSource([pair[0] for pair in pairs], [_second(pair) for pair in pairs], columns)
    if isinstance(first, Mapping):
        keys = [str(name) for name in first]
        image = choose_column("image", columns.image, PATH_NAMES, keys, "The list")
        if image is not None and _is_path(first[image]):
            label = choose_column(
                "label", columns.label, LABEL_NAMES, [k for k in keys if k != image], "The list"
            )
            cells = [(item or {}).get(image) for item in data]
            return PathSource(
                cells,
                None if label is None else [(item or {}).get(label) for item in data],
                columns,
            )
    # A picture that was opened and not yet decoded holds an open file, which several processes must
    # not share.
    pictures = any(isinstance(part, Image.Image) for item in data for part in _parts(item))
    return TorchSource(
        data, columns.labels, columns.image, columns.label, columns.insist, here or pictures
    )


def _no_keys(columns: Columns) -> None:
    check_fits(
        "a list without keys", {"image_column": columns.image, "label_column": columns.label}
    )


def _second(pair: Sequence[Any]) -> Any:
    return pair[1] if len(pair) > 1 else None


def _is_flat(values: Any) -> bool:
    return _ndim(values) == 1 or (
        isinstance(values, (list, tuple)) and not any(_ndim(v) > 1 for v in values)
    )


def _parts(item: Any) -> Sequence[Any]:
    if isinstance(item, Mapping):
        return list(item.values())
    return item if isinstance(item, (tuple, list)) else [item]


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and not isinstance(value, Image.Image)


def _from_frame(data: Any, columns: Columns, here: bool) -> Source:
    """Open a pandas table (or one column of it): of paths, of encoded pictures, or of pictures."""
    if not hasattr(data, "columns"):
        return _from_cells(list(data), None, columns, here)
    there = [str(name) for name in data.columns]
    data = data.set_axis(there, axis=1)
    image = choose_column("image", columns.image, PATH_NAMES, there, "The table")
    if image is None:
        raise ValueError(
            f"The table has no column named path, file or image. There are: {', '.join(there)}."
            f" Pass {option('image_column')}."
        )
    label = choose_column(
        "label", columns.label, LABEL_NAMES, [name for name in there if name != image], "The table"
    )
    return _from_cells(
        list(data[image]), None if label is None else list(data[label]), columns, here
    )


def _from_cells(cells: list[Any], labels: list[Any] | None, columns: Columns, here: bool) -> Source:
    if not cells:
        raise ValueError("The table is empty.")
    cells = [None if isinstance(cell, float) and np.isnan(cell) else cell for cell in cells]
    first = next((cell for cell in cells if cell is not None), None)
    if _is_path(first):
        return PathSource(cells, labels, columns)
    if isinstance(first, (bytes, Mapping)):
        import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]

        from ddpm_lib.data.tables import TableSource

        source = TableSource(pa.chunked_array([pa.array(cells)]))
        _label(source, labels, columns)
        return source
    pictures = any(isinstance(cell, Image.Image) for cell in cells)
    items = cells if labels is None else list(zip(cells, labels))
    return TorchSource(items, columns.labels, None, None, columns.asked, here or pictures)


def _label(source: Source, labels: Sequence[Any] | None, columns: Columns) -> None:
    if labels is not None and columns.labels != "none":
        made = make_labels(labels, None, columns.asked, source.notes, source.names)
        source.labels, source.class_names = made


class PathSource(Source):
    """Picture files in the order of a list; named by their paths below the folder that they share.

    Args:
        paths: The files; None where there is none.
        labels: One per file, or None.
        columns: Whether labels are used, and were asked for.
    """

    def __init__(
        self, paths: Sequence[Any], labels: Sequence[Any] | None, columns: Columns
    ) -> None:
        self.notes = []
        self._paths = [
            os.fsencode(os.path.abspath(os.path.expanduser(path)))
            if _is_path(path) and path
            else b""
            for path in paths
        ]
        full = [path for path in self._paths if path]
        base = os.path.commonpath([os.path.dirname(path) for path in full]) if full else b""
        self.names = PackedNames(
            os.path.relpath(path, base) if path else b"(none)" for path in self._paths
        )
        self._base = os.fsdecode(os.path.realpath(base))
        self._stats = [_stat(path) for path in self._paths]
        _label(self, labels, columns)

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Decode one file; raises `ImageError` or OSError."""
        if not self._paths[row]:
            raise ImageError("no path in this row")
        if os.path.isdir(self._paths[row]):
            raise ImageError("a folder, not a file")
        with open(self._paths[row], "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError("not a regular file")
            return decode(file, spec)

    def examine(self, row: int, spec: DecodeSpec) -> Examined:
        """Decode one file, and hash its bytes."""
        return Examined(self.load(row, spec), file_hash(self._paths[row]))

    def sizes(self) -> np.ndarray:
        """Return file sizes in bytes, int64 (n,); 0 where there is none."""
        return np.array([size for size, _ in self._stats], dtype=np.int64)

    def where(self) -> str:
        """Return the folder that the files share."""
        return self._base

    def mtimes(self) -> np.ndarray:
        """Return times of last change in ns, int64 (n,)."""
        return np.array([time for _, time in self._stats], dtype=np.int64)


def _open_without_waiting(path: Any, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))


def _stat(path: bytes) -> tuple[int, int]:
    try:
        info = os.stat(path)
    except OSError:
        return 0, 0
    return info.st_size, info.st_mtime_ns
