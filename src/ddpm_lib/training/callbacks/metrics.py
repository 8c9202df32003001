"""Averages of the loss, by quarter of t, and of the gradient norm."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training.callbacks.base import Callback, TrainingView


class MetricLogger(Callback):
    """Average the loss, also by quarter of t, and the gradient norm; log them every `log_every`
    steps.

    Sums stay on the device in float64 where it has that, so that nothing waits for the device
    between two lines. The window is part of the checkpoint: a resumed run writes the same lines.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._restored: list[float] | None = None
        self._clock = (0.0, 0)
        self._ranks = Processes()

    def on_train_start(self, trainer: TrainingView) -> None:
        """Start the window, from the checkpoint's sums where there are some; a second call of
        `train` continues it.
        """
        self._ranks = trainer.ranks
        if self._sums is None:
            start = self._restored if self._restored and trainer.is_main else [0.0] * 10
            self._sums = torch.tensor(start, dtype=trainer.sum_dtype, device=trainer.device)
        self._clock = (time.monotonic(), trainer.images_seen)

    def on_step_end(self, trainer: TrainingView) -> None:
        """Add this step; write a line when the window is full."""
        assert self._sums is not None
        assert trainer.last is not None
        losses, levels = trainer.last.losses.to(self._sums.dtype), trainer.last.levels
        quarter = ((levels - 1) * 4 // trainer.diffusion.timesteps).long().clamp(0, 3)
        quarter = to_device(quarter, losses.device)
        # 0-3 loss sums by quarter, 4-7 counts by quarter, 8 gradient norms, 9 steps
        self._sums.index_add_(0, quarter, losses)
        self._sums.index_add_(0, quarter + 4, torch.ones_like(losses))
        if trainer.is_main:
            self._sums[8] += trainer.last.grad_norm.to(self._sums)
            self._sums[9] += 1
        if (
            trainer.step % trainer.config.cadences.log_every == 0
            or trainer.step == trainer.config.max_steps
        ):
            self._write(trainer)

    def _write(self, trainer: TrainingView) -> None:
        assert self._sums is not None
        assert trainer.last is not None
        sums = trainer.sum_over_ranks(self._sums).tolist()
        self._sums.zero_()
        quarters = {
            f"loss_q{i + 1}": sums[i] / sums[4 + i] if sums[4 + i] else float("nan")
            for i in range(4)
        }
        now = time.monotonic()
        since, images = self._clock
        self._clock = (now, trainer.images_seen)
        trainer.log(
            {
                "loss": sum(sums[:4]) / sum(sums[4:8]),
                **quarters,
                "grad_norm": sums[8] / sums[9],
                "learning_rate": trainer.last.learning_rate,
                "images_per_second": (trainer.images_seen - images) / max(now - since, 1e-9),
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the window, summed over the ranks."""
        return {} if self._sums is None else {"sums": self._ranks.sum(self._sums).tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the window.

        Raises:
            ValueError: If it is none.
        """
        sums = state.get("sums")
        if sums is not None and (
            len(sums) != 10 or not all(isinstance(v, (int, float)) for v in sums)
        ):
            raise ValueError("sums must be 10 numbers")
        self._sums, self._restored = None, sums
