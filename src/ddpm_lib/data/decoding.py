"""Decode a whole source once, in parallel: into RAM, or only to find out what is wrong with it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddpm_lib.data.decode import FLAG_NOTES, UPSCALED, ImageError
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.progress_lines import ProgressLines
from ddpm_lib.data.readers import generators_kept, may_fork, run_readers, seed_generators, shared
from ddpm_lib.data.source import Source, load_patiently, reason

Log = Callable[[str], None]
_FORK_FROM = 256
_BLOCK = 32
_AGAIN = 4


@dataclass
class Scan:
    """What decoding showed: `images` uint8 (n, c, h, w) if kept, flags, sizes as stored, hashes,
    and reasons by row.
    """

    images: np.ndarray | None
    flags: np.ndarray
    sizes: np.ndarray
    content: np.ndarray
    bad: dict[int, str]
    seconds: float
    workers: int
    known: bool = False
    labels: dict[int, Any] = field(default_factory=dict)
    random: bool = False
    """Whether an image was another one when it was read again at the end."""

    def notes(self) -> list[str]:
        """Say in clear lines what was done to the good images."""
        if self.known:
            return []
        good = np.ones(len(self.flags), dtype=bool)
        good[list(self.bad)] = False
        lines, sizes, flags = [], self.sizes[good], self.flags[good]
        if len(sizes) and (sizes != sizes[0]).any():
            (w0, h0), (w1, h1) = sizes.min(0), sizes.max(0)
            lines.append(f"images differ in size: {w0} … {w1} pixels wide, {h0} … {h1} high")
        for bit, words in FLAG_NOTES.items():
            count = int((flags & bit > 0).sum())
            if count:
                if bit == UPSCALED:
                    width, height = sizes.min(0).tolist()
                    words += (
                        f"; an image size of at most {height} (height) by {width} (width) enlarges"
                        " none"
                    )
                lines.append(f"{count:,} image{'s' if count > 1 else ''} {words}")
        return lines


def decode_all(
    source: Source,
    spec: DecodeSpec,
    *,
    keep: bool,
    num_workers: int,
    log: Log | None = None,
    into: np.ndarray | None = None,
) -> Scan:
    """Decode every image of a source.

    Args:
        source: The images.
        spec: How to fit them.
        keep: Whether to keep the pixels; otherwise they are only checked.
        num_workers: Forked processes (0 or 1: this one does it). Small sets and systems without
            fork are done here; a Dataset of the user's never, unless it is to be.
        log: Is given a progress line every few seconds, and one when an image takes very long.
        into: Where kept pixels go, in memory that forked processes share; default: new memory.

    Returns:
        The `Scan`. Its arrays lie in anonymous shared memory: independent of the size of /dev/shm.
    """
    n, start = len(source), time.monotonic()
    workers = num_workers if n >= _FORK_FROM and num_workers > 1 and _may_fork() else 0
    if source.foreign:
        workers = 0 if source.here or not may_fork() else max(1, min(num_workers, -(-n // _BLOCK)))
    scan = Scan(
        None if not keep else shared((n, *spec.shape), spec.dtype) if into is None else into,
        shared((n,), np.uint16),
        shared((n, 2), np.int32),
        shared((n,), np.int64),
        {},
        0.0,
        workers,
    )
    progress, done = ProgressLines(n, log), shared((max(1, workers),), np.int64)

    def work(rank: int, at: np.ndarray) -> tuple[dict[int, str], dict[int, Any], bool]:
        for block in range(rank * _BLOCK, n, max(1, workers) * _BLOCK):
            for row in range(block, min(block + _BLOCK, n)):
                at[rank] = row
                _one(source, spec, row, scan)
                done[rank] += 1
            if not workers:
                progress(int(done[0]))
        return (
            scan.bad,
            scan.labels,
            source.foreign and _differs(source, spec, rank * _BLOCK, scan, at[rank:]),
        )

    if workers:
        data = getattr(source, "data", None)
        results = run_readers(
            work, workers, data, source.place, log, lambda: progress(int(done.sum()))
        )
    else:
        own = source.foreign or spec.draws
        with generators_kept() if own else contextlib.nullcontext():
            results = [work(0, np.zeros(1, dtype=np.int64))]
    for bad, labels, random in results:
        scan.bad.update(bad)
        scan.labels.update(labels)
        scan.random |= random
    scan.seconds = time.monotonic() - start
    return scan


def _one(source: Source, spec: DecodeSpec, row: int, scan: Scan) -> None:
    if source.foreign or spec.draws:
        seed_generators("item", row, 0)
    try:
        result, content, label = load_patiently(source.examine, row, spec)
    except (ImageError, OSError) as error:
        scan.bad[row] = reason(error)
        return
    if scan.images is not None:
        scan.images[row] = result.pixels
    scan.content[row] = content
    scan.flags[row] = result.flags
    scan.sizes[row] = result.width, result.height
    if source.gives_labels:
        scan.labels[row] = label


def _differs(source: Source, spec: DecodeSpec, first: int, scan: Scan, at: np.ndarray) -> bool:
    """Whether an image is another one when it is read again: a late look at what the first look
    might have missed.
    """
    rows = [row for row in range(first, min(first + _AGAIN, len(source))) if row not in scan.bad]
    for row in rows:
        at[0] = row
        seed_generators("again", row)
        try:
            if source.examine(row, spec).content != scan.content[row]:
                return True
        except (ImageError, OSError):
            return True
    return False


def _may_fork() -> bool:
    return may_fork() and threading.current_thread() is threading.main_thread()
