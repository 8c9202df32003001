"""Weights kept in bfloat16 beside the float32 ones that are trained, instead of being cast at every
forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddpm_lib.nn.kernels.build import weights_library
from ddpm_lib.nn.lowering import cast_layers
from ddpm_lib.training.one_pass import OnePassAdam

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion

_NEVER = (-1, -1)


@dataclass
class _Pair:
    """A weight and its copy, with what the weight was when it was copied."""

    trained: nn.Parameter
    low: Tensor
    seen: tuple[int, int] = _NEVER

    def state(self) -> tuple[int, int]:
        return self.trained._version, self.trained.data_ptr()


class LowWeights:
    """Copies in bfloat16 of what autocast casts at every forward pass: the weights of convolutions
    and linear layers (`cast_layers`).

    The network computes with the copies, and gets the same numbers bit by bit: they are rounded as
    autocast rounds. `OnePassAdam` writes them while it writes the weights, and reads the gradients
    as the layers leave them, in bfloat16; after any other change of a weight its copy is made anew.
    One by `weight.data` leaves no trace: `forget` after whatever may do that.

    Args:
        process: The process whose `model` is trained, on its device.
        optimizer: Of its weights.
    """

    def __init__(self, process: GaussianDiffusion, optimizer: torch.optim.Optimizer) -> None:
        inside = {id(p) for part in cast_layers(process.model) for p in part.parameters()}
        found = {k: p for k, p in process.named_parameters() if id(p) in inside}
        self.pairs = {
            name: _Pair(p, torch.empty_like(p, dtype=torch.bfloat16, requires_grad=False))
            for name, p in found.items()
        }
        self._reads_low = isinstance(optimizer, OnePassAdam)
        if isinstance(optimizer, OnePassAdam):
            optimizer.narrowed = {id(pair.trained): pair.low for pair in self.pairs.values()}
        optimizer.register_step_post_hook(self._stepped)

    def call(self, network: nn.Module, *, summed: bool) -> Callable[..., Any]:
        """Return the network as a function that computes with the copies.

        Args:
            network: The process, as accelerate prepared it; its name of a weight is the process's.
            summed: Whether gradients of several calls are added up, which is done in float32.
        """
        self._renew()
        kind = torch.bfloat16 if self._reads_low and not summed else torch.float32
        for pair in self.pairs.values():
            if pair.trained.grad_dtype != kind:
                pair.trained.grad_dtype = kind
        given = {k: _Copied.apply(pair.trained, pair.low) for k, pair in self.pairs.items()}

        def called(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(network, given, args, kwargs)

        return called

    def forget(self) -> None:
        """Make all copies anew before the next call."""
        for pair in self.pairs.values():
            pair.seen = _NEVER

    def close(self) -> None:
        """Let gradients be float32 again, for whoever trains the network after this run."""
        for trained in (pair.trained for pair in self.pairs.values()):
            if trained.grad is not None and trained.grad.dtype != torch.float32:
                trained.grad = None
            trained.grad_dtype = torch.float32

    def _renew(self) -> None:
        stale = [pair for pair in self.pairs.values() if pair.seen != pair.state()]
        if stale:
            with torch.no_grad():
                trained = [pair.trained.detach() for pair in stale]
                torch._foreach_copy_([pair.low for pair in stale], trained)
            self._note(stale)

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Copy anew after a step, unless the optimizer did; torch's fused steps leave the version
        of a weight as it was.
        """
        if getattr(optimizer, "has_narrowed", False):
            self._note(list(self.pairs.values()))
        else:
            self.forget()

    @staticmethod
    def _note(pairs: list[_Pair]) -> None:
        for pair in pairs:
            pair.seen = pair.state()


class _Copied(torch.autograd.Function):
    """The copy of a weight, whose gradient is the weight's."""

    @staticmethod
    def forward(ctx: Any, trained: Tensor, low: Tensor) -> Tensor:
        return low.view_as(low)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def keeps_low_weights(
    device: torch.device, precision: str, processes: int, *, pulled: bool, compiled: bool
) -> bool:
    """Say whether a run keeps copies in bfloat16.

    Args:
        device: Where it trains. A GPU casts all weights in less time than it takes to ask for it.
        precision: "no", "bf16" or "fp16".
        processes: Of the run. Those of several sum gradients where they are float32.
        pulled: Whether weights are pulled to those of the first step, whose gradient is float32.
        compiled: Whether regions are compiled, casts with them.
    """
    fits = device.type == "cpu" and precision == "bf16" and processes == 1
    return fits and not pulled and not compiled and weights_library() is not None
