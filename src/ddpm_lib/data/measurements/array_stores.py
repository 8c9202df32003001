"""Arrays in files that hold several: HDF5 and Zarr, named as file.h5:images/train."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lib.core.registry import nearest
from ddpm_lib.core.spelling import option
from ddpm_lib.data.columns import IMAGE_NAMES, LABEL_NAMES
from ddpm_lib.data.measurements.value_files import ARRAYS, is_installed

HDF5 = (".h5", ".hdf5", ".hdf", ".he5")
ZARR = (".zarr",)
_INSIDE = re.compile(r"(.*?\.(?:h5|hdf5|hdf|he5|zarr)):(.+)", re.IGNORECASE | re.DOTALL)


def store_in(written: str) -> tuple[Path, str] | None:
    """Split the name of an array in a file: scan.h5:images/train. None for other data.

    Returns:
        The file, and the name of the array in it; "" where none is named.
    """
    if Path(written).suffix.lower() in (*HDF5, *ZARR) and Path(written).expanduser().exists():
        return Path(written).expanduser(), ""
    found = _INSIDE.fullmatch(written)
    if found is None or not Path(found[1]).expanduser().exists():
        return None
    return Path(found[1]).expanduser(), found[2].strip("/")


class ArrayStore:
    """A file of named arrays; every call opens it anew, as processes must not share it.

    Args:
        path: An HDF5 file, or a Zarr store.

    Raises:
        ValueError: If the package that reads it is not installed, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, path.absolute()
        package = "h5py" if path.suffix.lower() in HDF5 else "zarr"
        if not is_installed(package):
            raise ValueError(f"{str(path)!r} is read through {package}: {ARRAYS}.")
        try:
            self.shapes = {name: tuple(map(int, a.shape)) for name, a in self._walk(self.open())}
        except Exception as error:  # either package raises many kinds for damaged files
            words = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{str(path)!r} cannot be opened by {package} ({words}). Was it copied whole?"
            ) from None

    def stamp(self) -> tuple[int, int]:
        """Return bytes and latest time of change in ns, of all files where it is a folder."""
        files = [self.path, *self.path.rglob("*")] if self.path.is_dir() else [self.path]
        states = [file.stat() for file in files]
        return sum(s.st_size for s in states), max(s.st_mtime_ns for s in states)

    def open(self) -> Any:
        """Open the file, and return its root."""
        if self.path.suffix.lower() in HDF5:
            import h5py

            # By a Python file of its own: the library would share one that was open before a fork.
            return h5py.File(open(self._file, "rb"), "r")
        import zarr

        return zarr.open(self._file, mode="r")

    def _walk(self, node: Any, above: str = "") -> Iterator[tuple[str, Any]]:
        if hasattr(node, "shape"):
            yield above, node
            return
        items = node.items() if isinstance(node, Mapping) else node.members()
        for name, inner in items:
            yield from self._walk(inner, f"{above}/{name}" if above else str(name))

    def opener(self, name: str) -> Callable[[], Any]:
        """Return what opens an array of the file."""
        return lambda: self.open()[name] if name else self.open()

    def read(self, name: str) -> np.ndarray:
        """Return all of an array."""
        return np.asarray(self.opener(name)()[...])

    def choose(self, asked: str) -> str:
        """Return the name of the array of images: the one asked for, of a usual name, or the only
        one.

        Raises:
            ValueError: If it is not there, or none can be told; lists those that are.
        """
        if asked in self.shapes:
            return asked
        shown = ", ".join(f"{name or '/'} {shape}" for name, shape in [*self.shapes.items()][:12])
        if asked:
            near = nearest(asked, list(self.shapes))
            hint = f" Did you mean {near!r}?" if near else ""
            raise ValueError(
                f"{str(self.path)!r} has no array {asked!r}.{hint} There are: {shown}."
            )
        stacks = [name for name, shape in self.shapes.items() if len(shape) >= 3]
        usual = [name for want in IMAGE_NAMES for name in stacks if name.split("/")[-1] == want]
        if len(stacks) == 1 or usual:
            return (usual or stacks)[0]
        if not stacks:
            raise ValueError(
                f"{str(self.path)!r} has no array of images, (n, h, w) or more. There are:"
                f" {shown or 'none'}."
            )
        raise ValueError(
            f"{str(self.path)!r} holds several arrays: {shown}. Name one behind a colon:"
            f" {self.path}:{stacks[0]}."
        )

    def labels(self, image: str, asked: str | None) -> np.ndarray | None:
        """Return the labels of images: the array asked for, or one of a usual name beside them.

        Raises:
            ValueError: If the one asked for is not there.
        """
        if asked is not None:
            if asked not in self.shapes:
                raise ValueError(
                    f"{str(self.path)!r} has no array {asked!r} ({option('label_column')}). There"
                    f" are: {', '.join(self.shapes)}."
                )
            return self.read(asked)
        folder = image.rpartition("/")[0]
        count = self.shapes[image][:1]
        for name in LABEL_NAMES:
            whole = f"{folder}/{name}" if folder else name
            if whole != image and self.shapes.get(whole) in (count, (*count, 1)):
                return self.read(whole)
        return None
