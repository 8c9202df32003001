"""A run between its steps: it is checked, saved, and brought back after failures."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ddpm_lib.core.errors import CheckpointError, DivergedError
from ddpm_lib.runs.names import checkpoint_name
from ddpm_lib.training.nonfinite import StepReplay, advice_against_divergence, check_loss_scale
from ddpm_lib.training.prepared_run import PreparedRun
from ddpm_lib.training.recovery import Recovery, RollBack, Shrink

if TYPE_CHECKING:
    pass


class SavedRun(PreparedRun):
    """What a `Trainer` does when a checkpoint is due and when a step has failed; made like a
    `PreparedRun`.
    """

    def save(self) -> None:
        """Ask for a checkpoint after this step; to be called on every rank."""
        self._save_requested = True

    def _save_if_requested(self) -> RollBack | None:
        if not self._save_requested:
            return None
        self._save_requested = False
        if recovery := self._check_numbers():
            return recovery
        self.watchdog.mark(self.step, "saving")
        self.progress.read_clock()
        self._wait_for_save()
        state = self._run_state().to_json()  # callbacks may need all ranks for their state
        self.checkpoints.save(self.step, self.learner, state)
        if not self.config.save_async:
            self._wait_for_save()
        return None

    def _wait_for_save(self) -> None:
        keep = {step for callback in self.callbacks for step in callback.keeps()}
        self.last_checkpoint = self.checkpoints.wait(self.last_checkpoint, keep)

    def _save_at_end(self) -> RollBack | None:
        name = checkpoint_name(self.step)
        self._wait_for_save()
        if self.last_checkpoint is not None and self.last_checkpoint.name == name:
            return None
        self._save_requested = True
        if recovery := self._save_if_requested():
            return recovery
        self._wait_for_save()
        if self.last_checkpoint is None or self.last_checkpoint.name != name:
            raise CheckpointError(
                f"The last checkpoint (step {self.step}) could not be written. Free space in"
                f" {self.output_dir} and run again."
            )
        return None

    def _check_numbers(self) -> RollBack | None:
        """Do what `on_nonfinite` says about the losses since the last check; a collective."""
        steps = self.guard.bad_steps(self.ranks)
        if not steps:
            check_loss_scale(self.accelerator.scaler, self.step, self.last_checkpoint)
            return None
        seed, parts = self.config.seed, (self.forward_pass, self.learner, self.dataset, self.plan)
        replay = StepReplay(*parts, seed, self.progress, self.ranks)
        advice = advice_against_divergence(self.config, self.precision)
        return self.guard.act(steps, replay, advice, self.last_checkpoint, self.say)

    def _recover(self, recovery: Recovery) -> None:
        """Bring the run into the state to go on from; on every rank."""
        for callback in self.callbacks:
            callback.close()
        if isinstance(recovery, Shrink):
            self._shrink(recovery)
        else:
            self._roll_back(recovery)

    def _roll_back(self, back: RollBack) -> None:
        """Load the checkpoint, move on in the data and cut the records back."""
        self._wait_for_save()
        newest = self.checkpoints.newest_to_roll_back_to(self.config.cadences.save_every)
        if newest is None:
            self.last_checkpoint = None
            nothing = "No complete checkpoint is left to roll back to."
            advice = advice_against_divergence(self.config, self.precision)
            raise DivergedError(f"{back.message} {nothing} {advice}")
        self._restore(newest)
        self.progress.images_seen = back.images_seen
        self.metrics.clear()
        note = self.on_main(lambda: self.run_log.records.cut_back(self.step))
        if note:
            self.say(note)
        self.guard.reset(self.device)
        self.say(
            f"{back.message} Rolled back to {newest.path.name} and going on with other images "
            f"({self.guard.rollbacks} of at most {self.config.max_nonfinite} times)."
        )

    def _shrink(self, shrink: Shrink) -> None:
        """Let go of memory and share the batch anew."""
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        plan = self._plan = replace(self.plan, accumulation=shrink.accumulation)
        self.say(
            f"{shrink.message} Going on with {plan.micro} images per forward pass: the batch stays "
            f"the same. --accumulation-steps {shrink.accumulation} starts so."
        )
