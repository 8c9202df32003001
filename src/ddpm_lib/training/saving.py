"""When and how a run is saved: at once or beside the training, never two at a time, and what a refusing disk means."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.runs import checkpoint as files
from ddpm_lib.runs.weights import optimizer_tensors

if TYPE_CHECKING:
    from ddpm_lib.training.trainer import Trainer

Tensors = dict[str, dict[str, Tensor]]


class Saver:
    """Writes checkpoints on the main process; every method is to be called on every rank.

    With `asynchronous`, training waits only for a copy of the tensors in RAM; a thread writes them. The next save, a roll-back
    and the end of training wait for that thread first, so that there are never two.

    Args:
        asynchronous: Whether to write in a thread.
    """

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.seconds = 0.0
        self._step: int | None = None
        self._thread: threading.Thread | None = None
        self._outcome: files.SavedCheckpoint | Exception | None = None

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of the present step, or begin to."""
        from ddpm_lib.training.resume import run_state

        self.settle(trainer)
        state = run_state(trainer).to_json()  # callbacks may need all ranks for their state
        self._step = trainer.step
        trainer.on_main(lambda: self._begin(trainer, state))
        if not self.asynchronous:
            self.settle(trainer)

    def settle(self, trainer: Trainer) -> None:
        """Wait for the checkpoint on its way, if any; say how it went, and set `trainer.last_checkpoint`."""
        step, self._step = self._step, None
        if step is None:
            return
        saved = trainer.on_main(self._result)
        folder = trainer.output_dir / "checkpoints"
        if isinstance(saved, OSError):
            last = trainer.last_checkpoint
            left = f"The last good checkpoint is {last.name}" if last is not None else "There is no checkpoint yet"
            trainer.say(f"The checkpoint of step {step} could not be written to {folder}: {saved}. {left}.")
            return
        trainer.last_checkpoint, self.seconds = saved.path, saved.seconds
        beside = " beside the training" if self.asynchronous else ""
        trainer.say(f"Saved {saved.path.name}: {saved.megabytes:.1f} MiB in {saved.seconds:.2f} s{beside}.")
        keep = {step for callback in trainer.callbacks for step in callback.keeps()}
        config = trainer.config
        if trainer.is_main:
            with trainer.going_on("The removal of old checkpoints"):
                files.prune(folder, step, config.keep_last, config.keep_every, keep)

    def close(self) -> None:
        """Let a thread that writes finish; asks no other rank."""
        if self._thread is not None:
            self._thread.join()

    def _begin(self, trainer: Trainer, state: dict[str, Any]) -> None:
        tensors = run_tensors(trainer, copy=self.asynchronous)
        folder, step = trainer.output_dir / "checkpoints", trainer.step
        self._outcome = None
        try:
            trainer.records.flush()
        except OSError as error:
            self._outcome = error
            return

        def write() -> None:
            try:
                self._outcome = files.save_checkpoint(folder, step, tensors, state)
            except Exception as error:
                self._outcome = error

        if self.asynchronous:
            self._thread = threading.Thread(target=write, name="ddpm_lib-checkpoint")
            self._thread.start()
        else:
            write()

    def _result(self) -> files.SavedCheckpoint | OSError:
        self.close()
        self._thread, outcome = None, self._outcome
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
            raise outcome
        assert isinstance(outcome, (files.SavedCheckpoint, OSError))
        return outcome


def run_tensors(trainer: Trainer, copy: bool = False) -> Tensors:
    """Return the tensors of a checkpoint by file stem and name.

    Args:
        trainer: The run.
        copy: Whether to return copies in RAM that training does not change any more.
    """
    tensors: Tensors = {"model": trainer.diffusion.model.state_dict()}
    tensors["optimizer"] = optimizer_tensors(trainer.optimizer, trainer.diffusion)
    if trainer.ema is not None:
        tensors["ema"] = trainer.ema.tensors()
    if trainer.posthoc.sigma_rels:
        tensors["posthoc"] = trainer.posthoc.tensors()
    if trainer.diffusion.uncertainty is not None:
        tensors["uncertainty"] = trainer.diffusion.uncertainty.state_dict()
    if not copy:
        return tensors
    return {stem: {k: v.detach().to("cpu", copy=True) for k, v in group.items()} for stem, group in tensors.items()}


def checkpoint_bytes(trainer: Trainer) -> int:
    """Return the size of a checkpoint on disk; before the first step, too, when there are no moments yet."""
    tensors = run_tensors(trainer)
    if not trainer.optimizer.state:
        parameters = {k: p for k, p in trainer.diffusion.named_parameters() if p.requires_grad}
        tensors["optimizer"] = {f"{name}/{k}": p for k, p in parameters.items() for name in ("exp_avg", "exp_avg_sq")}
    every = [(k, v) for group in tensors.values() for k, v in group.items()]
    # An entry of a safetensors header is its name and about 70 characters on type, shape and place.
    return sum(v.numel() * v.element_size() + len(k) + 70 for k, v in every) + 8 * 1024


def check_space(trainer: Trainer) -> None:
    """Compare the free space of the run's file system with the checkpoints to come; a quota cannot be seen from here.

    Raises:
        ConfigError: If not even one checkpoint fits.
    """
    size = checkpoint_bytes(trainer)
    free = shutil.disk_usage(trainer.output_dir).free
    there = len(files.list_checkpoints(trainer.output_dir / "checkpoints"))
    config = trainer.config
    more = max(1, config.keep_last + 1 - there)  # a new one is complete before an old one goes
    numbers = f"A checkpoint needs about {_mib(size)} MiB and {trainer.output_dir} has {_mib(free)} MiB free"
    if free < size:
        raise ConfigError(
            f"{numbers}: not one fits. Free space, or choose another {option('output_dir')} on a larger disk."
        )
    if free < more * size:
        trainer.say(f"{numbers}, too little for keep_last={config.keep_last}. Free space, or set keep_last=2.")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}" if size >= 100 * 2**20 else f"{size / 2**20:.2f}"
