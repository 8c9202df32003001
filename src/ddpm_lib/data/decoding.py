"""Decode a whole source once, in parallel: into RAM, or only to find out what is wrong with it."""

from __future__ import annotations

import mmap
import multiprocessing
import multiprocessing.connection
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ddpm_lib.data.dataset import Source, load_patiently, reason
from ddpm_lib.data.decode import FLAG_NOTES, UPSCALED, DecodeSpec, ImageError
from ddpm_lib.data.workers import ignore_signals

Log = Callable[[str], None]
_FORK_FROM = 256
_BLOCK = 32


@dataclass
class Scan:
    """What decoding showed: `images` uint8 (n, c, h, w) if kept, flags, sizes as stored, and reasons by row."""

    images: np.ndarray | None
    flags: np.ndarray
    sizes: np.ndarray
    bad: dict[int, str]
    seconds: float
    workers: int
    known: bool = False

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
                    words += f"; an image size of at most {height} (height) by {width} (width) enlarges none"
                lines.append(f"{count:,} image{'s' if count > 1 else ''} {words}")
        return lines


def decode_all(source: Source, spec: DecodeSpec, *, keep: bool, num_workers: int, log: Log | None = None) -> Scan:
    """Decode every image of a source.

    Args:
        source: The images.
        spec: How to fit them.
        keep: Whether to keep the pixels; otherwise they are only checked.
        num_workers: Forked processes (0 or 1: this one does it). Small sets and systems without fork are done here.
        log: Is given a progress line every few seconds.

    Returns:
        The `Scan`. Its arrays lie in anonymous shared memory: independent of the size of /dev/shm.
    """
    n, start = len(source), time.monotonic()
    images = _shared((n, *spec.shape), np.uint8) if keep else None
    flags, sizes, done = (
        _shared((n,), np.uint16),
        _shared((n, 2), np.int32),
        _shared((max(1, num_workers), 2), np.int64),
    )
    workers = num_workers if n >= _FORK_FROM and num_workers > 1 and _may_fork() else 0
    progress = _Progress(n, log)
    bad: dict[int, str] = {}
    if not workers:
        for row in range(n):
            _one(source, spec, row, images, flags, sizes, bad)
            if row % _BLOCK == 0:
                progress(row)
    else:
        bad = _in_parallel(source, spec, images, flags, sizes, done, workers, progress)
    return Scan(images, flags, sizes, bad, time.monotonic() - start, workers)


def _one(
    source: Source,
    spec: DecodeSpec,
    row: int,
    images: np.ndarray | None,
    flags: np.ndarray,
    sizes: np.ndarray,
    bad: dict[int, str],
) -> None:
    try:
        result = load_patiently(source, row, spec)
    except (ImageError, OSError) as error:
        bad[row] = reason(error)
        return
    if images is not None:
        images[row] = result.pixels
    flags[row] = result.flags
    sizes[row] = result.width, result.height


def _in_parallel(
    source: Source,
    spec: DecodeSpec,
    images: np.ndarray | None,
    flags: np.ndarray,
    sizes: np.ndarray,
    done: np.ndarray,
    workers: int,
    progress: _Progress,
) -> dict[int, str]:
    context = multiprocessing.get_context("fork")
    total = len(flags)

    def work(rank: int, pipe: Connection) -> None:
        ignore_signals()
        bad: dict[int, str] = {}
        for block in range(rank * _BLOCK, total, workers * _BLOCK):
            for row in range(block, min(block + _BLOCK, total)):
                done[rank, 1] = row
                _one(source, spec, row, images, flags, sizes, bad)
                done[rank, 0] += 1
        pipe.send(bad)

    pipes, processes = [], []
    for rank in range(workers):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(rank, there), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    try:
        return _collect(source, pipes, processes, done, progress)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def _collect(
    source: Source, pipes: list[Connection], processes: list[Any], done: np.ndarray, progress: _Progress
) -> dict[int, str]:
    bad: dict[int, str] = {}
    waiting = dict(enumerate(pipes))
    while waiting:
        ready = multiprocessing.connection.wait(list(waiting.values()), timeout=0.2)
        for rank in [rank for rank, pipe in waiting.items() if pipe in ready]:
            try:
                bad.update(waiting.pop(rank).recv())
            except EOFError:
                processes[rank].join()
                raise RuntimeError(_death(processes[rank].exitcode, source.names[int(done[rank, 1])])) from None
        progress(int(done[:, 0].sum()))
    return bad


def _death(code: int | None, name: str) -> str:
    if code == -9:
        return (
            "A process that decodes images was killed by the system, most likely for memory. Use fewer "
            '(num_workers=1), a smaller image_size, or cache="none".'
        )
    return (
        f"A process that decodes images died (exit code {code}) at {name!r}. Remove that file, or look closer with "
        "num_workers=0."
    )


class _Progress:
    """A line every five seconds, from the second second on."""

    def __init__(self, total: int, log: Log | None) -> None:
        self._total, self._log = total, log
        self._start = time.monotonic()
        self._next = self._start + 2.0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self._log is not None and now >= self._next and done:
            rate = done / (now - self._start)
            left = (self._total - done) / rate
            self._log(f"decoding {done:,} of {self._total:,} images, {rate:,.0f}/s, {left:,.0f} s to go")
            self._next = now + 5.0


def _may_fork() -> bool:
    return sys.platform == "linux" and threading.current_thread() is threading.main_thread()


def _shared(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return zeros that forked processes write in place."""
    count = int(np.prod(shape))
    size = max(1, count * np.dtype(dtype).itemsize)
    return np.frombuffer(mmap.mmap(-1, size), dtype=dtype, count=count).reshape(shape)
