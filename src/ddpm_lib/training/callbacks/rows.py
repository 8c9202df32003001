"""What a run shows while it trains: rows of numbers everywhere, and a bar where one can be seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from ddpm_lib.core.progress import bar, bar_style, duration
from ddpm_lib.training.callbacks.base import Callback, TrainingView

COLUMNS = {
    "step": 9,
    "epoch": 7,
    "loss": 8,
    "val ± error": 17,
    "gap ± error": 18,
    "img/s": 7,
    "left": 6,
}
"""Columns of a row with their widths; a note follows."""

HEADER_EVERY = 40
"""Rows after which the header comes again."""

ROWS_WITHOUT_VALIDATION = 100
"""Without validation, about so many rows tell a run."""


class TrainingRows(Callback):
    """Say a row of numbers at each validation, on the console and in train.log; the last of all
    callbacks.

    Without validation a row comes every so many logged lines that a run has about a hundred. Before
    the first of these rows there is one after 1, 2, 4, 8, … logged lines, so that a slow run is
    heard of early.
    """

    def __init__(self) -> None:
        self._said = 0
        self._began = self._last = (0.0, 0, 0)
        self._validations: list[dict[str, Any]] = []

    def on_train_start(self, trainer: TrainingView) -> None:
        """Start the clock; the header comes with the next row, whose note knows the validations
        before this start.
        """
        from ddpm_lib.runs.records import read_rows

        self._said = 0
        rows = read_rows(trainer.output_dir) if trainer.is_main else ()
        self._validations = [
            row for row in rows if "val_loss" in row and row["step"] <= trainer.step
        ]
        self._began = self._last = (time.monotonic(), trainer.step, trainer.images_seen)

    def on_step_end(self, trainer: TrainingView) -> None:
        """Say a row when it is time."""
        if not self._due(trainer):
            return
        if self._said % HEADER_EVERY == 0:
            trainer.say(header())
        self._said += 1
        trainer.say(self._row(trainer))

    def _due(self, trainer: TrainingView) -> bool:
        if trainer.logged("val_loss") is not None or trainer.step == trainer.until:
            return True
        cadences = trainer.config.cadences
        if trainer.step % cadences.log_every:
            return False
        lines = trainer.step // cadences.log_every
        if trainer.held_out is not None and cadences.val_every:
            return trainer.step < cadences.val_every and lines & (lines - 1) == 0
        every = math.ceil(trainer.config.max_steps / cadences.log_every / ROWS_WITHOUT_VALIDATION)
        return lines % every == 0 or (lines < every and lines & (lines - 1) == 0)

    def _row(self, trainer: TrainingView) -> str:
        now = (time.monotonic(), trainer.step, trainer.images_seen)
        seconds, _, images = (a - b for a, b in zip(now, self._last))
        whole, steps, _ = (a - b for a, b in zip(now, self._began))
        self._last = now
        loss = trainer.logged("loss")
        loss = trainer.metrics.get("loss") if loss is None else loss
        if loss is None and trainer.last is not None:  # nothing is averaged yet: the last step's
            loss = float(trainer.last.losses.mean())
        if trainer.logged("val_loss") is not None:
            from ddpm_lib.runs.verdict.notes import row_notes

            told = ("val_loss", "sample_copies_p")
            row = {name: trainer.logged(name) for name in told}
            self._validations.append({"step": trainer.step, **row})
            for note in row_notes(self._validations):
                trainer.note(note)
        cells = {
            "step": f"{trainer.step:,}",
            "epoch": f"{trainer.images_seen / len(trainer.dataset):.1f}",
            "loss": number(loss),
            "val ± error": with_error(trainer.logged("val_loss"), trainer.logged("val_loss_error")),
            "gap ± error": with_error(*gap_of(trainer.logged), sign="+"),
            "img/s": three_digits(images / max(seconds, 1e-9)),
            "left": duration((trainer.until - trainer.step) * whole / max(steps, 1)),
        }
        return table_row(cells, ", ".join(trainer.notes()))


def gap_of(logged: Callable[[str], Any]) -> tuple[float | None, float | None]:
    """Return the gap that is over-fitting, and its error: without what the two sets differ by
    anyway, where that could be told.

    Args:
        logged: From the name of a metric to its value, or None.
    """
    name = "val_gap" if logged("val_gap_adjusted") is None else "val_gap_adjusted"
    return logged(name), logged(f"{name}_error")


def header() -> str:
    """Return the line above the rows."""
    return table_row({name: name for name in COLUMNS}, "note")


def table_row(cells: dict[str, str], note: str) -> str:
    """Return one row, right-aligned by column, with the note at its end."""
    return " ".join(f"{cells[name]:>{width}}" for name, width in COLUMNS.items()).rstrip() + (
        f"  {note}" if note else ""
    )


def number(value: float | None, sign: str = "-") -> str:
    """Write a loss in at most nine characters; nothing for None.

    >>> number(0.04512), number(12.3), number(4.5e-06), number(0.0021, "+"), number(None)
    ('0.0451', '12.3000', '4.50e-06', '+0.0021', '')
    """
    if value is None:
        return ""
    small = value != 0 and not 1e-4 <= abs(value) < 1e3
    return f"{value:{sign}.2e}" if small else f"{value:{sign}.4f}"


def with_error(value: float | None, error: float | None, sign: str = "-") -> str:
    """Write a value with its standard error, as `0.0479 ± 0.0072`; nothing for None."""
    if value is None:
        return ""
    return f"{number(value, sign)} ± " + (
        number(error) if error is not None and math.isfinite(error) else "?"
    )


def three_digits(rate: float) -> str:
    """Write a rate with three digits or all of a whole number.

    >>> three_digits(0.0312), three_digits(7.04), three_digits(31.2), three_digits(12345.6)
    ('0.031', '7.0', '31', '12,346')
    """
    return f"{rate:.3f}" if rate < 1 else f"{rate:.1f}" if rate < 10 else f"{rate:,.0f}"


class ProgressBar(Callback):
    """A bar on the main process with loss, images/s and the time left, where a bar can be seen."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._start = (0.0, 0)
        self._shown = 0.0
        self._smooth: float | None = None

    def on_train_start(self, trainer: TrainingView) -> None:
        """Open the bar at the current step."""
        self._start = (time.monotonic(), trainer.images_seen)
        if trainer.is_main and bar_style() != "lines":
            self._bar = bar(
                total=trainer.until,
                initial=trainer.step,
                leave=True,
                dynamic_ncols=True,
                smoothing=0.05,
                bar_format=(
                    "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
                ),
            )

    def on_step_end(self, trainer: TrainingView) -> None:
        """Advance; read the loss where that costs nothing (CPU) or where it is read anyway (each
        logged line).
        """
        if self._bar is None:
            return
        assert trainer.last is not None
        self._bar.update(1)
        if trainer.device.type == "cpu":
            loss = float(trainer.last.losses.mean())
            self._smooth = loss if self._smooth is None else 0.95 * self._smooth + 0.05 * loss
        elif "loss" in trainer.metrics:
            self._smooth = trainer.metrics["loss"]
        now = time.monotonic()
        if self._smooth is not None and now - self._shown > 0.25:
            rate = (trainer.images_seen - self._start[1]) / max(now - self._start[0], 1e-9)
            val = (
                f", val {trainer.metrics['val_loss']:.4f}" if "val_loss" in trainer.metrics else ""
            )
            self._bar.set_postfix_str(
                f"loss {self._smooth:.4f}{val}, {rate:,.0f} images/s", refresh=False
            )
            self._shown = now

    def close(self) -> None:
        """Close the bar, also when training ends in an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
