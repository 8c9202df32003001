"""What every part of a run needs: where it writes, who speaks, and how the ranks agree."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ddpm_lib.core.files import appending
from ddpm_lib.core.progress import stream, write
from ddpm_lib.core.text import sayable
from ddpm_lib.runs.metrics_file import MetricsFile, write_status
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.runtime.watchdog import Watchdog
from ddpm_lib.training.config import TrainingConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ddpm_lib.data import ImageDataset

T = TypeVar("T")
logger = logging.getLogger("ddpm_lib")


class RunContext:
    """The run directory, the counters, the console and the ranks of one training run."""

    config: TrainingConfig
    output_dir: Path
    accelerator: Accelerator
    device: torch.device
    records: MetricsFile
    dataset: ImageDataset
    ranks: Processes
    step: int
    images_seen: int
    metrics: dict[str, Any]
    watchdog: Watchdog
    _row: dict[str, Any]
    _lines: list[str]
    _log: Path | None = None
    _notes: list[str]
    _clock: float

    def _join(self, accelerator: Accelerator) -> None:
        self.accelerator, self.device = accelerator, accelerator.device
        self.ranks = Processes.of(accelerator)
        self.sum_dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.records = MetricsFile(self.output_dir)

    def _status(self, status: str, reason: str) -> None:
        if self.is_main:
            with self.tolerate_write_errors("status.json"):
                write_status(
                    self.output_dir, status=status, step=self.step, max_steps=self.config.max_steps,
                    save_every=self.config.save_every, reason=reason,
                )  # fmt: skip

    @contextlib.contextmanager
    def tolerate_write_errors(self, what: str) -> Iterator[None]:
        """Turn a disk that refuses a record into a warning: training is worth more than its diary."""
        try:
            yield
        except OSError as error:
            logger.warning("%s could not be written (%s). Training goes on.", what, error)

    def log(self, values: dict[str, Any]) -> None:
        """Add values to this step's line of metrics.jsonl, metrics.csv and the trackers; to be called on every rank."""
        self._row.update(values)

    def logged(self, name: str) -> Any:
        """Return what was logged under a name in this step so far, or None."""
        return self._row.get(name)

    def note(self, text: str) -> None:
        """Add a word to the next row on the console: what happened besides the numbers."""
        self._notes.append(text)

    def notes(self) -> list[str]:
        """Return the words since the last call, each once, and forget them."""
        notes, self._notes = list(dict.fromkeys(self._notes)), []
        return notes

    def _flush_row(self) -> None:
        if not self._row:
            return
        epoch = self.images_seen / len(self.dataset)
        seconds = time.monotonic() - self._clock
        row = {
            "step": self.step,
            "images": self.images_seen,
            "epoch": round(epoch, 4),
            **self._row,
            "seconds": round(seconds, 3),
        }
        self.metrics.update(row)
        self._row = {}
        if self.is_main:
            with self.tolerate_write_errors("metrics.jsonl"):
                self.records.append(row)
            self._track({k: v for k, v in row.items() if k != "step"})

    def _track(self, values: dict[str, Any]) -> None:
        try:
            self.accelerator.log(values, step=self.step)
        except Exception as error:  # a tracker whose server is away must not end a run
            logger.warning(
                "The trackers failed and get nothing more from this run (%s: %s).", type(error).__name__, error
            )
            self.accelerator.trackers.clear()

    def say(self, line: str) -> None:
        """Show one line to the user and keep it in train.log; the main process speaks."""
        if not self.is_main:
            return
        with self.tolerate_write_errors("A line on the console"):
            write(sayable(line, getattr(stream(), "encoding", None)))
        self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} step {self.step}: {sayable(line, None)}\n")
        self._write_lines()

    @property
    def log_is_open(self) -> bool:
        """Whether this process has begun to write into the run directory; on the main process only."""
        return self._log is not None

    def open_log(self, run: Path | None) -> None:
        """Write train.log from now on, with what was said before; None: keep the lines until it is known where they belong."""
        self._log = run if self.is_main else None
        self._write_lines()

    def _write_lines(self) -> None:
        if self._log is None or not self._lines:
            return
        with self.tolerate_write_errors("train.log"), appending(self._log / "train.log") as file:
            file.writelines(self._lines)
        self._lines.clear()

    @property
    def rank(self) -> int:
        """This process among those of the run; 0 until they have met."""
        return self.ranks.rank

    @property
    def processes(self) -> int:
        """How many processes the run has; 1 until they have met."""
        return self.ranks.count

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.ranks.is_main

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, on every rank; the argument stays as it is."""
        return self.ranks.sum(tensor)

    def from_main(self, value: T) -> T:
        """Return the main process's value on every rank."""
        return self.ranks.from_main(value)

    def on_main(self, function: Callable[[], T]) -> T:
        """Run a function on the main process and return its value on every rank; if it fails there, every rank fails.

        Raises:
            RuntimeError: On the other ranks, saying what the main process failed with (there the error itself is raised).
        """
        return self.ranks.on_main(function)
