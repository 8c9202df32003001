"""When a checkpoint is asked for."""

from __future__ import annotations

from ddpm_lib.training.callbacks.base import Callback, TrainingView


class SaveCheckpoints(Callback):
    """Ask for a checkpoint every `every` steps."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(self, trainer: TrainingView) -> None:
        """Save when it is time."""
        if trainer.step % self.every == 0:
            trainer.save()
