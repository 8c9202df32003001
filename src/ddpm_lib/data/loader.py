"""From batches of indices to batches of tensors, in exactly the given order, whatever the number of
workers.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ddpm_lib.data import readers
from ddpm_lib.data.dataset import BadImagesError, ImageDataset
from ddpm_lib.data.workers import (
    allow_open_files,
    default_num_workers,
    die_with_parent,
    introduce_worker,
    signals_held,
    start_method,
    worker_init,
)

Batch = dict[str, Tensor]
logger = logging.getLogger("ddpm_lib")


class Drawn(NamedTuple):
    """Indices of a batch, and a number for each that names the random numbers of its reading; see
    `ImageDataset.batch`.
    """

    indices: Sequence[int] | np.ndarray | Tensor
    draws: Sequence[int] | np.ndarray


Indices = Sequence[int] | np.ndarray | Tensor | Drawn


class _Failed:
    """A worker's `BadImagesError`, sent as a value so that it arrives unchanged."""

    def __init__(self, error: BadImagesError) -> None:
        self.parts = error.bad, error.total, error.hint

    def error(self) -> BadImagesError:
        return BadImagesError(*self.parts)


class _Batches(torch.utils.data.Dataset[Any]):
    """Looks up a whole batch at a time."""

    def __init__(self, data: ImageDataset) -> None:
        self.data = data

    def __getitem__(self, indices: Indices) -> Batch | _Failed:
        try:
            if isinstance(indices, Drawn):
                return self.data.batch(indices.indices, indices.draws)
            return self.data.batch(indices)
        except BadImagesError as error:
            return _Failed(error)


class BatchStream(Iterator[Batch]):
    """Batches of a dataset in the order of `index_batches`; made by `make_loader`; close it, or use
    `with`.

    If the pool of workers fails (killed for memory, /dev/shm full, no more processes), it is
    rebuilt at the same batch with half the workers, down to none: the batches stay the same.

    Args:
        data: The images.
        index_batches: Index lists (or `Drawn`), one per batch; may be endless.
        num_workers: Forked workers; 0 looks batches up in this process.
        pin_memory: Whether to give batches in page-locked memory.
        prefetch: Batches each worker prepares ahead.
        log: Is given a line when workers fail.
    """

    def __init__(
        self,
        data: ImageDataset,
        index_batches: Iterable[Indices],
        num_workers: int,
        pin_memory: bool = False,
        prefetch: int = 2,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.num_workers = num_workers
        self._data = _Batches(data)
        self._source: Iterator[Indices] = iter(index_batches)
        self._pending: deque[Indices] = deque()
        self._pin = pin_memory and torch.cuda.is_available()
        self._prefetch = prefetch
        self._log = log
        self._pool: Any = None
        self._closed = False

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        while self.num_workers:
            try:
                if self._pool is None:
                    self._start()
                batch = self._wait()
                self._pending.popleft()
                return self._checked(batch)
            except (RuntimeError, OSError, EOFError) as error:
                if isinstance(error, BadImagesError) or not _pool_failed(error):
                    raise
                self._weaken(error)
        indices = self._pending.popleft() if self._pending else next(self._source)
        batch = self._checked(self._data[indices])
        return {name: value.pin_memory() for name, value in batch.items()} if self._pin else batch

    def close(self) -> None:
        """End the workers; no batch comes after this. Closing twice does no harm."""
        self._closed = True
        self._stop()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pool", None) is not None:
            self._stop()

    def _checked(self, batch: Batch | _Failed) -> Batch:
        if isinstance(batch, _Failed):
            raise batch.error()
        return batch

    def _wait(self) -> Any:
        """Return the next batch of the workers; a row that one of them reads for very long is
        named, and waited for.
        """
        while True:
            try:
                return next(self._pool)
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                self._patience.look(self._at)

    def _start(self) -> None:
        """Fork the workers; they begin with the batches that are still owed."""
        owed, self._pending = list(self._pending), deque()
        allow_open_files()
        self._at = readers.shared((self.num_workers,), np.int64)
        self._at[:] = readers.IDLE
        self._patience = readers.Patience(self._data.data.place, self._log)
        main = threading.current_thread() is threading.main_thread()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch's advice on the number of workers; `check_num_workers` gives ours
            loader = DataLoader(
                self._data,
                batch_size=None,
                sampler=self._remembered(itertools.chain(owed, self._source)),
                num_workers=self.num_workers,
                prefetch_factor=self._prefetch,
                pin_memory=self._pin,
                persistent_workers=True,
                worker_init_fn=functools.partial(
                    _worker_init, self._data.data, self._at, self.num_workers, os.getpid(), main
                ),
                timeout=max(0.1, readers.PATIENCE / 4),
                multiprocessing_context=start_method(),
                generator=torch.Generator(),
            )
            with signals_held():
                self._pool = iter(loader)
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            # torch raises "worker killed" out of any line of the main thread; `next` reports it
            # just as well
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _remembered(self, batches: Iterator[Indices]) -> Iterator[Indices]:
        data = self._data.data
        for indices in batches:
            if data.drawn and not isinstance(indices, Drawn):
                indices = Drawn(indices, data.next_draws(len(indices)))
            self._pending.append(indices)
            yield indices

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        workers = list(getattr(pool, "_workers", ()))
        if (
            pool is not None
        ):  # first in good order: a worker killed here might hold a lock that this needs
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pool._shutdown_workers()
        for worker in workers:
            worker.kill()  # those that are stuck; they ignore SIGTERM
            worker.join(5)

    def _weaken(self, error: BaseException) -> None:
        before, self.num_workers = self.num_workers, self.num_workers // 2
        self._stop()
        if self._log is not None:
            now = self.num_workers
            self._log(
                f"{_cause(error)} Going on with {now} instead of {before} workers: the batches are"
                " the same."
            )


def _worker_init(
    data: ImageDataset,
    at: np.ndarray,
    count: int,
    parent: int,
    in_main_thread: bool,
    worker_id: int,
) -> None:
    """Prepare a worker: it dies with its parent, says which row it reads, and looks like a worker
    of the user's Dataset.
    """
    worker_init(worker_id)
    if start_method() == "fork":
        die_with_parent(parent, in_main_thread)
        data.report_rows(at[worker_id : worker_id + 1])
    if data.drawn:
        introduce_worker(worker_id, count, data.user_dataset)


def make_loader(
    data: ImageDataset,
    index_batches: Iterable[Indices],
    *,
    num_workers: int | None = None,
    pin_memory: bool = False,
    prefetch: int = 2,
    log: Callable[[str], None] | None = None,
) -> BatchStream:
    """Iterate over batches in the order of `index_batches`, the same for any number of workers.

    Sets in RAM are looked up directly, without workers, and so is a Dataset that was opened with
    num_workers=0. The global random state of torch is never read or changed.

    Args:
        data: The images.
        index_batches: Index lists (or `Drawn`), one per batch; may be endless.
        num_workers: Default: `default_num_workers`. Ignored for sets in RAM.
        pin_memory: Whether to give batches in page-locked memory (only where CUDA is available).
        prefetch: Batches each worker prepares ahead.
        log: Is given a line when workers fail and fewer go on.

    Returns:
        An iterator of dicts with `image` uint8 (b, c, h, w) and, with labels, `class_label` int64
        (b,). Call its `close()`.
    """
    if data.in_memory or data.read_here:
        if num_workers and data.read_here:
            (log or logger.warning)(
                "The dataset is read in this process, as it was opened (num_workers=0, or pictures"
                f" that hold open files): {num_workers} loader workers would share its files, so"
                " there are none."
            )
        num_workers = 0
    elif num_workers is None:
        num_workers = default_num_workers()
    return BatchStream(data, index_batches, num_workers, pin_memory, prefetch, log)


_POOL_WORDS = (
    "shared memory",
    "exited unexpectedly",
    "is killed by signal",
    "cannot allocate memory",
    "unable to mmap",
    "no space left",
    "start new thread",
    "too many open files",
    "resource temporarily unavailable",
)


def _pool_failed(error: BaseException) -> bool:
    """Whether it is the workers that failed, not the data."""
    if isinstance(error, (ConnectionError, EOFError)):
        return True
    text = str(error).lower()
    return any(words in text for words in _POOL_WORDS)


def _cause(error: BaseException) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    lower = text.lower()
    if "shared memory" in lower or "shm" in lower or "no space left" in lower:
        cause = (
            "Loader workers found no room in /dev/shm (containers: --shm-size; else fewer workers)."
        )
    elif "killed" in lower or "memory" in lower or "exited unexpectedly" in lower:
        cause = "A loader worker was killed, most likely for memory (fewer workers need less)."
    elif "open files" in lower:
        cause = "Loader workers ran out of open files (ulimit -n)."
    else:
        cause = "The loader workers failed."
    return f"{cause} [{text}]"
