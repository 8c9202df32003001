"""Losses and gradients that are not finite: kept out of the weights, and explained.

They are caught on the device, without waiting for it: the optimizer leaves the weights as they
were, and a counter is read where metrics are read anyway. Every random number is a function of the
step, so the failed step can then be done again to find out which images and parameters were at
fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import DivergedError
from ddpm_lib.core.spelling import option
from ddpm_lib.runs.counters import Progress
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training.batches import BatchPlan
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.learner import Learner
from ddpm_lib.training.randomness import DataOrder
from ddpm_lib.training.recovery import RollBack
from ddpm_lib.training.step import ForwardPass

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset


def advice_against_divergence(config: TrainingConfig, precision: str) -> str:
    """Word what helps against losses that are not finite, from the settings of a run.

    Args:
        config: The options.
        precision: "no", "bf16" or "fp16".
    """
    ways = [f"lower {option('learning_rate')} ({config.learning_rate:g} now)"]
    norm = config.max_grad_norm
    if norm is None:
        ways.append(f"set {option('max_grad_norm', 1.0)}")
    else:
        ways.append(f"lower {option('max_grad_norm')} ({norm:g} now)")
    if precision != "no":
        ways.append(f"use {option('mixed_precision', 'no')}")
    text = ", ".join(ways[:-1]) + f" or {ways[-1]}."
    return text[0].upper() + text[1:]


def check_loss_scale(scaler: Any, step: int, checkpoint: Path | None) -> None:
    """Notice that fp16's loss scale has fallen so low that every step overflows.

    Args:
        scaler: torch's GradScaler, None where there is none.
        step: Optimizer steps done.
        checkpoint: The newest checkpoint.

    Raises:
        DivergedError: Saying what to do.
    """
    scale = scaler.get_scale() if scaler is not None else 1.0
    if scale < 1.0:
        raise DivergedError(
            f"The loss scale of fp16 has fallen to {scale:g} by step {step}: gradients overflow at "
            f"every scale. Use {option('mixed_precision', 'bf16')} or 'no', or lower"
            f" {option('learning_rate')}. The last "
            f"checkpoint is {checkpoint}."
        )


@dataclass(frozen=True)
class StepReplay:
    """Does a step of the past again, with the weights as they are now.

    Args:
        forward: The forward pass of training.
        learner: The weights and their gradients.
        dataset: The training images.
        plan: How the batch is shared.
        seed: Names the order of the images.
        progress: Where the run is now.
        processes: Of the run.
    """

    forward: ForwardPass
    learner: Learner
    dataset: ImageDataset
    plan: BatchPlan
    seed: int
    progress: Progress
    processes: Processes

    def first_slot(self, step: int) -> int:
        """Return the images used before a step (counted from 1)."""
        back = self.progress.step - step + 1
        return self.progress.images_seen - back * self.plan.batch_size

    def image_names(self, step: int) -> list[str]:
        """Return the names of the images of a step's global batch."""
        slot = self.first_slot(step)
        order = DataOrder(len(self.dataset), self.seed)
        indices = order.indices(slot, slot + self.plan.batch_size)
        return [self.dataset.names[int(i)] for i in indices]

    def diagnose(self, step: int) -> str:
        """Do a step again on every rank and word what is not finite in it; a collective."""
        named = self.learner.diffusion.named_parameters()
        broken = [name for name, p in named if not bool(torch.isfinite(p).all())]
        if broken:
            first = f"the first is {broken[0]}"
            return f"{len(broken)} parameters hold NaN or infinity themselves, {first}"
        found = [line for line in self.processes.all_objects(self._replay(step)) if line]
        return "; ".join(found) or "it was finite when done again, which points to the hardware"

    def _replay(self, step: int) -> str:
        """Do this rank's part; name the images and parameters that are not finite."""
        slot, diffusion = self.first_slot(step), self.learner.diffusion
        order = DataOrder(len(self.dataset), self.seed)
        images: list[str] = []
        try:
            for rows in self.plan.rows():
                indices = order.indices(slot + rows.start, slot + rows.stop).tolist()
                batch = self.dataset.batch(indices)
                losses, levels = self.forward(diffusion, batch, rows, step - 1, slot)
                bad_rows = (~torch.isfinite(losses)).nonzero().flatten().tolist()
                names = self.dataset.names
                images += [f"{names[indices[k]]} at t = {int(levels[k])}" for k in bad_rows]
                losses.mean().backward()
            named = list(diffusion.named_parameters())
            with_grad = [(name, p.grad) for name, p in named if p.grad is not None]
            bad = [name for name, grad in with_grad if not bool(torch.isfinite(grad).all())]
        finally:
            self.learner.optimizer.zero_grad(set_to_none=True)
        more = f" and {len(images) - 5} more" if len(images) > 5 else ""
        parts = [f"images {', '.join(images[:5])}{more}"] if images else []
        if bad:
            parts.append(f"gradients of {len(bad)} of {len(named)} parameters, the first {bad[0]}")
        return "; ".join(parts)


class NonFiniteGuard:
    """Keeps steps whose loss or gradient is not finite out of the weights, and says which.

    `stop` and `rollback` let no update through after such a step, so that the weights are still
    those before it when it is noticed. `skip` leaves out that update only. With fp16 the loss
    scaler skips steps; there the losses and the scale are watched.

    Args:
        policy: "stop", "skip" or "rollback".
        most: Steps to skip, or roll-backs to make, before giving up.
    """

    def __init__(self, policy: str, most: int) -> None:
        self.policy, self.most = policy, most
        self.rollbacks = 0
        self.reset(torch.device("cpu"))

    def reset(self, device: torch.device) -> None:
        """Forget the bad steps; called before training starts, and after a roll-back."""
        self._reported = 0
        self._closed = torch.zeros((), dtype=torch.bool, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._steps = torch.zeros(self.most + 2, dtype=torch.int64, device=device)

    def update(self, optimizer: Any, scaler: Any, losses: Tensor, norm: Tensor, step: int) -> None:
        """Update the weights, unless the gradient is not finite; nothing waits for the device.

        Args:
            optimizer: accelerate's wrapper of an optimizer.
            scaler: torch's GradScaler, None where there is none.
            losses: Losses of this rank's images.
            norm: Norm of the gradient, the same on every rank.
            step: Number of the step that is being done, counted from 1.
        """
        shut = torch.zeros_like(self._closed) if scaler is not None else ~torch.isfinite(norm)
        shut = self.verdict(losses, shut, step)
        if scaler is None:
            inner = optimizer.optimizer
            if all(group.get("fused") for group in inner.param_groups):
                inner.found_inf = shut.float()  # the fused kernels read it on the device
            elif bool(shut):
                return
            inner.step()  # accelerate's wrapper looks for a package on disk each time
        else:
            optimizer.step()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a verdict is written to, made anew by `reset`."""
        return self._closed, self._count, self._steps

    def verdict(self, losses: Tensor, shut: Tensor, step: int | Tensor) -> Tensor:
        """Note a step that is not finite, and return whether its update is left out, on the device;
        every change is made in place, so that a graph can hold it.

        Args:
            losses: Of this rank's images, (b,).
            shut: Whether the gradient is not finite, bool ().
            step: Number of the step, counted from 1; int64 () on the device where a graph reads it.
        """
        bad = shut | ~torch.isfinite(losses.sum())
        # Not as an index: that would be read by the CPU.
        place = self._count.clamp(max=self.most + 1).view(1)
        self._steps.scatter_(0, place, torch.where(bad, step, self._steps.gather(0, place)))
        self._count += bad
        if self.policy != "skip":
            self._closed |= shut
            return self._closed
        return shut

    def bad_steps(self, processes: Processes) -> list[int]:
        """Return the steps since `reset` that were not finite on some rank; a collective."""
        summable = torch.float32 if self._count.device.type == "mps" else torch.float64
        if not float(processes.sum(self._count.to(summable))):
            return []
        own = self._steps[: min(int(self._count), self.most + 1)].tolist()
        return sorted({step for steps in processes.all_objects(own) for step in steps})

    def act(
        self,
        steps: list[int],
        replay: StepReplay,
        advice: str,
        checkpoint: Path | None,
        log: Callable[[str], None],
    ) -> RollBack | None:
        """Do what the policy says about bad steps, the same on every rank; a collective.

        Args:
            steps: What `bad_steps` returned; not empty.
            replay: Finds out what was at fault.
            advice: What helps against it.
            checkpoint: The newest checkpoint.
            log: Gets lines about updates that were left out.

        Returns:
            Where to go on from, or None to go on as if nothing had happened.

        Raises:
            DivergedError: Naming the step, the images and the parameters, when training is to end.
        """
        where = "There is no checkpoint yet"
        if checkpoint is not None:
            where = f"The last good checkpoint is {checkpoint}"
        if self.policy == "skip":
            self._skip(steps, replay, where, advice, log)
            return None
        first = steps[0]
        what = f"The loss or gradient is not finite at step {first} ({replay.diagnose(first)})"
        message = f"{what}. {where}."
        if self.policy == "stop":
            again = option("on_nonfinite", "rollback")
            way = f" {again} goes on from there with other images." if checkpoint else ""
            raise DivergedError(f"{message} {advice}{way}")
        if checkpoint is None or self.rollbacks >= self.most:
            reason = (
                "so there is nothing to roll back to"
                if checkpoint is None
                else f"and it was rolled back {self.most} times"
            )
            raise DivergedError(f"{message[:-1]}, {reason}. {advice}")
        self.rollbacks += 1
        return RollBack(first, replay.first_slot(first) + replay.plan.batch_size, message)

    def _skip(
        self,
        steps: list[int],
        replay: StepReplay,
        where: str,
        advice: str,
        log: Callable[[str], None],
    ) -> None:
        if len(steps) > self.most:
            listed = ", ".join(map(str, steps[: self.most + 1]))
            raise DivergedError(
                f"The loss or gradient is not finite at steps {listed}: more than "
                f"{option('max_nonfinite', self.most)}. {where}. {advice}"
            )
        for step in steps[self._reported :]:
            names = replay.image_names(step)
            more = ", …" if len(names) > 8 else ""
            log(
                f"The loss or gradient was not finite at step {step}: its update was left out "
                f"({steps.index(step) + 1} of at most {self.most}). Images of its batch: "
                f"{', '.join(names[:8])}{more}."
            )
        self._reported = len(steps)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the roll-backs made."""
        return {"rollbacks": self.rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it; rolling back itself does not forget how often that was done."""
        self.rollbacks = max(self.rollbacks, int(state.get("rollbacks", 0)))
