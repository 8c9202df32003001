"""Forked processes that read images, so that a Dataset of the user's is never used in the process
that forks.

What a Dataset opens when it is first used (a file, an archive, a database) must not be shared by
several processes: they would move each other's place in it. So whatever is read is read in a child,
each of which opens its own, as the workers of a DataLoader do.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import mmap
import multiprocessing
import multiprocessing.connection
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from ddpm_lib.core.keys import key
from ddpm_lib.core.spelling import option
from ddpm_lib.data.workers import (
    die_with_parent,
    ignore_signals,
    introduce_worker,
    one_thread,
    signals_held,
)

Say = Callable[[str], None]
PATIENCE = 60.0
"""Seconds for which one row may be read before a line says so."""
IDLE = -1

logger = logging.getLogger("ddpm_lib")
_is_reader = False


def may_fork() -> bool:
    """Whether this process can have forked readers."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def is_reader() -> bool:
    """Whether this process is itself a forked reader or a worker of a DataLoader."""
    return _is_reader or torch.utils.data.get_worker_info() is not None


def shared(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return zeros in anonymous memory that forked processes write in place."""
    count = int(np.prod(shape))
    size = max(1, count * np.dtype(dtype).itemsize)
    return np.frombuffer(mmap.mmap(-1, size), dtype=dtype, count=count).reshape(shape)


def seed_generators(*parts: int | str) -> None:
    """Seed the global generators of Python, numpy and torch (CPU) by name, for code of the user's
    that draws from them.
    """
    number = key(*parts) >> 1
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)  # noqa: NPY002
    torch.default_generator.manual_seed(number)


def generator_states() -> tuple[Any, Any, Any]:
    """Return the places of those generators, to be compared."""
    numpy = np.random.get_state(legacy=True)  # noqa: NPY002
    words = tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in numpy)
    return random.getstate(), words, torch.default_generator.get_state().numpy().tobytes()


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Give the user his global generators back as they were."""
    before = (
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002
        torch.default_generator.get_state(),
    )
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.default_generator.set_state(before[2])


class Patience:
    """Says which row a reader has been at for long: after `PATIENCE` seconds, then after twice as
    long, and so on.

    Args:
        place: Words for a row.
        say: Gets the line; default: a warning in the log.
    """

    def __init__(self, place: Callable[[int], str], say: Say | None) -> None:
        self._place, self._say = place, say or logger.warning
        self._since: dict[int, tuple[int, float, float]] = {}

    def look(self, rows: np.ndarray) -> None:
        """Look at the row that each reader is at (`IDLE`: none)."""
        now = time.monotonic()
        for rank, row in enumerate(rows.tolist()):
            known = self._since.get(rank)
            if row == IDLE or known is None or known[0] != row:
                self._since[rank] = row, now, PATIENCE
            elif now - known[1] >= known[2]:
                self._say(
                    f"{self._place(row)} has been read for {now - known[1]:,.3g} s and is not there"
                    " yet; still waiting for it."
                )
                self._since[rank] = row, known[1], 2 * known[2]


def run_readers(
    work: Callable[[int, np.ndarray], Any],
    count: int,
    dataset: Any,
    place: Callable[[int], str],
    say: Say | None = None,
    tick: Callable[[], None] | None = None,
) -> list[Any]:
    """Fork `count` readers, and return what `work(rank, at)` returns in each.

    Args:
        work: Called in reader number `rank`; writes the row it is at to `at[rank]`.
        count: Number of readers.
        dataset: What `get_worker_info().dataset` is to be there.
        place: Words for a row, for messages: "row 000007 of Photos".
        say: Gets a line when a row takes long.
        tick: Called a few times a second meanwhile.

    Raises:
        RuntimeError: If a reader dies, naming the row it was at.
        ValueError: What `work` raised; so for TypeError.
    """
    at = shared((count,), np.int64)
    at[:] = IDLE
    pipes, processes = [], []
    try:
        for rank in range(count):
            process, pipe = _fork(_report, (work, rank, at), rank, count, dataset, duplex=False)
            pipes.append(pipe)
            processes.append(process)
        results: dict[int, Any] = {}
        waiting, patience = dict(enumerate(pipes)), Patience(place, say)
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting.values()), timeout=0.2)
            for rank in [
                rank
                for rank, pipe in waiting.items()
                if pipe in ready or _is_dead(processes[rank], pipe)
            ]:
                results[rank] = _receive(waiting.pop(rank), processes[rank], place, int(at[rank]))
            patience.look(at)
            if tick is not None:
                tick()
        return [results[rank] for rank in range(count)]
    finally:
        for process in processes:
            process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()


def _fork(
    target: Callable[..., None],
    args: tuple[Any, ...],
    rank: int,
    count: int,
    dataset: Any,
    duplex: bool,
) -> tuple[Any, Connection]:
    here, there = multiprocessing.get_context("fork").Pipe(duplex=duplex)
    parent, stays = os.getpid(), not duplex or threading.current_thread() is threading.main_thread()

    def run() -> None:
        global _is_reader
        ignore_signals()
        die_with_parent(parent, stays)
        here.close()
        one_thread()
        _is_reader = True
        introduce_worker(rank, count, dataset)
        target(there, *args)

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    with signals_held():
        process.start()
    there.close()
    return process, here


def _report(
    pipe: Connection, work: Callable[[int, np.ndarray], Any], rank: int, at: np.ndarray
) -> None:
    pipe.send(_answer(lambda: work(rank, at)))


def _answer(work: Callable[[], Any]) -> tuple[bool, Any]:
    """Call, and return (True, value) or (False, an exception that can be sent)."""
    try:
        return True, work()
    except (TypeError, ValueError) as error:
        plain = type(error) if type(error).__module__.startswith("ddpm_lib.") else None
        return False, (
            error
            if plain
            else (TypeError if isinstance(error, TypeError) else ValueError)(str(error))
        )
    except Exception as error:
        return False, RuntimeError(f"{type(error).__name__}: {error}")


def _is_dead(process: Any, pipe: Connection) -> bool:
    """Whether a reader ended without an answer.

    The end of its pipe does not always say so: a process that another thread forked meanwhile may
    hold it open.
    """
    return not process.is_alive() and not pipe.poll()


def _receive(pipe: Connection, process: Any, place: Callable[[int], str], row: int) -> Any:
    try:
        if _is_dead(process, pipe):
            raise EOFError
        good, value = pipe.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise RuntimeError(
            _death(process.exitcode, "its start" if row == IDLE else place(row))
        ) from None
    if not good:
        raise value
    return value


def _death(code: int | None, place: str) -> str:
    if code == -9:
        return (
            f"A process that reads images was killed by the system at {place}, most likely for"
            ' memory. Use fewer (num_workers=1), a smaller image_size, or cache="none".'
        )
    return (
        f"A process that reads images died (exit code {code}) at {place}. Leave that one out, or"
        f" look closer with {option('num_workers', 0)}."
    )


class LentReader:
    """One forked reader, kept for the rows that this process asks for itself.

    Args:
        read: Reads rows there: `read(rows, draws, at)` gives an array; `at[0]` is to hold the row
            it is at.
        dataset: What `get_worker_info().dataset` is to be there.
        place: Words for a row.
        say: Gets a line when a row takes long.
    """

    def __init__(
        self,
        read: Callable[..., np.ndarray],
        dataset: Any,
        place: Callable[[int], str],
        say: Say | None = None,
    ) -> None:
        self._read, self._dataset, self._place, self._say = read, dataset, place, say
        self._lock = threading.Lock()
        self._owner = 0
        self._at = shared((1,), np.int64)

    def __call__(self, rows: np.ndarray, draws: np.ndarray | None) -> np.ndarray:
        """Return what `read` makes of the rows; a reader that ended between two calls is
        replaced.
        """
        with self._lock:
            for attempt in itertools.count():
                if self._owner != os.getpid() or not self._process.is_alive():
                    self._start()
                try:
                    self._pipe.send((rows, draws))
                    patience = Patience(self._place, self._say)
                    while not self._pipe.poll(0.5) and not _is_dead(self._process, self._pipe):
                        patience.look(self._at)
                    value: np.ndarray = _receive(
                        self._pipe, self._process, self._place, int(self._at[0])
                    )
                    return value
                except (BrokenPipeError, ConnectionResetError):
                    if attempt:
                        raise
                    self._owner = 0
            raise AssertionError

    def _start(self) -> None:
        self._at[0] = IDLE
        self._process, self._pipe = _fork(
            _serve, (self._read, self._at), 0, 1, self._dataset, duplex=True
        )
        self._owner = os.getpid()
        weakref.finalize(self, _end, self._process, self._owner)


def _serve(pipe: Connection, read: Callable[..., np.ndarray], at: np.ndarray) -> None:
    while True:
        try:
            rows, draws = pipe.recv()
        except EOFError:
            return
        answer = _answer(lambda: read(rows, draws, at))  # noqa: B023
        at[0] = IDLE
        pipe.send(answer)


def _end(process: Any, owner: int) -> None:
    if os.getpid() == owner:
        process.kill()
        process.join()
