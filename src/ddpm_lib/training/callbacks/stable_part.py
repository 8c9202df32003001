"""Keep the checkpoint from which a run with wsd can be extended."""

from __future__ import annotations

from typing import Any

from ddpm_lib.core.spelling import option
from ddpm_lib.training.callbacks.base import Callback, TrainingView
from ddpm_lib.training.optim import cooldown_start


class KeepStablePart(Callback):
    """Save where the cool-down begins, and keep that checkpoint: more steps go on from there."""

    def __init__(self) -> None:
        self.step: int | None = None

    def on_step_end(self, trainer: TrainingView) -> None:
        """Save at the last step of the full rate."""
        config = trainer.config
        if config.lr_schedule != "wsd":
            return
        if trainer.step == cooldown_start(config) < config.max_steps:
            self.step = trainer.step
            trainer.note("cool-down begins")
            trainer.save()

    def on_train_end(self, trainer: TrainingView) -> None:
        """Say how to extend the run."""
        if self.step is not None and trainer.step >= trainer.config.max_steps:
            more = option("max_steps", 2 * trainer.config.max_steps)
            trainer.say(
                f"The rate was cooled down from step {self.step:,} on. To extend the run from"
                f" there: {option('resume', str(self.step))} with {more}, say."
            )

    def keeps(self) -> set[int]:
        """Return the step before the cool-down."""
        return set() if self.step is None else {self.step}

    def state_dict(self) -> dict[str, Any]:
        """Return the step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it; a checkpoint from before this callback has none."""
        self.step = state.get("step")
