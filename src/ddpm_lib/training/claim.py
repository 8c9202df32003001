"""The order of a start: the lock, then the checkpoint, then the data; and what a start that fails leaves behind: nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ddpm_lib.core.errors import LostProcessError
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.lock import RunLock
from ddpm_lib.runs.metrics_file import check_records, sweep_records
from ddpm_lib.runs.standing import written_word
from ddpm_lib.training import failures
from ddpm_lib.training.going_back import set_aside, wanted_step
from ddpm_lib.training.run_config import write_run_config
from ddpm_lib.training.same_data import write_data_index
from ddpm_lib.training.saving import check_space

if TYPE_CHECKING:
    from ddpm_lib.training.trainer import Trainer


@contextlib.contextmanager
def claimed(trainer: Trainer) -> Iterator[None]:
    """Hold the run directory: nobody else trains in it, and what stands in it does not change under us.

    A start that fails before training begins removes what it made; in a directory with a run in it, it leaves the reason,
    unless that run is finished.

    Raises:
        ConfigError: If another process trains in it, or it cannot be written to.
    """
    run = trainer.output_dir
    lock = RunLock(run)
    note = trainer.on_main(lock.acquire)
    trainer.open_log(None)
    word = "none"
    try:
        trainer.on_main(lambda: check_records(run))
        word = trainer.on_main(lambda: written_word(run))
        if note:
            trainer.say(note)
        trainer.on_main(lambda: _clear(trainer))
        yield
    except BaseException as error:
        lost = isinstance(error, LostProcessError) or failures.lost_process(error, trainer) is not None
        signalled = isinstance(error, SystemExit)
        if trainer.log_is_open or not trainer.is_main:
            pass  # the session has said how it ended
        elif word == "none" and not lost and not signalled:
            lock.abandon()
        elif word != "finished" and not lost:
            trainer.open_log(run)
            if signalled or isinstance(error, KeyboardInterrupt):
                trainer._status("stopped", "ended by a signal before training began")
            else:
                trainer._status("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        lock.release()
        trainer.open_log(None)


def _clear(trainer: Trainer) -> None:
    """Take away what belongs to the past: half-written files, a STOP that nobody was there to see."""
    run = trainer.output_dir
    sweep_records(run)
    stop = run / "STOP"
    if stop.is_file() or stop.is_symlink():
        stop.unlink()
        trainer.say(
            "The file STOP was there before this start and is removed; one that is made from now on stops the run."
        )


def start_records(trainer: Trainer) -> None:
    """Begin to write: on the main process, when all that can be refused has been looked at."""
    check_space(trainer)
    trainer.open_log(trainer.output_dir)
    step = wanted_step(trainer.config.resume, trainer.output_dir)
    moved = set_aside(trainer.output_dir, trainer.step) if step == trainer.step and step is not None else None
    note = trainer.records.cut_back(trainer.step)
    for line in (moved, note):
        if line:
            trainer.say(line)
    write_run_config(trainer.output_dir, trainer.source_name, trainer.config, trainer.diffusion)
    with trainer.going_on("data.npz"):
        write_data_index(trainer.output_dir, trainer.dataset)


def look_again(trainer: Trainer) -> None:
    """Go on from what another process has trained since this one last looked, where there is such a thing."""
    from ddpm_lib.training.resume import find_checkpoint, restore

    newer = trainer.on_main(lambda: _newer(trainer))
    if newer:
        run, resume = trainer.output_dir, trainer.config.resume
        found = trainer.on_main(lambda: find_checkpoint(run, resume, trainer.say))
        if found is not None and found.state.step > trainer.step:
            restore(trainer, found)
            trainer.last_checkpoint = found.path
            where = f"{found.path} at step {trainer.step:,}"
            trainer.say(f"Another process trained here meanwhile: going on from {where}.")


def _newer(trainer: Trainer) -> bool:
    there = files.list_checkpoints(trainer.output_dir / "checkpoints")
    return bool(there) and files.step_of(there[-1]) > trainer.step
