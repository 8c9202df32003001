"""Reading .npy and .npz files with a look at their headers first, and folders of one such file per
image.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ddpm_lib.data.columns import IMAGE_NAMES
from ddpm_lib.data.decode import Decoded, ImageError, fit_array
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.folders import FolderSource
from ddpm_lib.data.split_names import split_of
from ddpm_lib.runtime.limits import available_memory

_SHARE = 0.8
_OBJECTS = (
    "{} holds Python objects, which are never loaded (they can run code). Save plain uint8 arrays."
)


_JOIN = (
    "pass that file itself, or all as one: numpy.save('images.npy',"
    " numpy.concatenate([numpy.load(f) for f in files]))"
)


class TooLargeError(ValueError):
    """An array that does not fit in memory, or whose header promises what the file does not
    hold.
    """


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    major = np.lib.format.read_magic(file)[0]
    read = (
        np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    return shape, dtype


def check_npy(path: Path, held: bool = True) -> tuple[int, ...]:
    """Check by its header that a .npy file holds what it says, and fits in memory; return its
    shape.

    Args:
        path: The file.
        held: Whether all of it is to be in memory.

    Raises:
        TooLargeError: If not.
        ValueError: If it is no .npy file.
    """
    with open(path, "rb") as file:
        shape, dtype = _header(file)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError(_OBJECTS.format(path))
    size = _bytes(shape, dtype)
    if size > path.stat().st_size - start:
        raise TooLargeError(
            f"{path} is damaged: its header says {size / 1e9:,.3g} GB for shape {shape}, the file"
            f" has {path.stat().st_size / 1e9:,.3g} GB."
        )
    if held:
        _check_memory(path.name, size, f"numpy.load({str(path)!r}, mmap_mode='r')")
    return shape


def check_npz(path: Path, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Check by their headers that the named arrays of an .npz file fit in memory together; return
    all shapes.

    Raises:
        TooLargeError: If not.
    """
    shapes, total = {}, 0
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if not info.filename.endswith(".npy"):
                continue
            with archive.open(info) as file:
                shape, dtype = _header(file)
            shapes[name] = shape
            size = _bytes(shape, dtype)
            if name in names:
                if dtype.hasobject:
                    raise ValueError(_OBJECTS.format(path))
                if size > info.file_size:
                    raise TooLargeError(
                        f"{path} is damaged: the header of {name!r} says {size / 1e9:,.3g} GB, it"
                        f" holds {info.file_size / 1e9:,.3g} GB."
                    )
                total += size
    if total:
        _check_memory(
            path.name,
            total,
            "numpy.load('images.npy', mmap_mode='r') after saving the array as .npy",
        )
    return shapes


def _bytes(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    size = dtype.itemsize
    for n in shape:
        size *= int(n)  # Python's numbers do not overflow
    return size


def _check_memory(name: str, size: int, instead: str) -> None:
    free = available_memory()
    if size > free * _SHARE:
        raise TooLargeError(
            f"{name} holds {size / 1e9:,.3g} GB when unpacked; this process may use"
            f" {free / 1e9:,.3g} GB. In Python, pass "
            f'{instead} with cache="none".'
        )


def name_arrays(shapes: dict[str, tuple[int, ...]], where: str) -> str:
    """Word the arrays that are there, and the columns to choose: those of the training split, if
    any.
    """
    there = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:12])
    text = f"{where} has no array named arr_0, images or x. There are: {there}."
    images = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
    if not images:
        return f"{text} None has the shape of images, (n, h, w) or (n, h, w, c)."
    parts = {"train": 0, None: 1, "other": 2}
    image = min(images, key=lambda name: parts[_part(name)])
    labels = [
        n
        for n, shape in shapes.items()
        if shape[:1] == shapes[image][:1] and len(shape) in (1, 2) and n != image
    ]
    labels = [name for name in labels if _part(name) == _part(image)]
    python, flags = f"image_column={image!r}", f"--image-column {image}"
    if labels:
        python, flags = (
            f"{python}, label_column={labels[0]!r}",
            f"{flags} --label-column {labels[0]}",
        )
    return f"{text} Pass {python} ({flags})."


def _part(name: str) -> str | None:
    """Say which split an array's name is of, without what it holds: x_train, train_images."""
    words = [
        word
        for word in name.lower().split("_")
        if word not in ("x", "y", "labels", "label", "targets")
    ]
    return split_of("_".join(words))


class ArrayFolder(FolderSource):
    """A folder of .npy or .npz files, one image each: (h, w), (h, w, c) or (c, h, w)."""

    extensions = frozenset((b".npy", b".npz"))

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Read and fit one image; raises `ImageError` or OSError."""
        if row in self.problems:
            raise ImageError(self.problems[row])
        path = Path(os.fsdecode(os.path.join(os.fsencode(self.tree.where()), self._files.raw(row))))
        try:
            array = _one_array(path)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ImageError(" ".join(str(error).split())[:300] or type(error).__name__) from None
        if array.ndim == 4 and len(array) == 1:
            array = array[0]
        if array.ndim == 4:
            raise ImageError(
                f"it holds {len(array):,} images of its own, shape {array.shape}: {_JOIN}"
            )
        if array.ndim == 3 and not {array.shape[0], array.shape[2]} & {1, 3, 4}:
            raise ImageError(f"it holds a volume or many grey images, shape {array.shape}: {_JOIN}")
        return fit_array(array, spec)


def _one_array(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        check_npy(path)
        return np.asarray(np.load(path, allow_pickle=False))
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        image = next(
            (name for name in IMAGE_NAMES if name in names), names[0] if len(names) == 1 else None
        )
        if image is None:
            raise ValueError(
                f"it has no array of a usual name (image, arr_0), but {', '.join(names[:8])}"
            )
        check_npz(path, [image])
        return np.asarray(archive[image])
