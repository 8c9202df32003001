"""Keeping the page of a run up to date while it trains, at less than a hundredth of its time."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path

from ddpm_lib.runs.report import write_report
from ddpm_lib.runs.report.writing import write_picture
from ddpm_lib.runs.run_status import written_word
from ddpm_lib.training.callbacks.base import Callback, TrainingView
from ddpm_lib.training.callbacks.samples import SampleGrid
from ddpm_lib.training.examples import low_res_of
from ddpm_lib.training.sheets_of_images import NearestImages, write_data_sheet

logger = logging.getLogger("ddpm_lib")

FEWEST_ROWS = 10
"""Fewer rows than this make no curve, and results.png is not drawn of them while a run trains."""


class Budget:
    """Lets something be done again when its last time cost less than a share of the time since.

    Args:
        share: Of the time.
        cost: Seconds that its first time is taken to cost.
        clock: Seconds, for tests.
    """

    def __init__(
        self, share: float, cost: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.share, self._clock = share, clock
        self._cost, self._ended = cost, clock()

    def allows(self) -> bool:
        """Say whether it may be done now."""
        return self._cost <= self.share * (self._clock() - self._ended)

    def spend(self, action: Callable[[], object]) -> None:
        """Do it and remember what it cost."""
        began = self._clock()
        try:
            action()
        finally:
            self._ended = self._clock()
            self._cost = self._ended - began


class RunReport(Callback):
    """Write report.html and results.png, and the sheets that they show, on the main process.

    Nothing of it enters the training: no random number is drawn, nothing is kept in checkpoints,
    and whatever fails is a warning. What was logged in a step stands in the files after it, so the
    page follows in the next one.

    Args:
        grids: Draws the samples whose nearest images are shown, None where none are drawn.
    """

    def __init__(self, grids: SampleGrid | None) -> None:
        self._grids, self._run = grids, Path()
        self._page, self._search, self._picture = Budget(0.003), Budget(0.002), Budget(0.002, 2.0)
        self._nearest: NearestImages | None = None
        self._due = self._open = False

    def on_train_start(self, trainer: TrainingView) -> None:
        """Write the sheet of training images, once for a run."""
        self._run, self._due = trainer.output_dir, False
        self._open = trainer.is_main
        if not trainer.is_main or not _are_pictures(trainer):
            return
        if not trainer.step or not (self._run / "report" / "data.json").is_file():
            self._careful("report/data.png", lambda: write_data_sheet(trainer.dataset, self._run))
        if low_res_of(trainer.diffusion) is None:
            self._nearest = NearestImages(trainer.dataset, trainer.held_out)

    def on_step_end(self, trainer: TrainingView) -> None:
        """Search the nearest images of a new grid; write the page of what was logged before."""
        if not trainer.is_main:
            return
        if self._due and self._page.allows():
            self._due = False
            self._page.spend(self._write_page)
            if self._picture.allows():
                self._picture.spend(self._write_picture)
        if trainer.logged("loss") is not None or trainer.logged("val_loss") is not None:
            self._due = True
        last = trainer.step >= trainer.config.max_steps
        if self._is_new_grid(trainer) and (last or self._search.allows()):
            self._due = True
            self._search.spend(lambda: self._write_nearest(trainer.step))

    def on_train_end(self, trainer: TrainingView) -> None:
        """Write the page as it stays."""
        if not trainer.is_main:
            return
        stopped = trainer.stop_reason
        by_itself = stopped is not None and bool(stopped.by)
        done = by_itself or trainer.step >= trainer.config.max_steps
        word = "finished" if done else "stopped"
        self._open = False
        known = {} if stopped is None else {"reason": stopped.text, "stopped_by": stopped.by}
        self._write_page(word, **known)
        self._write_picture()

    def close(self) -> None:
        """Say on the page that training failed, where it did."""
        if self._open and written_word(self._run) == "failed":
            self._write_page("failed")
        self._open, self._nearest = False, None

    def _is_new_grid(self, trainer: TrainingView) -> bool:
        return self._grids is not None and self._grids.drawn_at == trainer.step

    def _write_nearest(self, step: int) -> None:
        assert self._grids is not None
        samples, nearest = self._grids.samples, self._nearest
        if samples is not None and nearest is not None:
            self._careful("report/nearest.png", lambda: nearest.write(samples, step, self._run))

    def _write_page(self, word: str | None = None, **known: str) -> None:
        page = functools.partial(write_report, self._run, word=word, picture=False)
        self._careful("report.html", functools.partial(page, **known))

    def _write_picture(self) -> None:
        self._careful("results.png", lambda: write_picture(self._run, FEWEST_ROWS))

    def _careful(self, what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a page is not worth a run
            reason = str(error) or type(error).__name__
            logger.warning(
                "%s could not be written (%s). Training goes on.", self._run / what, reason
            )


def _are_pictures(trainer: TrainingView) -> bool:
    return len(trainer.dataset.image_size) == 2 and trainer.dataset.channels in (1, 3, 4)
