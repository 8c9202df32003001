"""At which size pictures are stored, so that a set can be opened without resizing anything."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ddpm_lib.data.arrays import ArraySource
from ddpm_lib.data.dataset import Source
from ddpm_lib.data.decode import FORMATS, Decoded, ImageError
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.folders import FolderSource
from ddpm_lib.data.names import ChosenNames
from ddpm_lib.data.tables import TableSource
from ddpm_lib.data.workers import ignore_signals

_SMALL = DecodeSpec((1, 1))


class Sized(NamedTuple):
    """A picture's name with its width and height."""

    name: str
    width: int
    height: int


class ChosenSource(Source):
    """Some rows of another source.

    Args:
        source: The other source.
        rows: Its rows that belong to this one, int64 (n,).
    """

    def __init__(self, source: Source, rows: Sequence[int]) -> None:
        self.whole, self.rows = source, np.asarray(rows, dtype=np.int64)
        self.names = ChosenNames(source.names, self.rows)
        self.notes = list(source.notes)

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Decode one image; raises `ImageError` or OSError."""
        return self.whole.load(int(self.rows[row]), spec)

    def sizes(self) -> np.ndarray:
        """Return the lengths of the files, int64 (n,)."""
        return self.whole.sizes()[self.rows]

    def where(self) -> str | None:
        """Return where the files lie."""
        return self.whole.where()

    def mtimes(self) -> np.ndarray | None:
        """Return the times of last change, where they are known."""
        times = self.whole.mtimes()
        return None if times is None else times[self.rows]


def different_sizes(source: Source, spec: DecodeSpec = _SMALL) -> list[Sized]:
    """Find at which sizes images are stored, as they come out of the reader (turned as EXIF says).

    Headers are read where pictures lie in files; elsewhere the images are decoded. What cannot be
    read is passed over: opening the set names it.

    Args:
        source: The images.
        spec: How to decode those without files, of which only the range of the values matters.

    Returns:
        The first image of each size, at most two; none if no image can be read.
    """
    if (
        isinstance(source, (FolderSource, ChosenSource, ArraySource, TableSource))
        or not _may_fork()
    ):
        return _first_two(_sizes(source, spec))
    if source.foreign:
        source.look(spec, whole=True)
        if source.here:
            return _first_two(_sizes(source, spec))
    return _in_child(source, spec)


def _first_two(sizes: Iterable[Sized]) -> list[Sized]:
    found: dict[tuple[int, int], Sized] = {}
    for sized in sizes:
        found.setdefault((sized.width, sized.height), sized)
        if len(found) == 2:
            break
    return list(found.values())


def _in_child(source: Source, spec: DecodeSpec) -> list[Sized]:
    """Look at a dataset of the user's in another process.

    Its items may open files that several processes must not share, or leave threads behind that do
    not survive the fork of the processes which read it later.

    Raises:
        RuntimeError: If that process dies.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def look() -> None:
        ignore_signals()
        torch.set_num_threads(1)  # the threads of this process were not forked with it
        there.send(_first_two(_sizes(source, spec)))

    process = context.Process(target=look, daemon=True)
    process.start()
    there.close()
    try:
        found: list[Sized] = here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"The process that looks at the dataset died (exit code {process.exitcode}). Say at"
            " which size to open it: image_size= (--image-size 64)."
        ) from None
    finally:
        process.join()
    return found


def _may_fork() -> bool:
    return sys.platform == "linux" and threading.current_thread() is threading.main_thread()


def _sizes(source: Source, spec: DecodeSpec) -> Iterator[Sized]:
    if isinstance(source, ChosenSource) and isinstance(source.whole, FolderSource):
        yield from _from_headers(source.whole, source.rows.tolist())
    elif isinstance(source, FolderSource):
        yield from _from_headers(source, range(len(source)))
    elif isinstance(source, ArraySource):
        height, width = source.images.shape[2:]
        yield Sized(source.names[0], width, height)
    else:
        for row in range(len(source)):
            try:
                decoded = source.load(row, spec)
            except (ImageError, OSError):
                continue
            yield Sized(source.names[row], decoded.width, decoded.height)


def _from_headers(source: FolderSource, rows: Sequence[int]) -> Iterator[Sized]:
    for row in rows:
        if row in source.problems:
            continue
        try:
            with source.open_file(row) as file, Image.open(file, formats=FORMATS) as picture:
                width, height = picture.size
                turned = _orientation(picture) in (5, 6, 7, 8)
        except (
            Exception
        ):  # a decoder may raise anything; opening the set says of which file and why
            continue
        yield Sized(source.names[row], *((height, width) if turned else (width, height)))


def _orientation(picture: Image.Image) -> int:
    # Asked without need, Pillow would decode a PNG to look for EXIF behind its pixels.
    raw = "exif" in picture.info or "Raw profile type exif" in picture.info
    return int(picture.getexif().get(0x0112, 1)) if raw or picture.format == "TIFF" else 1
