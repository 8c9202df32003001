"""Forward and backward pass of a micro-batch: operation by operation, or as one recorded graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.process.split_loss import DeviceBatch, device_part, host_part, why_not_split
from ddpm_lib.runtime.cuda_graphs import RECORDERS, Recorder
from ddpm_lib.runtime.memory import is_out_of_memory_error
from ddpm_lib.training.step import ForwardPass

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.training.fine_tuning.pull_to_start import PullToStart
    from ddpm_lib.training.low_weights import LowWeights


@dataclass(frozen=True)
class MicroBatch:
    """A part of a step's global batch.

    Attributes:
        batch: Its images, with their labels, on the CPU.
        rows: Of the global batch.
        step: Optimizer steps done before.
        slot: Images used by all processes before this step.
        index: Which of the step's micro-batches of this process, counted from 0.
        count: How many there are.
    """

    batch: dict[str, Any]
    rows: range
    step: int
    slot: int
    index: int
    count: int


class EagerPass:
    """Does one operation after the other; the gradient of the mean loss is added to that of the
    step's micro-batches before it, and to nothing that somebody else has left.

    Args:
        network: The process as accelerate prepared it.
        forward: From images to losses.
        accelerator: Does the backward pass.
        pull: The pull to the weights at the first step, if there is one.
        low: The weights in bfloat16, where they are kept.
    """

    def __init__(
        self,
        network: nn.Module,
        forward: ForwardPass,
        accelerator: Accelerator,
        pull: PullToStart | None,
        low: LowWeights | None = None,
    ) -> None:
        self.network, self.forward, self.accelerator = network, forward, accelerator
        self.pull, self.low = pull, low
        self._weights = list(network.parameters())

    def __call__(self, part: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the losses (b,) on the device and the levels t (b,) on the CPU."""
        where = (part.batch, part.rows, part.step, part.slot)
        network: Callable[..., Any] = self.network
        if part.index == 0:  # of a trial before the training, or of a callback
            for weight in self._weights:
                weight.grad = None
        if self.low is not None:
            network = self.low.call(self.network, summed=part.count > 1)
        per_image, t = self.forward(network, *where)
        loss = per_image.mean() / part.count
        if part.index == part.count - 1 and self.pull is not None:
            loss = loss + self.pull.penalty()
        if self.accelerator.scaler is None:
            loss.backward()  # accelerate looks for a package on disk each time
        else:
            self.accelerator.backward(loss)
        return per_image.detach(), t


class GraphedPass:
    """Replays one recorded graph of forward and backward pass, whatever the step.

    What changes from step to step (images, noise, what the levels say, whose condition is hidden)
    is copied into memory that the graph reads; dropout follows the seed of the device's generator,
    which a graph asks for at every replay. Gradients stay in memory of their own, which is zeroed
    at the first micro-batch of a step, by the graph where there is no other. What comes after it
    has a graph of its own, `GraphedUpdate`.

    Args:
        network: The process as accelerate prepared it.
        forward: Gives images, noise and levels.
        autocast: Gives the context of the forward pass.
        record: Records a function.
    """

    def __init__(
        self,
        network: nn.Module,
        forward: ForwardPass,
        autocast: Callable[[], Any],
        record: Recorder,
    ) -> None:
        self.network, self.forward, self.autocast, self.record = network, forward, autocast, record
        self._made: tuple[Any, ...] = ()
        self._replay: Callable[[], None] | None = None
        self._grads: list[tuple[nn.Parameter, Tensor]] = []
        self._losses: Tensor | None = None

    def __call__(self, part: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return the losses (b,) on the device and the levels t (b,) on the CPU."""
        process, device = self.forward.diffusion, self.forward.device
        given = self.forward.inputs(part.batch, part.rows, part.step, part.slot)
        host = host_part(process, len(given.images), given.uniform, given.drop)
        cond = given.cond or {}
        masks = {k: to_device(mask, device) for k, mask in host.hidden.items() if k in cond}
        wide = torch.float64 if given.images.dtype == torch.float64 else torch.float32
        table = to_device(host.table.to(wide), device)
        now = DeviceBatch(given.images, given.noise, table, cond, masks)
        like = [part.count, *((tuple(v.shape), v.dtype) for v in now.tensors())]
        if tuple(like) != self._made:
            self._make(now, part.count)
            self._made = tuple(like)
            self.forward.randomness.seed_dropout(part.step, part.rows, device)
        for kept, value in zip(self._static.tensors(), now.tensors()):
            kept.copy_(value, non_blocking=True)
        if part.index == 0:
            if self._grads and self._grads[0][0].grad is not self._grads[0][1]:
                for weight, grad in self._grads:
                    weight.grad = grad
            if part.count > 1:
                torch._foreach_zero_([grad for _, grad in self._grads])
        assert self._replay is not None
        assert self._losses is not None
        self._replay()
        return self._losses.clone(), host.t

    def _make(self, like: DeviceBatch, count: int) -> None:
        """Record the pass for batches of one shape; the gradients are zero afterwards."""
        process, device = self.forward.diffusion, self.forward.device
        process.check_images(like.images)
        self._replay, self._losses = None, None  # an earlier graph's memory goes first
        process.zero_grad(set_to_none=True)
        self._static = DeviceBatch(
            like.images.clone(),
            like.noise.clone(),
            like.table.clone(),
            {k: v.clone() for k, v in like.cond.items()},
            {k: v.clone() for k, v in like.hidden.items()},
        )

        def once() -> None:
            grads = [p.grad for p in process.parameters() if p.grad is not None]
            if grads and count == 1:  # every pass is the first of a step
                torch._foreach_zero_(grads)
            with self.autocast():
                losses = device_part(process, self._static)
            (losses.mean() / count).backward()
            self._losses = losses.detach()

        try:
            self._replay = self.record(once, device)
        except RuntimeError as error:
            if is_out_of_memory_error(error) or "captur" not in str(error):
                raise
            raise ConfigError(
                f"This step cannot be recorded: something in it asks the GPU for a value. Leave"
                f" {option('cuda_graph', True)} out, and please report this:"
                f" {' '.join(str(error).split())[:300]}"
            ) from error
        self._grads = [(p, p.grad) for p in process.parameters() if p.grad is not None]


Pass = EagerPass | GraphedPass


def why_not_graphed(
    diffusion: GaussianDiffusion, device: torch.device, precision: str, processes: int, pulled: bool
) -> str | None:
    """Say why forward and backward pass cannot be one graph; None where they can.

    Args:
        diffusion: The process.
        device: Where it trains.
        precision: "no", "bf16" or "fp16".
        processes: Of the run.
        pulled: Whether weights are pulled to those of the first step.
    """
    if device.type not in RECORDERS:
        return f"{device.type} has no graphs; it is for {' and '.join(RECORDERS)}"
    if processes > 1:
        return f"there are {processes} processes, whose gradients are summed while they are made"
    if precision == "fp16":
        return "fp16 scales the loss, and skips steps, on the way"
    if pulled:
        return f"{option('pull_to_start')} adds to the loss"
    return why_not_split(diffusion)


def make_pass(
    network: nn.Module,
    forward: ForwardPass,
    accelerator: Accelerator,
    pull: PullToStart | None,
    graphed: bool,
    low: LowWeights | None = None,
) -> Pass:
    """Return how micro-batches are done.

    Args:
        network: The process as accelerate prepared it.
        forward: From images to losses.
        accelerator: Of the run.
        pull: The pull to the weights at the first step, if there is one.
        graphed: Whether a graph is asked for.
        low: The weights in bfloat16, where they are kept.

    Raises:
        ConfigError: If it is, and cannot be: saying why.
    """
    if not graphed:
        return EagerPass(network, forward, accelerator, pull, low)
    device, precision = forward.device, str(accelerator.mixed_precision)
    processes = accelerator.num_processes
    why = why_not_graphed(forward.diffusion, device, precision, processes, pull is not None)
    if why is not None:
        asked = option("cuda_graph", True)
        raise ConfigError(f"{asked} cannot be here: {why}. Leave it out.")
    return GraphedPass(network, forward, accelerator.autocast, RECORDERS[device.type])
