"""accelerate keeps its state once per process; each trainer has its own, and gives back the one
that it found.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

_LEFT_OUT = "_ddp_params_and_buffers_to_ignore"
"""Where DistributedDataParallel looks for the names of what it does not send around."""


class OwnState:
    """One state of accelerate: device and processes, precision, accumulation.

    accelerate's three classes hold theirs in a dict that all their instances share, so a second
    `Accelerator` of another precision or device is refused ("restart your runtime"). While a
    trainer works its own dicts are in their place; objects made meanwhile keep them. Processes that
    have met are a fact of the whole process, and stay known.
    """

    def __init__(self) -> None:
        self._own: list[dict[str, Any]] = [{}, {}, {}]

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put this state in the place of the process's, and that one back at the end."""
        from accelerate.state import AcceleratorState, GradientState, PartialState

        classes: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)
        before = [cls._shared_state for cls in classes]
        if before[0].get("num_processes", 1) > 1:
            self._own[0] = before[0]
        for cls, own in zip(classes, self._own):
            cls._shared_state = own
        try:
            yield
        finally:
            self._own = [cls._shared_state for cls in classes]
            if self._own[0].get("num_processes", 1) > 1:
                before[0] = self._own[0]
            for cls, found in zip(classes, before):
                cls._shared_state = found


def prepare_network(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """Let accelerate wrap a module for training on all processes.

    DistributedDataParallel sends all buffers around at every forward pass, which matters to running
    statistics; what a part calls its `constant_buffers` is left out.

    Args:
        accelerator: What prepares it.
        module: The module, on its device.
    """
    constant = [
        f"{name}.{buffer}" if name else buffer
        for name, part in module.named_modules()
        for buffer in getattr(part, "constant_buffers", ())
    ]
    module.__dict__[_LEFT_OUT] = constant
    prepared: nn.Module = accelerator.prepare_model(module)
    return prepared


def give_back_network(accelerator: Accelerator, module: nn.Module, forward: Any) -> None:
    """Undo what `prepare_network` did: accelerate puts its autocast into the module itself, which
    is the user's.

    Args:
        accelerator: What prepared it.
        module: The module.
        forward: Its own `forward` attribute from before, None where it had none.
    """
    accelerator._models.clear()
    for name in ("_is_accelerate_prepared", "_original_forward", "forward", _LEFT_OUT):
        module.__dict__.pop(name, None)
    if forward is not None:
        module.__dict__["forward"] = forward
    module.eval()


class HasOwnState(Protocol):
    """Something with a state of its own."""

    accelerate_state: OwnState


S = TypeVar("S", bound=HasOwnState)


def in_own_state(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Run a method with its object's own state of accelerate."""

    @functools.wraps(method)
    def wrapped(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.accelerate_state.installed():
            return method(self, *args, **kwargs)

    return wrapped
