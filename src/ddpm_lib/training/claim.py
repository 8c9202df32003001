"""The order of a start: the lock, then the checkpoint, then the data; and what a start that fails
leaves behind: nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ddpm_lib.core.errors import LostProcessError
from ddpm_lib.runs.lock import RunLock
from ddpm_lib.runs.metrics_file import check_records, sweep_records
from ddpm_lib.runs.run_log import RunLog
from ddpm_lib.runs.run_status import written_word
from ddpm_lib.training.recovery import is_lost_process_error


@contextlib.contextmanager
def claimed(log: RunLog) -> Iterator[None]:
    """Hold the run directory: nobody else trains in it, and what stands in it does not change under
    us.

    A start that fails before training begins, when the log is not open yet, removes what it made;
    in a directory with a run in it, it leaves the reason, unless that run is finished. To be used
    on every rank.

    Args:
        log: Of the run; it is closed here, and again at the end.

    Raises:
        ConfigError: If another process trains in it, or it cannot be written to.
    """
    run, processes = log.output_dir, log.processes
    lock = RunLock(run)
    note = processes.on_main(lock.acquire)
    log.close()
    word = "none"
    try:
        processes.on_main(lambda: check_records(run))
        word = processes.on_main(lambda: written_word(run))
        if note:
            log.info(note)
        processes.on_main(lambda: _clear(log))
        yield
    except BaseException as error:
        lost = isinstance(error, LostProcessError) or is_lost_process_error(error, processes)
        signalled = isinstance(error, SystemExit)
        if log.is_open or not processes.is_main:
            pass  # the session has said how it ended
        elif word == "none" and not lost and not signalled:
            lock.abandon()
        elif word != "finished" and not lost:
            log.open()
            if signalled or isinstance(error, KeyboardInterrupt):
                log.status("stopped", "ended by a signal before training began")
            else:
                log.status("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        lock.release()
        log.close()


def _clear(log: RunLog) -> None:
    """Take away what belongs to the past: half-written files, a STOP that nobody was there to
    see.
    """
    run = log.output_dir
    sweep_records(run)
    stop = run / "STOP"
    if stop.is_file() or stop.is_symlink():
        stop.unlink()
        log.info(
            "The file STOP was there before this start and is removed; one that is made from now on"
            " stops the run."
        )
