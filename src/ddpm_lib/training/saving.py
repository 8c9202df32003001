"""How a run is saved, at once or beside the training, and whether the disk has room."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.run_log import RunLog, tolerate_write_errors
from ddpm_lib.runs.stored_sampling import partner_steps
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.learner import Learner


class Saver:
    """Writes checkpoints, on the main process; knows nothing of other ranks.

    With `asynchronous` a thread writes: the tensors must be copies that training does not change.

    Args:
        folder: Where the checkpoints go.
        asynchronous: Whether to write in a thread.
        flush: Called before, to bring to the disk what a checkpoint must not be ahead of; its
            OSError counts as the checkpoint's.
    """

    def __init__(self, folder: Path, asynchronous: bool, flush: Callable[[], None]) -> None:
        self.folder, self.asynchronous, self.flush = folder, asynchronous, flush
        self._thread: threading.Thread | None = None
        self._outcome: files.SavedCheckpoint | Exception | None = None

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Write a checkpoint, or begin to; `wait` must have returned after the one before."""
        self._outcome = None
        try:
            self.flush()
        except OSError as error:
            self._outcome = error
            return

        def write() -> None:
            try:
                self._outcome = files.save_checkpoint(self.folder, step, tensors, state)
            except Exception as error:
                self._outcome = error

        if self.asynchronous:
            self._thread = threading.Thread(target=write, name="ddpm_lib-checkpoint")
            self._thread.start()
        else:
            write()

    def wait(self) -> files.SavedCheckpoint | OSError:
        """Wait for the checkpoint that `save` began.

        Returns:
            What was saved, or why the disk refused it.

        Raises:
            Exception: Anything else that went wrong in writing it.
        """
        self.close()
        self._thread, outcome = None, self._outcome
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
            raise outcome
        assert outcome is not None, "nothing is being saved"
        return outcome

    def close(self) -> None:
        """Let a thread that writes finish."""
        if self._thread is not None:
            self._thread.join()


class RunCheckpoints:
    """The checkpoints of a run, saved by its main process; every method but `close` is a
    collective.

    Args:
        log: Of the run; knows its processes, and is told how each save went.
        config: The options of the run.
    """

    def __init__(self, log: RunLog, config: TrainingConfig) -> None:
        self.log, self.config = log, config
        self.folder = log.output_dir / "checkpoints"
        self.saver = Saver(self.folder, config.save_async, log.records.flush)
        self.seconds = 0.0
        self._step: int | None = None

    def save(self, step: int, learner: Learner, state: dict[str, Any]) -> None:
        """Write a checkpoint, or begin to; `wait` must have returned after the one before.

        Args:
            step: Optimizer steps done.
            learner: Gives the tensors.
            state: Everything else, JSON-able.
        """
        self._step = step
        copy = self.config.save_async
        self.log.processes.on_main(lambda: self.saver.save(step, learner.tensors(copy), state))

    def wait(self, last: Path | None, keep: Collection[int]) -> Path | None:
        """Wait for the checkpoint on its way, if any; say how it went, and remove what is too old.

        Args:
            last: The newest good checkpoint before.
            keep: Steps whose checkpoints callbacks want to keep.

        Returns:
            The newest good checkpoint.
        """
        step, self._step = self._step, None
        if step is None:
            return last
        log, config = self.log, self.config
        saved = log.processes.on_main(self.saver.wait)
        if isinstance(saved, OSError):
            left = "There is no checkpoint yet"
            if last is not None:
                left = f"The last good checkpoint is {last.name}"
            what = f"The checkpoint of step {step} could not be written to {self.folder}"
            log.info(f"{what}: {saved}. {left}.")
            return last
        self.seconds = saved.seconds
        beside = " beside the training" if config.save_async else ""
        size = f"{saved.megabytes:.1f} MiB in {saved.seconds:.2f} s"
        log.info(f"Saved {saved.path.name}: {size}{beside}.")
        if log.processes.is_main:
            with tolerate_write_errors("The removal of old checkpoints"):
                wanted = {*keep, *partner_steps(self.folder.parent)}
                files.prune(self.folder, step, config.keep_last, config.keep_every, wanted)
        return saved.path

    def newest_to_roll_back_to(self, every: int) -> files.VerifiedCheckpoint | None:
        """Return the newest complete checkpoint, None where there is none.

        One that an uninterrupted run has too is preferred to one of an interruption, so that both
        go on from the same step.

        Args:
            every: Steps between the checkpoints of an uninterrupted run.
        """
        log = self.log
        on_main = log.processes.on_main

        def newest(every: int) -> files.VerifiedCheckpoint | None:
            return files.newest_complete(self.folder, log.info, lambda step: step % every == 0)

        return on_main(lambda: newest(every)) or on_main(lambda: newest(1))

    def close(self) -> None:
        """Let a thread that writes finish; asks no other rank."""
        self.saver.close()


def check_space(
    size: int, run: Path, keep_last: int, kept: int, log: Callable[[str], None]
) -> None:
    """Compare the free space of the run's file system with the checkpoints to come.

    A quota cannot be seen from here.

    Args:
        size: Bytes of one checkpoint.
        run: The run directory.
        keep_last: How many of the newest are kept.
        kept: How many others are kept for good.
        log: Gets a line where space will run out.

    Raises:
        ConfigError: If not even one checkpoint fits.
    """
    free = shutil.disk_usage(run).free
    present = len(files.list_checkpoints(run / "checkpoints"))
    more = max(1, keep_last + 1 + kept - present)  # a new one is complete before an old one goes
    numbers = f"A checkpoint needs about {_mib(size)} MiB and {run} has {_mib(free)} MiB free"
    if free < size:
        other = option("output_dir")
        ways = f"Free space, or choose another {other} on a larger disk."
        raise ConfigError(f"{numbers}: not one fits. {ways}")
    if free < more * size:
        log(
            f"{numbers}, too little for {option('keep_last', keep_last)}"
            + (f" and {kept} that are kept besides" if kept else "")
            + f". Free space, or set {option('keep_last', 2)}"
            + (f" and {option('keep_early', 'no')}." if kept else ".")
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}" if size >= 100 * 2**20 else f"{size / 2**20:.2f}"
