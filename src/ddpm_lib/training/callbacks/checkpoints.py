"""When a checkpoint is asked for."""

from __future__ import annotations

from ddpm_lib.training.callbacks.base import Callback, TrainingView


class SaveCheckpoints(Callback):
    """Ask for a checkpoint every `save_every` steps."""

    def on_step_end(self, trainer: TrainingView) -> None:
        """Save when it is time."""
        if trainer.step % trainer.config.cadences.save_every == 0:
            trainer.save()
