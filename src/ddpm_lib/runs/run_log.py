"""What a run says while it trains: lines on the console and in train.log, metrics, its status.

Lines go through the logger `ddpm_lib.run`, whose handler writes them above a progress bar. They do
not reach the handlers of other loggers. `logging.getLogger("ddpm_lib").setLevel(logging.WARNING)`
silences the console; train.log gets them all the same.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm_lib.core.files import appending
from ddpm_lib.core.progress import stream, write
from ddpm_lib.core.text import sayable
from ddpm_lib.runs.counters import Progress
from ddpm_lib.runs.metrics_file import MetricsFile, write_status
from ddpm_lib.runtime.processes import Processes

logger = logging.getLogger("ddpm_lib")
lines = logging.getLogger("ddpm_lib.run")


@contextlib.contextmanager
def tolerate_write_errors(what: str) -> Iterator[None]:
    """Turn an OSError inside into a warning that names `what`; training goes on without it."""
    try:
        yield
    except OSError as error:
        logger.warning("%s could not be written (%s). Training goes on.", what, error)


class ConsoleHandler(logging.Handler):
    """Writes the text of records to the console, above a bar of tqdm where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a console that refuses it is a warning."""
        with tolerate_write_errors("A line on the console"):
            write(sayable(record.getMessage(), getattr(stream(), "encoding", None)))


def _at_package_level(record: logging.LogRecord) -> bool:
    """Whether the level of `ddpm_lib`, where one is set, lets a record pass."""
    return record.levelno >= logger.level


if not lines.handlers:  # once, also where the module is imported again
    lines.addHandler(ConsoleHandler())
    lines.addFilter(_at_package_level)
    lines.setLevel(logging.INFO)  # shown although the root logger asks for warnings only
    lines.propagate = False  # a handler of the application would show every line twice


class RunLog:
    """The records of one run; every method may be called on every rank, the main process writes.

    Args:
        output_dir: The run directory.
        progress: The counters, which are part of every row and line.
        max_steps: Optimizer steps of the whole run, for status.json.
        save_every: Steps between checkpoints, for status.json.
    """

    def __init__(
        self,
        output_dir: Path,
        progress: Progress,
        *,
        max_steps: int,
        save_every: int,
    ) -> None:
        self.output_dir, self.progress = output_dir, progress
        self.max_steps, self.save_every = max_steps, save_every
        self.processes = Processes()  # until the run has met the others
        self.records = MetricsFile(output_dir)
        self.metrics: dict[str, Any] = {}
        self._row: dict[str, Any] = {}
        self._notes: list[str] = []
        self._pending: list[str] = []
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """Whether this process has begun to write into the run directory; only the main one
        does.
        """
        return self._is_open

    @property
    def pending(self) -> tuple[str, ...]:
        """Lines that wait until train.log is open."""
        return tuple(self._pending)

    def open(self) -> None:
        """Write train.log from now on, beginning with the lines that waited."""
        self._is_open = self.processes.is_main
        self._write_pending()

    def close(self) -> None:
        """Keep lines from now on until it is known whether they belong into the run directory."""
        self._is_open = False

    def info(self, line: str) -> None:
        """Show a line to the user and keep it in train.log."""
        if not self.processes.is_main:
            return
        lines.info("%s", sayable(line, None))
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._pending.append(f"{now} step {self.progress.step}: {sayable(line, None)}\n")
        self._write_pending()

    def _write_pending(self) -> None:
        if not self._is_open or not self._pending:
            return
        path = self.output_dir / "train.log"
        with tolerate_write_errors("train.log"), appending(path) as file:
            file.writelines(self._pending)
        self._pending.clear()

    def status(self, status: str, reason: str, by: str = "") -> None:
        """Write status.json: running | finished | stopped | failed | lost, and why; `by` names what
        the run stopped by itself for.
        """
        if not self.processes.is_main:
            return
        with tolerate_write_errors("status.json"):
            write_status(
                self.output_dir,
                status=status,
                step=self.progress.step,
                max_steps=self.max_steps,
                save_every=self.save_every,
                reason=reason,
                **({"stopped_by": by} if by else {}),
            )

    def log(self, values: dict[str, Any]) -> None:
        """Add values to the row of this step."""
        self._row.update(values)

    def logged(self, name: str) -> Any:
        """Return what was logged under a name in this step so far, or None."""
        return self._row.get(name)

    def drop_row(self) -> None:
        """Forget what was logged and not flushed, by a call that failed."""
        self._row = {}

    def flush(self, images_per_epoch: int) -> dict[str, Any] | None:
        """Write the row of this step to metrics.jsonl and metrics.csv.

        Returns:
            The row, None where nothing was logged.
        """
        if not self._row:
            return None
        progress = self.progress
        row = {
            "step": progress.step,
            "images": progress.images_seen,
            "epoch": round(progress.images_seen / images_per_epoch, 4),
            **self._row,
            "seconds": round(progress.seconds(), 3),
        }
        self.metrics.update(row)
        self._row = {}
        if self.processes.is_main:
            with tolerate_write_errors("metrics.jsonl"):
                self.records.append(row)
        return row

    def note(self, text: str) -> None:
        """Add a word to the next row on the console: what happened besides the numbers."""
        self._notes.append(text)

    def notes(self) -> list[str]:
        """Return the words since the last call, each once, and forget them."""
        notes, self._notes = list(dict.fromkeys(self._notes)), []
        return notes
