"""Says where a run hangs and which process the others wait for; it ends only what NCCL would.

A collective waits silently for a process that is stuck or gone, until `process_timeout_minutes`
ends it. Long before, a thread of every process notices that nothing moves. The processes tell each
other through the store they met at how far they are, so that the one who is missing can be named;
nobody's clock is compared with another's.

Under NCCL the main thread waits for the GPU and sees no error, and NCCL's own watchdog ends the
process by SIGABRT: no status, no exit code that a script could tell from a crash. So there the
thread acts a little before, when another process has been silent for as long as it may.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ddpm_lib.core.errors import LostProcessError
from ddpm_lib.core.files import open_own

logger = logging.getLogger("ddpm_lib")
_KEY = "ddpm_lib/alive/"


class Watchdog:
    """A thread that speaks when `mark` has not been called for `seconds`; use it with `with`.

    Args:
        seconds: How long nothing may move before it speaks.
        run: The run directory; the stacks of all threads go to `stuck-rank<r>.txt` in it.
        rank: This process.
        processes: How many there are.
        store: Where the processes met (a torch `Store`), or None for one process.
        on_lost: Called with what is known, when nothing has moved for `lost_after` seconds and
            another process is silent; None: nobody is.
        lost_after: How long that takes.
    """

    def __init__(
        self,
        seconds: float,
        run: Path,
        rank: int = 0,
        processes: int = 1,
        store: Any = None,
        *,
        on_lost: Callable[[str], None] | None = None,
        lost_after: float = 600.0,
    ) -> None:
        self.seconds, self.run, self.rank, self.processes = seconds, run, rank, processes
        self._store, self._on_lost, self._lost_after = store, on_lost, lost_after
        self._place = (0, "starting")
        self._moved = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._main = threading.get_ident()
        self.interval = min(10.0, seconds / 4)

    def mark(self, step: int, what: str) -> None:
        """Note where the run is; costs nothing."""
        self._place = (step, what)
        self._moved += 1

    def __enter__(self) -> Watchdog:
        self._done.clear()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="ddpm_lib-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join(1.0)  # it may wait for a store that is gone: it is a daemon

    def _watch(self) -> None:
        seen, since, told, beat = -1, time.monotonic(), False, 0
        while not self._done.wait(self.interval):
            beat += 1
            self._publish(beat)
            if self._moved != seen:
                if told:
                    logger.warning("The run moves again (step %d).", self._place[0])
                seen, since, told = self._moved, time.monotonic(), False
                continue
            if not told and time.monotonic() - since >= self.seconds:
                told = True
                self._speak(time.monotonic() - since)
            if self._on_lost is not None and time.monotonic() - since >= self._lost_after:
                gone = self._gone()
                if gone and self._moved == seen:
                    self._on_lost(gone)
                    return

    def _publish(self, beat: int) -> None:
        if self._store is None:
            return
        step, what = self._place
        try:
            self._store.set(f"{_KEY}{self.rank}", f"{beat}|{step}|{what}")
        except RuntimeError as error:
            logger.warning(
                "The store of process 0 does not answer any more (%s).", _first_line(error)
            )
            self._store = None

    def _speak(self, seconds: float) -> None:
        step, what = self._place
        file = self._dump()
        others = self._missing()
        if self.rank == 0 or not self.processes > 1 or "process 0" in others or self._store is None:
            logger.warning(
                "Nothing has moved for %.0f s after step %d: process %d of %d is in %s (%s).%s %s",
                seconds,
                step,
                self.rank,
                self.processes,
                what,
                self._where(),
                f" {others}" if others else "",
                file,
            )

    def _where(self) -> str:
        """Innermost line of this package in the main thread."""
        frame: FrameType | None = sys._current_frames().get(self._main)
        while frame is not None:
            if "ddpm_lib" in frame.f_code.co_filename:
                return (
                    f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno},"
                    f" {frame.f_code.co_name}"
                )
            frame = frame.f_back
        return "outside ddpm_lib"

    def _dump(self) -> str:
        path = self.run / f"stuck-rank{self.rank}.txt"
        try:
            handle = open_own(path, os.O_WRONLY | os.O_CREAT)
            with open(handle, "w") as file:
                file.truncate(0)
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            return f"The stacks could not be written to {path} ({error})."
        return f"Stacks of all threads: {path}."

    def _gone(self) -> str:
        """Name the processes that are silent, and the store where it is; nothing where all live."""
        if self._store is None:
            return "process 0, which keeps the store, or the network"
        silent, _ = self._silent()
        if self._store is None:
            return "process 0, which keeps the store, or the network"
        return ", ".join(silent)

    def _silent(self) -> tuple[list[str], dict[int, list[str] | None]]:
        """Return the processes whose threads say nothing new, and what all said last."""
        first = self._read()
        self._done.wait(2.5 * self.interval)
        self._publish(-1)
        second = self._read()
        silent = [
            r for r in second if r != self.rank and (second[r] is None or second[r] == first.get(r))
        ]
        return [f"process {r}{_last_heard(second[r])}" for r in silent], second

    def _missing(self) -> str:
        """Name the processes that are silent, or else those that are furthest behind."""
        if self._store is None:
            return ""
        silent, second = self._silent()
        if silent:
            return f"Silent, so stopped, killed or cut off: {', '.join(silent)}."
        behind = min(int(place[1]) for place in second.values() if place)
        late = [f"process {r} in {p[2]}" for r, p in second.items() if p and int(p[1]) == behind]
        return f"All processes live; furthest behind (step {behind}): {', '.join(late)}."

    def _read(self) -> dict[int, list[str] | None]:
        found: dict[int, list[str] | None] = {}
        for rank in range(self.processes):
            key = f"{_KEY}{rank}"
            try:
                there = self._store is not None and self._store.check([key])
                found[rank] = self._store.get(key).decode().split("|") if there else None
            except RuntimeError as error:
                logger.warning(
                    "Process 0, which keeps the store, does not answer (%s).", _first_line(error)
                )
                self._store = None
                found[rank] = None
        return found


def _last_heard(place: list[str] | None) -> str:
    return f" (last heard at step {place[1]}, in {place[2]})" if place else ""


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__


def rendezvous_store(processes: int) -> Any:
    """Return a connection of its own to the store where the processes met, or None for one
    process.
    """
    if processes == 1:
        return None
    from torch.distributed import distributed_c10d

    store = distributed_c10d._get_default_store()
    return store.clone()


def leave_at_once(error: LostProcessError) -> None:
    """End the process with the error's exit code, saying it; from any thread."""
    logger.error("%s", error)
    for handler in (*logger.handlers, *logging.getLogger().handlers):
        handler.flush()
    sys.stderr.flush()
    os._exit(error.exit_code)
