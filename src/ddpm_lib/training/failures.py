"""When training fails: losses that are not finite, a GPU without memory, a process that was lost.

A loss or gradient that is not finite is caught on the device, without waiting for it: the optimizer leaves the weights as they
were, and a counter is read where metrics are read anyway. Every random number is a function of the step, so the failed step
can then be done again to find out which images and which parameters were at fault.
"""

from __future__ import annotations

import contextlib
import gc
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import DivergedError, LostProcessError, OutOfMemoryError
from ddpm_lib.core.spelling import option
from ddpm_lib.runtime.memory import is_out_of_memory_error, memory_numbers
from ddpm_lib.training.randomness import DataOrder

if TYPE_CHECKING:
    from ddpm_lib.training.trainer import Trainer


def _advice(trainer: Trainer) -> str:
    """Word what helps against losses that are not finite, from the settings of this run."""
    config = trainer.config
    ways = [f"lower {option('learning_rate')} ({config.learning_rate:g} now)"]
    norm = config.max_grad_norm
    if norm is None:
        ways.append(f"set {option('max_grad_norm', 1.0)}")
    else:
        ways.append(f"lower {option('max_grad_norm')} ({norm:g} now)")
    if trainer.precision != "no":
        ways.append(f"use {option('mixed_precision', 'no')}")
    text = ", ".join(ways[:-1]) + f" or {ways[-1]}."
    return text[0].upper() + text[1:]


class StartOver(Exception, ABC):
    """Training goes on from another state; every rank raises it after the same step."""

    def apply(self, trainer: Trainer) -> None:
        """Bring the trainer into that state."""
        self.__context__ = None  # its traceback would keep the tensors of the failed step alive
        for callback in trainer.callbacks:
            callback.close()
        self.change(trainer)

    @abstractmethod
    def change(self, trainer: Trainer) -> None:
        """Do what is particular to the failure."""


@dataclass
class RollBack(StartOver):
    """Back to the last good checkpoint, with the images that come after those of the failed step.

    Attributes:
        images_seen: Slots used up to and with the failed step.
        message: What happened.
    """

    images_seen: int
    message: str

    def change(self, trainer: Trainer) -> None:
        """Load the checkpoint, move on in the data and cut the records back."""
        from ddpm_lib.runs.checkpoint import newest_complete
        from ddpm_lib.training.resume import restore

        trainer.saver.settle(trainer)
        folder = trainer.output_dir / "checkpoints"
        every = trainer.config.save_every
        # One that the uninterrupted run has too, and not one of an interruption, so that both go on from the same step.
        regular = trainer.on_main(lambda: newest_complete(folder, trainer.say, lambda step: step % every == 0))
        trainer.last_checkpoint = regular or trainer.on_main(lambda: newest_complete(folder, trainer.say))
        if trainer.last_checkpoint is None:
            nothing = "No complete checkpoint is left to roll back to."
            raise DivergedError(f"{self.message} {nothing} {_advice(trainer)}")
        restore(trainer, trainer.last_checkpoint)
        trainer.images_seen = self.images_seen
        trainer.metrics.clear()
        note = trainer.on_main(lambda: trainer.records.cut_back(trainer.step))
        if note:
            trainer.say(note)
        trainer.guard.reset(trainer.device)
        trainer.say(
            f"{self.message} Rolled back to {trainer.last_checkpoint.name} and going on with other images "
            f"({trainer.guard.rollbacks} of at most {trainer.config.max_nonfinite} times)."
        )


@dataclass
class SmallerMicroBatches(StartOver):
    """The same batch in more, smaller forward passes.

    Attributes:
        accumulation: Forward passes per step from now on.
        message: What happened.
    """

    accumulation: int
    message: str

    def change(self, trainer: Trainer) -> None:
        """Let go of memory and share the batch anew."""
        trainer.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if trainer.device.type == "cuda":
            torch.cuda.empty_cache()
        trainer.plan = replace(trainer.plan, accumulation=self.accumulation)
        trainer.say(
            f"{self.message} Going on with {trainer.plan.micro} images per forward pass: the batch stays the same. "
            f"--accumulation-steps {self.accumulation} starts so."
        )


class NonFiniteGuard:
    """Keeps steps whose loss or gradient is not finite out of the weights, and says which they were.

    `stop` and `rollback` let no update through after such a step, so that the weights are still those before it when it is
    noticed. `skip` leaves out that update only. With fp16 the loss scaler skips steps; there the losses and the scale are
    watched.

    Args:
        policy: "stop", "skip" or "rollback".
        most: Steps to skip, or roll-backs to make, before giving up.
    """

    def __init__(self, policy: str, most: int) -> None:
        self.policy, self.most = policy, most
        self.rollbacks = 0
        self._told = 0

    def reset(self, device: torch.device) -> None:
        """Forget the bad steps; called before training starts."""
        self._told = 0
        self._closed = torch.zeros((), dtype=torch.bool, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._steps = torch.zeros(self.most + 2, dtype=torch.int64, device=device)

    def step(self, trainer: Trainer, losses: Tensor, norm: Tensor) -> None:
        """Update the weights, unless the gradient is not finite; nothing waits for the device.

        Args:
            trainer: Gives the optimizer, and the number of the step that is being done: `trainer.step` + 1.
            losses: Losses of this rank's images.
            norm: Norm of the gradient, the same on every rank.
        """
        scaler, optimizer = trainer.accelerator.scaler, trainer.optimizer
        shut = torch.zeros_like(self._closed) if scaler is not None else ~torch.isfinite(norm)
        bad = shut | ~torch.isfinite(losses.sum())
        place = self._count.clamp(max=self.most + 1).view(1)  # not as an index: that would be read by the CPU
        self._steps.scatter_(0, place, torch.where(bad, trainer.step + 1, self._steps.gather(0, place)))
        self._count += bad
        if self.policy != "skip":
            self._closed |= shut
            shut = self._closed
        if scaler is None:
            inner = optimizer.optimizer
            if all(group.get("fused") for group in inner.param_groups):
                inner.found_inf = shut.float()  # the fused kernels read it on the device
            elif bool(shut):
                return
        optimizer.step()

    def look(self, trainer: Trainer) -> None:
        """Read the counter, the same on every rank, and act as the policy says; to be called on every rank.

        Raises:
            DivergedError: Naming the step, the images and the parameters, when training is to end.
            RollBack: When training is to go on from the last good checkpoint.
        """
        if not float(trainer.sum_over_ranks(self._count.to(trainer.sum_dtype))):
            self._watch_scale(trainer)
            return
        own = self._steps[: min(int(self._count), self.most + 1)].tolist()
        steps = sorted({step for steps in trainer.ranks.all_objects(own) for step in steps})
        good = trainer.last_checkpoint
        where = f"The last good checkpoint is {good}" if good else "There is no checkpoint yet"
        if self.policy == "skip":
            self._skip(trainer, steps, where)
            return
        message = f"The loss or gradient is not finite at step {steps[0]} ({self._find(trainer, steps[0])}). {where}."
        if self.policy == "stop":
            again = option("on_nonfinite", "rollback")
            there = f" {again} goes on from there with other images." if good else ""
            raise DivergedError(f"{message} {_advice(trainer)}{there}")
        if good is None or self.rollbacks >= self.most:
            reason = (
                "so there is nothing to roll back to" if good is None else f"and it was rolled back {self.most} times"
            )
            raise DivergedError(f"{message[:-1]}, {reason}. {_advice(trainer)}")
        self.rollbacks += 1
        raise RollBack(_slot_of(trainer, steps[0]) + trainer.config.images_per_step, message)

    def _skip(self, trainer: Trainer, steps: list[int], where: str) -> None:
        if len(steps) > self.most:
            listed = ", ".join(map(str, steps[: self.most + 1]))
            raise DivergedError(
                f"The loss or gradient is not finite at steps {listed}: more than max_nonfinite={self.most}. "
                f"{where}. {_advice(trainer)}"
            )
        for step in steps[self._told :]:
            names = ", ".join(_images_of(trainer, step, range(trainer.config.images_per_step))[:8])
            trainer.say(
                f"The loss or gradient was not finite at step {step}: its update was left out ({steps.index(step) + 1} of at "
                f"most {self.most}). Images of its batch: {names}{', …' if trainer.config.images_per_step > 8 else ''}."
            )
        self._told = len(steps)

    def _watch_scale(self, trainer: Trainer) -> None:
        scaler = trainer.accelerator.scaler
        scale = scaler.get_scale() if scaler is not None else 1.0
        if scale < 1.0:
            raise DivergedError(
                f"The loss scale of fp16 has fallen to {scale:g} by step {trainer.step}: gradients overflow at every scale. "
                f"Use mixed_precision='bf16' or 'no', or lower learning_rate. The last checkpoint is {trainer.last_checkpoint}."
            )

    def _find(self, trainer: Trainer, step: int) -> str:
        """Do the step again on every rank and say what is not finite in it."""
        weights = [name for name, p in trainer.diffusion.named_parameters() if not bool(torch.isfinite(p).all())]
        if weights:
            return f"{len(weights)} parameters hold NaN or infinity themselves, the first is {weights[0]}"
        found = [line for line in trainer.ranks.all_objects(_replay(trainer, step)) if line]
        return "; ".join(found) or "it was finite when done again, which points to the hardware"

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the roll-backs made."""
        return {"rollbacks": self.rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it; rolling back itself does not forget how often that was done."""
        self.rollbacks = max(self.rollbacks, int(state.get("rollbacks", 0)))


def _images_of(trainer: Trainer, step: int, rows: range) -> list[str]:
    """Names of the images in some rows of a step's batch."""
    slot = _slot_of(trainer, step)
    order = DataOrder(len(trainer.dataset), trainer.config.seed)
    names = trainer.dataset.names
    return [names[int(i)] for i in order.indices(slot + rows.start, slot + rows.stop)]


def _slot_of(trainer: Trainer, step: int) -> int:
    return trainer.images_seen - (trainer.step - step + 1) * trainer.config.images_per_step


def _replay(trainer: Trainer, step: int) -> str:
    """Do this rank's part of a step again with the weights as they are; name images and parameters that are not finite."""
    slot = _slot_of(trainer, step)
    order = DataOrder(len(trainer.dataset), trainer.config.seed)
    images: list[str] = []
    try:
        for rows in trainer.plan.rows():
            indices = order.indices(slot + rows.start, slot + rows.stop).tolist()
            batch = trainer.dataset.batch(indices)
            losses, levels = trainer.forward_pass(trainer.diffusion, batch, rows, step - 1, slot)
            bad_rows = (~torch.isfinite(losses)).nonzero().flatten().tolist()
            images += [f"{trainer.dataset.names[indices[k]]} at t = {int(levels[k])}" for k in bad_rows]
            losses.mean().backward()
        named = list(trainer.diffusion.named_parameters())
        bad = [name for name, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    finally:
        trainer.optimizer.zero_grad(set_to_none=True)
    more = f" and {len(images) - 5} more" if len(images) > 5 else ""
    parts = [f"images {', '.join(images[:5])}{more}"] if images else []
    if bad:
        parts.append(f"gradients of {len(bad)} of {len(named)} parameters, the first {bad[0]}")
    return "; ".join(parts)


def answer_to_memory(trainer: Trainer, error: BaseException) -> StartOver | OutOfMemoryError:
    """Return smaller forward passes where one process can make them by itself, else an error with the numbers."""
    plan = trainer.plan
    numbers = memory_numbers(trainer.device)
    message = f"Out of memory with {plan.micro} images per forward pass at step {trainer.step + 1} ({numbers})."
    finer = [a for a in range(plan.accumulation + 1, plan.per_process + 1) if plan.per_process % a == 0]
    if finer and trainer.processes == 1:
        return SmallerMicroBatches(finer[0], message)
    if finer:
        remedy = f"Start again with --accumulation-steps {finer[0]}: the batch stays the same, and the run continues."
    else:
        remedy = (
            "One image per forward pass is the least: use a smaller network, patches, gradient checkpointing or bf16."
        )
    first = " ".join(str(error).split())[:300]
    return OutOfMemoryError(f"{message} {remedy} [{type(error).__name__}: {first}]")


@contextlib.contextmanager
def memory_answered(trainer: Trainer) -> Iterator[None]:
    """Turn an error of memory inside into `answer_to_memory`'s."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory_error(error):
            raise
        raise answer_to_memory(trainer, error) from None


@contextlib.contextmanager
def losses_explained(trainer: Trainer) -> Iterator[None]:
    """Turn errors that mean the loss of another process into one clear error, and note it in status.json.

    Raises:
        LostProcessError: Where another process is gone or silent.
    """
    try:
        yield
    except RuntimeError as error:
        lost = lost_process(error, trainer)
        if lost is None:
            raise
        trainer._status("lost", str(lost))
        raise lost from error


def lost_process(error: BaseException, trainer: Trainer) -> LostProcessError | None:
    """Return a clear error where one means that another process of the run is gone or silent, else None."""
    if trainer.processes == 1 or not isinstance(error, RuntimeError) or isinstance(error, LostProcessError):
        return None
    text = " ".join(str(error).split())
    named = isinstance(error, torch.distributed.DistError) or any(
        w in text.lower() for w in ("gloo", "nccl", "tcpstore")
    )
    if not named:
        return None
    hint = ""
    if "connectFullMesh" in text:
        hint = " On nodes with several networks name the right one: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME."
    limit = f"{trainer.config.process_timeout_minutes:g} minutes (process_timeout_minutes)"
    silent = any(w in text.lower() for w in ("timed out", "timeout"))
    what = f"has not answered for {limit}" if silent else "is gone"
    return LostProcessError(
        f"Another process of this run {what}; process {trainer.rank} of {trainer.processes} ends at step {trainer.step}.{hint} "
        f"Start the same command again: it continues from {trainer.last_checkpoint or 'the beginning'}. [{text[:300]}]"
    )
