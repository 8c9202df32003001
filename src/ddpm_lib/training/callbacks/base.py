"""What happens around the training loop: progress, metrics, validation, sample grids, checkpoints.

A callback has three hooks, which run on every rank at every step; it keeps its own cadence, reads the trainer, and may only
`trainer.save()` or `trainer.stop(reason)`. Because every rank runs it, it may use collectives, but never inside `if is_main`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_lib.training.trainer import Trainer


class Callback:
    """Base of all callbacks; override the hooks you need."""

    @property
    def name(self) -> str:
        """Names this callback's state in checkpoints."""
        return type(self).__name__

    def on_train_start(self, trainer: Trainer) -> None:
        """Run before the first step of a call of `train`, and again after a roll-back (then `close` has run between)."""

    def on_step_end(self, trainer: Trainer) -> None:
        """Run after every optimizer step; `trainer.step` counts the steps done, `trainer.last` holds the step's tensors."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Run after the last step, when the final checkpoint is written."""

    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """Return JSON-able state to save with checkpoints; runs on every rank, the main process's answer is kept."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned (an empty dict where the checkpoint has none)."""

    def keeps(self) -> set[int]:
        """Return steps whose checkpoints are not to be removed."""
        return set()

    def close(self) -> None:
        """Let go of what is open; runs last, also when training ends in an error."""


def check_callbacks(given: Callback | Iterable[Callback] | None) -> list[Callback]:
    """Return the callbacks of a user as a list.

    Args:
        given: Several, one, or none.

    Raises:
        TypeError: If one is no `Callback`, saying what to make of it.
    """
    if given is None or isinstance(given, Callback):
        return [given] if given is not None else []
    if not isinstance(given, Iterable):
        given = [given]
    found = list(given)
    for callback in found:
        if isinstance(callback, Callback):
            _check_hooks(callback)
            continue
        if isinstance(callback, type) and issubclass(callback, Callback):
            way = f"the class {callback.__name__}: pass an instance, {callback.__name__}()"
        else:
            kind = callback.__name__ if isinstance(callback, type) else type(callback).__name__
            way = (
                f"{kind}: derive it from ddpm_lib.training.Callback, which has every hook, and override "
                "on_train_start(trainer), on_step_end(trainer) or on_train_end(trainer)"
            )
        raise TypeError(f"A callback must be an instance of a Callback; got {way}.")
    return found


def _check_hooks(callback: Callback) -> None:
    kind, hooks = type(callback), [name for name in dir(Callback) if name.startswith("on_")]
    unknown = [
        name for name in dir(kind) if name.startswith("on_") and name not in hooks and callable(getattr(kind, name))
    ]
    if unknown:
        raise TypeError(
            f"{kind.__name__} has {', '.join(unknown)}, which nothing would call: the hooks of a Callback are "
            f"{', '.join(hooks)}. Use one of them, or another name for a method of your own."
        )
