"""Snapshots of post-hoc averages."""

from __future__ import annotations

from ddpm_lib.runs.snapshots import snapshot_paths, write_snapshot
from ddpm_lib.training.callbacks.base import Callback, TrainingView


class PostHocSnapshots(Callback):
    """Write the averages every `every` steps into the run directory, one file each, for good."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_start(self, trainer: TrainingView) -> None:
        """Remove the snapshots after the step that the run goes on from: it will write them
        again.
        """
        if trainer.is_main:
            for step, path in snapshot_paths(trainer.output_dir):
                if step > trainer.step:
                    path.unlink()

    def on_step_end(self, trainer: TrainingView) -> None:
        """Write one when it is time."""
        if trainer.is_main and trainer.step % self.every == 0:
            with trainer.tolerate_write_errors(f"The post-hoc snapshot of step {trainer.step}"):
                posthoc = trainer.posthoc
                write_snapshot(
                    trainer.output_dir, trainer.step, posthoc.sigma_rels, posthoc.tensors()
                )
