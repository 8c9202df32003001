"""What follows the backward pass of a step: clipping, the guard, the optimizer and the averages,
one after the other or as one recorded graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm_lib.core.device_copy import to_device
from ddpm_lib.runtime.cuda_graphs import RECORDERS, Recorder
from ddpm_lib.training.learner import Learner
from ddpm_lib.training.nonfinite import NonFiniteGuard
from ddpm_lib.training.one_pass import OnePassAdam
from ddpm_lib.training.optim import set_learning_rate

if TYPE_CHECKING:
    from accelerate import Accelerator


class EagerUpdate:
    """Does one after the other.

    Args:
        learner: Network, optimizer and averages.
        guard: Keeps out what is not finite.
        accelerator: Has the scaler of fp16.
        most: Norm to which the gradient is shortened.
    """

    def __init__(
        self, learner: Learner, guard: NonFiniteGuard, accelerator: Accelerator, most: float
    ) -> None:
        self.learner, self.guard = learner, guard
        self.accelerator, self.most = accelerator, most

    def __call__(self, losses: Tensor, step: int, rate: float) -> Tensor:
        """Return the norm of the gradient, before it is shortened.

        Args:
            losses: Of this process's images, (b,).
            step: Number of the step that is being done, counted from 1.
            rate: The learning rate.
        """
        optimizer = self.learner.optimizer
        set_learning_rate(optimizer, rate)
        norm = self.learner.clip_gradients(self.accelerator, self.most)
        self.guard.update(optimizer, self.accelerator.scaler, losses, norm, step)
        optimizer.optimizer.zero_grad(set_to_none=True)
        self.learner.update_averages(step)
        return norm


class _Group(NamedTuple):
    """A parameter group of Adam, with the tensors that it works on."""

    options: dict[str, Any]
    weights: list[Tensor]
    grads: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]


class GraphedUpdate:
    """Replays one recorded graph of clipping, guard, Adam and exponential averages.

    The rate, the number of the step and how far each average moves come in one small copy. The
    first update is done as it stands, and the second is recorded: then moments exist, and nothing
    has to be done without effect. Where a tensor of the graph has been replaced since (a roll-back,
    another size of batches), that begins anew. Gradients stay where the graph of the passes has
    them.

    Args:
        learner: Network, optimizer and averages; see `recordable`.
        guard: Keeps out what is not finite.
        most: Norm to which the gradient is shortened.
        record: Records a function.
    """

    def __init__(
        self, learner: Learner, guard: NonFiniteGuard, most: float, record: Recorder
    ) -> None:
        self.learner, self.guard, self.most, self.record = learner, guard, most, record
        self._made: tuple[int, ...] = ()
        self._replay: Callable[[], None] | None = None
        self._updates = 0

    def __call__(self, losses: Tensor, step: int, rate: float) -> Tensor:
        """Return the norm of the gradient; as `EagerUpdate`."""
        set_learning_rate(self.learner.optimizer, rate)
        ema, device = self.learner.ema, losses.device
        numbers = torch.tensor(
            [rate, step, *(ema.next_weights() if ema else ())], dtype=torch.float64
        )
        if self._stands_on(losses) != self._made:
            self._prepare(losses, numbers)
        self._numbers.copy_(to_device(numbers, device), non_blocking=True)
        self._losses.copy_(losses)
        self._updates += 1
        if self._updates == 1:
            self._update()
        else:
            if self._replay is None:
                self._replay = self.record(self._update, device, warm_up=False)
            self._replay()
        self.learner.posthoc.update(step)
        return self._norm.clone()

    def _stands_on(self, losses: Tensor) -> tuple[int, ...]:
        """Return what tells whether the tensors of the graph are still those in use."""
        inner = self.learner.optimizer.optimizer
        first = inner.param_groups[0]["params"][0]
        state, ema = inner.state.get(first, {}), self.learner.ema
        kept = [*self.guard.tensors, first, first.grad, state.get("exp_avg")]
        if ema is not None:
            kept += ema.first_tensors()
        return (*losses.shape, *map(id, kept))

    @torch.no_grad()
    def _prepare(self, losses: Tensor, numbers: Tensor) -> None:
        """Collect the tensors of the graph, making moments where there are none."""
        self._replay, self._updates = None, 0  # an earlier graph's memory goes first
        inner, ema = self.learner.optimizer.optimizer, self.learner.ema
        self._groups = []
        for options in inner.param_groups:
            lists: list[list[Tensor]] = [[] for _ in range(6)]
            weights, grads, means, squares, _, steps = lists
            inner._init_group(options, *lists)
            self._groups.append(_Group(options, weights, grads, means, squares, steps))
        self._losses = torch.zeros_like(losses)
        self._numbers = torch.zeros(len(numbers), dtype=torch.float64, device=losses.device)
        self._followed = ema.followed() if ema else []
        self._shadows = ema.shadows() if ema else []
        self._made = self._stands_on(losses)

    @torch.no_grad()
    def _update(self) -> None:
        rate, _, *moves = self._numbers.float().unbind()
        weights = [p for group in self._groups for p in group.weights]
        grads = [grad for group in self._groups for grad in group.grads]
        self._norm = norm = nn.utils.get_total_norm(grads)
        nn.utils.clip_grads_with_norm_(weights, self.most, norm)
        step = self._numbers[1].long()
        shut = self.guard.verdict(self._losses, ~torch.isfinite(norm), step).float()
        for group in self._groups:
            if group.weights:
                _adam(group, rate, shut)
        for shadows, move in zip(self._shadows, moves):
            torch._foreach_lerp_(shadows, self._followed, [move] * len(shadows))


def _adam(group: _Group, rate: Tensor, shut: Tensor) -> None:
    from torch.optim.adam import adam

    beta1, beta2 = group.options["betas"]
    adam(
        group.weights,
        group.grads,
        group.means,
        group.squares,
        [],
        group.steps,
        fused=True,
        capturable=True,
        found_inf=shut,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=rate,
        weight_decay=group.options["weight_decay"],
        eps=group.options["eps"],
        maximize=False,
        decoupled_weight_decay=group.options["decoupled_weight_decay"],
    )


Update = EagerUpdate | GraphedUpdate


def recordable(learner: Learner) -> bool:
    """Say whether an update can be a graph: torch's fused Adam or AdamW does it."""
    inner = learner.optimizer.optimizer
    by_torch = isinstance(inner, torch.optim.Adam) and not isinstance(inner, OnePassAdam)
    return by_torch and all(group.get("fused") for group in inner.param_groups)


def make_update(
    learner: Learner,
    guard: NonFiniteGuard,
    accelerator: Accelerator,
    most: float,
    graphed: bool,
) -> Update:
    """Return how a step ends.

    Args:
        learner: Network, optimizer and averages.
        guard: Keeps out what is not finite.
        accelerator: Of the run.
        most: Norm to which the gradient is shortened.
        graphed: Whether forward and backward pass are a graph.
    """
    if graphed and recordable(learner):
        return GraphedUpdate(learner, guard, most, RECORDERS[accelerator.device.type])
    return EagerUpdate(learner, guard, accelerator, most)


def rate_on(device: torch.device, rate: float) -> float:
    """Return a learning rate as a graph on this kind of device reads it, in float32 where there are
    graphs, so that a run with one has the numbers of a run without.
    """
    return float(torch.tensor(rate, dtype=torch.float32)) if device.type in RECORDERS else rate
