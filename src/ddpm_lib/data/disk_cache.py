"""Decoded images in a file that is mapped into memory: written once, shared by ranks and runs.

Opening such a set again takes as long as finding its files: nothing is decoded, and the system
reads what a batch needs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core import file_locks, spelling
from ddpm_lib.core.caching import cache_folder
from ddpm_lib.core.files import beside, flush, open_own, write_aside
from ddpm_lib.data.checking import ReadingOptions, good_rows
from ddpm_lib.data.contents import decoded_digest
from ddpm_lib.data.dataset import MemoryStore
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.decoding import Scan, decode_all
from ddpm_lib.data.source import Source

FOLDER = "images"
"""Below the library's cache; each set has a folder of its own in it, which may be deleted."""
_PIXELS, _ABOUT = "images.npy", "about.npz"
_PAUSE = 0.5


class MappedStore(MemoryStore):
    """Images in a mapped file: uint8 (n, c, h, w).

    Args:
        images: The mapped numbers.
        twins: Number of the group of equal images that each belongs to, int64 (n,).
        path: The file.
    """

    def __init__(self, images: Tensor, twins: np.ndarray, path: Path) -> None:
        super().__init__(images)
        self.twins, self.path = twins, path


def mapped_images(
    source: Source, spec: DecodeSpec, way: ReadingOptions, notes: list[str]
) -> tuple[Scan, MappedStore]:
    """Return what decoding a source showed, and the images, decoding them where nobody has yet.

    Args:
        source: The images.
        spec: How to fit them.
        way: How the source is read.
        notes: Gets a line.

    Raises:
        ValueError: If the source cannot say whether its files have changed, or the disk is too
            small.
    """
    if source.foreign or spec.draws or source.mtimes() is None:
        raise ValueError(
            f"{spelling.option('cache', 'disk')} keeps decoded images of files, whose names, sizes"
            " and times of change say whether they are the same; these data have none, or a"
            f" transform or patches. Use {spelling.option('cache', 'ram')} or"
            f" {spelling.option('cache', 'none')}."
        )
    folder = cache_folder() / FOLDER / decoded_digest(source, spec)
    shape = (len(source), *spec.shape)
    megabytes = f"{int(np.prod(shape)) * spec.dtype.itemsize / 1e6:,.1f} MB"
    found = _read(folder, shape, spec.dtype)  # of somebody else's cache, too
    if found is None:
        with _said(folder):
            folder.mkdir(parents=True, exist_ok=True)
            handle = open_own(folder / ".lock", os.O_RDWR | os.O_CREAT)
        with _alone(handle, folder, shape, spec, way):
            found = _read(folder, shape, spec.dtype)
            if found is None:
                scan = _write(folder, shape, source, spec, way)
    if found is not None:
        notes.append(f"{shape[0]:,} images decoded before, in {folder / _PIXELS} ({megabytes})")
        return found
    notes.append(
        f"{shape[0]:,} images decoded once into {folder / _PIXELS} ({megabytes},"
        f" {scan.seconds:.1f} s)"
    )
    found = _read(folder, shape, spec.dtype)
    if found is None:
        raise OSError(errno.EIO, "what was just written cannot be read", str(folder))
    return scan, found[1]


def _read(
    folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[Scan, MappedStore] | None:
    """Map a complete set; None where there is none, or it is damaged."""
    path = folder / _PIXELS
    try:
        with np.load(folder / _ABOUT, allow_pickle=False) as saved:
            about = {name: saved[name] for name in saved.files}
        # Copy on write: torch wants memory that can be written, and the file stays as it is.
        pixels = np.load(path, mmap_mode="c", allow_pickle=False)
        bad = {int(row): why for row, why in json.loads(about["bad"].tobytes()).items()}
        parts = [about[name] for name in ("flags", "sizes", "content", "twins")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if pixels.shape != shape or pixels.dtype != dtype or any(len(p) != shape[0] for p in parts):
        return None
    flags, sizes, content, twins = parts
    scan = Scan(pixels, flags, sizes, content, bad, 0.0, 0)
    return scan, MappedStore(torch.from_numpy(pixels), twins, path)


def _write(
    folder: Path, shape: tuple[int, ...], source: Source, spec: DecodeSpec, way: ReadingOptions
) -> Scan:
    path, size = folder / _PIXELS, int(np.prod(shape)) * spec.dtype.itemsize
    free = shutil.disk_usage(folder).free
    if free < size + (64 << 20):
        raise ValueError(
            f"The decoded images take {size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB"
            " free. Set DDPM_LIB_CACHE to a larger disk, or use"
            f" {spelling.option('cache', 'none')}."
        )
    aside = beside(path)
    (folder / _ABOUT).unlink(missing_ok=True)
    for left in folder.glob(f".{_PIXELS}.*.tmp"):  # of a process that was killed
        left.unlink(missing_ok=True)
    try:
        with _said(folder):
            os.close(open_own(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            pixels = np.lib.format.open_memmap(aside, "w+", dtype=spec.dtype, shape=shape)
            if hasattr(os, "posix_fallocate"):  # a full disk says so now, not by SIGBUS later
                with open(aside, "rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, aside.stat().st_size)
        scan = decode_all(
            source, spec, keep=True, num_workers=way.workers, log=way.log, into=pixels
        )
        good_rows(source, scan, way, [])  # where bad ones are an error, nothing is kept
        pixels.flush()
        flush(aside)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    groups: dict[bytes, int] = {}
    digests = (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels)
    twins = [groups.setdefault(digest, k) for k, digest in enumerate(digests)]

    def save(aside: Path) -> None:
        with open(open_own(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            np.savez(
                file,
                flags=scan.flags,
                sizes=scan.sizes,
                content=scan.content,
                twins=np.array(twins, dtype=np.int64),
                bad=np.frombuffer(json.dumps(scan.bad).encode(), dtype=np.uint8),
            )

    write_aside(folder / _ABOUT, save)  # last: it says that the set is whole
    return scan


@contextlib.contextmanager
def _said(folder: Path) -> Iterator[None]:
    """Turn the refusal of a cache that cannot be written to into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"Decoded images cannot be kept in {folder} ({error.strerror or error}). Set"
            " DDPM_LIB_CACHE to a folder that can be written to, or use"
            f" {spelling.option('cache', 'ram')} or {spelling.option('cache', 'none')}."
        ) from error


@contextlib.contextmanager
def _alone(
    handle: int, folder: Path, shape: tuple[int, ...], spec: DecodeSpec, way: ReadingOptions
) -> Iterator[None]:
    """Wait while another process decodes this set; where there are no locks each does it, and the
    last one's files stay.

    Args:
        handle: The open file that is locked; it is closed.
        folder: Of the set.
        shape: Of the images.
        spec: How to fit them.
        way: How the source is read.
    """
    locked, told = False, False
    try:
        while not locked and _read(folder, shape, spec.dtype) is None:
            try:
                file_locks.take(handle)
                locked = True
            except BlockingIOError:
                if not told and way.log is not None:
                    way.log(f"Waiting for another process, which decodes these images to {folder}.")
                told = True
                time.sleep(_PAUSE)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        if locked:
            file_locks.let_go(handle)
        else:
            os.close(handle)
