"""The live view of a notebook: progress, curves and the newest grid in one output."""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path
from typing import Any

from ddpm_lib.core.progress import hear_lines, in_notebook, stop_hearing
from ddpm_lib.images import grid_scale, small_png
from ddpm_lib.runs.metrics_file import MetricsFile
from ddpm_lib.training.callbacks.base import Callback, TrainingView
from ddpm_lib.training.callbacks.live_page import CURVES, LiveFacts, live_html, live_text
from ddpm_lib.training.callbacks.rows import header

SECONDS = 2.0
"""Least time between two drawings; those at the start and the end come in any case."""

GRID_WIDTH = 390
"""Width of the grid on the page, in pixels, at most; it is sent with every drawing."""

_SHOWN = (
    *CURVES,
    "val_loss_error",
    "val_gap",
    "val_gap_error",
    "val_gap_adjusted",
    "val_gap_adjusted_error",
)
_KEPT_ROWS = 200


class LiveView(Callback):
    """Draw progress, curves, the newest grid and the last rows into one output of the cell, which
    is updated in place; on the main process in a notebook, and nothing elsewhere.

    It needs IPython only, no widgets: Jupyter, VS Code and Colab show it, and what stays in a saved
    notebook is the last state. Lines that the run says go into it instead of below it.
    """

    def __init__(self) -> None:
        self._facts = LiveFacts()
        self._open = False
        self._display = ("", -1)
        self._began = (0.0, 0, 0)
        self._drawn = 0.0
        self._grid: Path | None = None

    def on_train_start(self, trainer: TrainingView) -> None:
        """Open the output, with the curves of the run so far; one output for all of a cell."""
        if not trainer.is_main or not in_notebook():
            return
        kept = self._facts
        self._facts = LiveFacts(
            heading=header(),
            rows=kept.rows,
            grid=kept.grid,
            grid_width=kept.grid_width,
            grid_step=kept.grid_step,
        )
        self._began = (time.monotonic(), trainer.step, trainer.images_seen)
        for row in MetricsFile(trainer.output_dir).rows():
            self._take(row["step"], row)
        if not self._open:
            hear_lines(self._hear)
            self._open = True
        self._draw(trainer)

    def on_step_end(self, trainer: TrainingView) -> None:
        """Note what was logged; draw when the last drawing is old enough."""
        if not self._open:
            return
        logged = {name: trainer.logged(name) for name in _SHOWN}
        self._take(trainer.step, {k: v for k, v in logged.items() if v is not None})
        if time.monotonic() - self._drawn >= SECONDS:
            self._draw(trainer)

    def on_train_end(self, trainer: TrainingView) -> None:
        """Draw the last state."""
        if self._open:
            self._draw(trainer)

    def close(self) -> None:
        """Draw that training has ended, also where it did so in an error."""
        if self._open:
            self._open = False
            stop_hearing(self._hear)
            self._facts.ended = True
            self._show()

    def _hear(self, line: str) -> None:
        if line != self._facts.heading:
            self._facts.rows = [*self._facts.rows, line][-_KEPT_ROWS:]

    def _take(self, step: int, values: dict[str, Any]) -> None:
        for name in _SHOWN:
            value = values.get(name)
            if isinstance(value, (int, float)):
                self._facts.values[name] = float(value)
                if name in CURVES:
                    self._facts.points.setdefault(name, []).append((step, float(value)))

    def _draw(self, trainer: TrainingView) -> None:
        """Bring the numbers up to date and show them."""
        facts = self._facts
        began, step, images = self._began
        seconds, steps = time.monotonic() - began, trainer.step - step
        facts.step, facts.until, facts.max_steps = (
            trainer.step,
            trainer.until,
            trainer.config.max_steps,
        )
        facts.epoch = trainer.images_seen / len(trainer.dataset)
        if steps > 0:
            facts.rate = (trainer.images_seen - images) / max(seconds, 1e-9)
            facts.left = (trainer.until - trainer.step) * seconds / steps
        if "loss" not in facts.values and trainer.last is not None:
            facts.values["loss"] = float(trainer.last.losses.mean())
        if trainer.last_grid is not None and trainer.last_grid != self._grid:
            self._grid = trainer.last_grid
            with trainer.tolerate_write_errors(f"{self._grid}, of which the notebook shows a copy"):
                scale = grid_scale(trainer.diffusion.image_size)
                facts.grid, facts.grid_width = small_png(self._grid, GRID_WIDTH, scale)
                facts.grid_step = int(self._grid.stem.rpartition("-")[2])
        self._show()

    def _show(self) -> None:
        from IPython.display import display, update_display

        self._drawn = time.monotonic()
        shell: Any = getattr(sys.modules["IPython"], "get_ipython", lambda: None)()
        cell = getattr(shell, "execution_count", 0)
        page = {"text/plain": live_text(self._facts), "text/html": live_html(self._facts)}
        name, where = self._display
        if where == cell:
            update_display(page, display_id=name, raw=True)
            return
        self._display = (uuid.uuid4().hex, cell)
        display(page, display_id=self._display[0], raw=True)
