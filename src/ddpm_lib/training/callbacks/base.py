"""What happens around the training loop: progress, metrics, validation, sample grids, checkpoints.

A callback has three hooks, which run on every rank at every step. It keeps its own cadence; what it
may touch of the trainer is in `TrainingView`. Because every rank runs it, it may use collectives,
but never inside `if is_main`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training.batches import BatchPlan
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.posthoc import PostHocAverages
from ddpm_lib.training.results import StepResult, StopReason

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion


class TrainingView(Protocol):
    """What a callback may touch of the `Trainer`: all of it is read, and changed by methods
    only.
    """

    @property
    def config(self) -> TrainingConfig:
        """The options of the run."""

    @property
    def output_dir(self) -> Path:
        """The run directory."""

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The process with the network that is trained."""

    @property
    def dataset(self) -> ImageDataset:
        """The training images."""

    @property
    def held_out(self) -> ImageDataset | None:
        """The held-out images, None where there are none."""

    @property
    def device(self) -> torch.device:
        """Where this process trains."""

    @property
    def accelerator(self) -> Accelerator:
        """Accelerate's object, for `autocast()`."""

    @property
    def step(self) -> int:
        """Optimizer steps done, in the whole run."""

    @property
    def until(self) -> int:
        """The step at which this call of `train` is to end."""

    @property
    def images_seen(self) -> int:
        """Images used by all processes, in the whole run."""

    @property
    def last(self) -> StepResult | None:
        """Tensors of the last step; None before the first."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The newest logged value of every name."""

    @property
    def last_grid(self) -> Path | None:
        """The newest grid of samples of this process, None where there is none."""

    @property
    def plan(self) -> BatchPlan:
        """How the batch is shared over processes and forward passes."""

    @property
    def posthoc(self) -> PostHocAverages:
        """The post-hoc averages."""

    @property
    def ranks(self) -> Processes:
        """The processes of the run, with collectives; call those on every rank."""

    @property
    def rank(self) -> int:
        """This process."""

    @property
    def processes(self) -> int:
        """Number of processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files; never use a collective under this condition."""

    @property
    def sum_dtype(self) -> torch.dtype:
        """The widest floating-point type that the device can sum in."""

    def log(self, values: dict[str, Any]) -> None:
        """Add values to this step's row of metrics; on every rank."""

    def logged(self, name: str) -> Any:
        """Return what was logged under a name in this step so far, or None."""

    def note(self, text: str) -> None:
        """Add a word to the next row on the console."""

    def notes(self) -> list[str]:
        """Return the words since the last call and forget them."""

    def say(self, line: str) -> None:
        """Show a line to the user and keep it in train.log."""

    def tolerate_write_errors(self, what: str) -> AbstractContextManager[None]:
        """Turn an OSError inside into a warning that names `what`."""

    def save(self) -> None:
        """Ask for a checkpoint after this step; on every rank."""

    def stop(self, reason: str) -> None:
        """Ask to stop after this step, with a checkpoint."""

    def sample(
        self,
        n: int = 16,
        *,
        cond: dict[str, Tensor] | None = None,
        weights: str = "ema",
        **options: Any,
    ) -> Tensor:
        """Draw images (n, c, *spatial) with the averaged weights; a collective."""

    def end(self, reason: StopReason) -> None:
        """Ask the same for a reason that says what it is; on every rank."""

    @property
    def stop_reason(self) -> StopReason | None:
        """Why training stops before its end; None while it does not."""

    def averaged_network(self) -> nn.Module:
        """Return the EMA network, or the trained one where no average is kept."""

    @property
    def chooses_average(self) -> bool:
        """Whether the average to use is chosen at the end: there are several, and nobody named
        them.
        """

    def averaged_networks(self) -> dict[float, nn.Module]:
        """Return the networks of all averages by decay, the one in use first."""

    def use_average(self, decay: float) -> None:
        """Make an average the one that validates, samples and is taken from checkpoints by default;
        on every rank.
        """

    def conditions(self, batch: dict[str, Any]) -> dict[str, Tensor] | None:
        """Pick the fields of a batch that the network is conditioned on."""

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, on every rank; a collective."""


class Callback:
    """Base of all callbacks; override the hooks you need."""

    @property
    def name(self) -> str:
        """Names this callback's state in checkpoints."""
        return type(self).__name__

    def on_train_start(self, trainer: TrainingView) -> None:
        """Run before the first step of a call of `train`, and again after a roll-back (then `close`
        has run between).
        """

    def on_step_end(self, trainer: TrainingView) -> None:
        """Run after every optimizer step; `trainer.step` counts the steps done, `trainer.last`
        holds the step's tensors.
        """

    def on_train_end(self, trainer: TrainingView) -> None:
        """Run after the last step, when the final checkpoint is written."""

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able state to save with checkpoints; runs on every rank, the main process's
        answer is kept.
        """
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
            _warn_of_old_state_dict(callback)
            continue
        if isinstance(callback, type) and issubclass(callback, Callback):
            way = f"the class {callback.__name__}: pass an instance, {callback.__name__}()"
        else:
            kind = callback.__name__ if isinstance(callback, type) else type(callback).__name__
            way = (
                f"{kind}: derive it from ddpm_lib.training.Callback, which has every hook, and"
                " override on_train_start(trainer), on_step_end(trainer) or on_train_end(trainer)"
            )
        raise TypeError(f"A callback must be an instance of a Callback; got {way}.")
    return found


def is_the_users(callback: Callback) -> bool:
    """Say whether a callback is not the library's own, so that nobody knows what it changes."""
    return not type(callback).__module__.startswith("ddpm_lib.")


def _check_hooks(callback: Callback) -> None:
    kind, hooks = type(callback), [name for name in dir(Callback) if name.startswith("on_")]
    unknown = [
        name
        for name in dir(kind)
        if name.startswith("on_") and name not in hooks and callable(getattr(kind, name))
    ]
    if unknown:
        raise TypeError(
            f"{kind.__name__} has {', '.join(unknown)}, which nothing would call: the hooks of a"
            f" Callback are {', '.join(hooks)}. Use one of them, or another name for a method of"
            " your own."
        )


def state_of(callback: Callback, trainer: object) -> dict[str, Any]:
    """Return the state that a callback saves; one written for older versions gets the trainer."""
    if _takes_trainer(callback):
        return callback.state_dict(trainer)  # type: ignore[call-arg]
    return callback.state_dict()


def _warn_of_old_state_dict(callback: Callback) -> None:
    if _takes_trainer(callback):
        warnings.warn(
            f"{type(callback).__name__}.state_dict takes an argument, and will not be given one in "
            "a later version. Keep what it needs in on_train_start, and define state_dict(self).",
            DeprecationWarning,
            stacklevel=5,  # the caller of Trainer(...)
        )


def _takes_trainer(callback: Callback) -> bool:
    """Whether `state_dict` has a parameter that must be given, as it had in older versions."""
    known = inspect.signature(callback.state_dict).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is inspect.Parameter.empty for p in known)
