"""Reasons to stop that come from outside: signals, time limits, a STOP file. Handlers only set a
flag.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from ddpm_lib.training.results import StopReason

if TYPE_CHECKING:
    from ddpm_lib.runtime.processes import Processes

_SIGNALS = [
    name for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
]


class StopSignals:
    """Turn termination signals into a flag while active; a second Ctrl-C interrupts at once.

    Handlers are installed in the main thread only (Python allows no other) and restored on exit.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name)
                if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # under nohup a closed terminal is no reason to stop
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._old.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = name


def slurm_end_time() -> float | None:
    """Return the end of the surrounding SLURM job in seconds since the epoch, or None outside SLURM
    or where unknown.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if not re.fullmatch(r"\d+(_\d+)?", job):
        return None
    known = os.environ.get("SLURM_JOB_END_TIME", "")
    if known.isdigit():
        return float(known)
    command = ["squeue", "--noheader", "--jobs", job, "--format=%e"]
    try:
        out = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()
        return time.mktime(time.strptime(out.splitlines()[0], "%Y-%m-%dT%H:%M:%S"))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


class TimeLimit:
    """Says when to stop so that a last checkpoint still fits before the limit.

    Args:
        max_hours: Limit on this call's wall time, or None.
        began: When the call began by `time.monotonic()`; opening the data counts too.
    """

    def __init__(self, max_hours: float | None, began: float) -> None:
        self.limits: list[tuple[float, float, str]] = []
        if max_hours is not None:
            self.limits.append(
                (began + 3600.0 * max_hours, 0.0, f"max_hours={max_hours:g} reached")
            )
        end = slurm_end_time()
        if end is not None:
            self.limits.append(
                (time.monotonic() + end - time.time(), 60.0, "the SLURM job's time limit is near")
            )

    def reached(self, slowest_step: float, save_seconds: float) -> str | None:
        """Return the reason to stop now, or None; margins cover one step and one save (twice each
        before a hard limit).
        """
        now = time.monotonic()
        for end, least, reason in self.limits:
            margin = (
                max(least, 2 * save_seconds + 2 * slowest_step + 30.0) if least else slowest_step
            )
            if now >= end - margin:
                return reason
        return None


def stop_file_present(run: Path) -> bool:
    """Say whether somebody has put a file named STOP into the run directory."""
    return os.path.lexists(run / "STOP")


def reason_to_stop(
    signals: StopSignals,
    limit: TimeLimit,
    slowest_step: float,
    save_seconds: float,
    run: Path | None,
) -> StopReason | None:
    """Return what comes from outside and means to stop now, or None.

    Args:
        signals: What was received.
        limit: Of time.
        slowest_step: Seconds of the slowest step.
        save_seconds: Seconds of the last save.
        run: The run directory, on the process that looks for the file STOP in it.
    """
    if signals.received:
        return StopReason(f"received {signals.received}", signals.received)
    text = limit.reached(slowest_step, save_seconds)
    if text is None and run is not None and stop_file_present(run):
        text = "found the file STOP"
    return None if text is None else StopReason(text)


def agreed_reason(
    reason: StopReason | None, ranks: Processes, device: torch.device
) -> StopReason | None:
    """Return the reason of the first rank that has one, on every rank; a collective.

    Args:
        reason: To stop, of this rank, None for none.
        ranks: The processes of the run.
        device: Where collectives work.
    """
    if not float(ranks.sum(torch.tensor(float(reason is not None), device=device))):
        return None
    return next(r for r in ranks.all_objects(reason) if r is not None)
