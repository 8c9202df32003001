"""Keep checkpoints beside the newest: the one with the best value of a logged metric, early ones,
and the one before copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import nearest
from ddpm_lib.core.spelling import option
from ddpm_lib.training.callbacks.base import Callback, TrainingView
from ddpm_lib.training.config import TrainingConfig


class KeepBest(Callback):
    """Save when a metric is better than ever, and keep that checkpoint until a better one is there.

    Args:
        metric: Name of a logged quantity, the lowest of which is best; "max:name" takes the
            highest.
        begin: The first step that may be the best.
    """

    def __init__(self, metric: str, begin: int = 0) -> None:
        self.begin = begin
        self.highest = metric.startswith("max:")
        self.metric = metric.removeprefix("max:")
        self.value: float | None = None
        self.step: int | None = None

    def on_step_end(self, trainer: TrainingView) -> None:
        """Compare what was logged in this step."""
        value = trainer.logged(self.metric)
        if value is None or not math.isfinite(value) or trainer.step < self.begin:
            return
        if self.value is None or (value > self.value if self.highest else value < self.value):
            self.value, self.step = float(value), trainer.step
            trainer.note("best")
            trainer.save()

    def on_train_end(self, trainer: TrainingView) -> None:
        """Say which was best, or that the metric that was asked for never came."""
        if self.step is not None:
            trainer.say(f"Best {self.metric}: {self.value:.6g} at step {self.step:,}.")
        if self.step is not None or trainer.config.keep_best == "auto":
            return
        hint = nearest(self.metric, list(trainer.metrics))
        trainer.say(
            f"keep_best: no {self.metric!r} was"
            f" logged{f' (did you mean {hint!r}?)' if hint else ''}. There were:"
            f" {', '.join(trainer.metrics)}."
        )

    def keeps(self) -> set[int]:
        """Return the best step."""
        return set() if self.step is None else {self.step}

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and its step."""
        return {"metric": self.metric, "value": self.value, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them, unless another metric was meant."""
        same = state.get("metric") == self.metric
        self.value, self.step = (state["value"], state["step"]) if same else (None, None)


class KeepEarly(Callback):
    """Save at some early steps, and keep those checkpoints for good.

    A run that is made longer keeps those of its first length too.

    Args:
        steps: After which to save.
    """

    def __init__(self, steps: Iterable[int]) -> None:
        self.steps = frozenset(steps)
        self.kept: set[int] = set()

    def on_step_end(self, trainer: TrainingView) -> None:
        """Save when it is time."""
        if trainer.step in self.steps:
            self.kept.add(trainer.step)
            trainer.save()

    def keeps(self) -> set[int]:
        """Return the steps that were reached."""
        return set(self.kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps that were reached."""
        return {"steps": sorted(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them.

        Raises:
            TypeError, ValueError: If they are no steps.
        """
        self.kept = {int(step) for step in state.get("steps", ())}


class KeepUncopied(Callback):
    """Save at every grid that does not ring for copies of training images, and keep the newest of
    those checkpoints: what there was before the run copied.
    """

    def __init__(self) -> None:
        self.step: int | None = None

    def on_step_end(self, trainer: TrainingView) -> None:
        """Look at the grid of this step, if there was one."""
        p = trainer.logged("sample_copies_p")
        if p is not None and p > COPY_ALARM:
            self.step = trainer.step
            trainer.save()

    def keeps(self) -> set[int]:
        """Return the step of the newest grid that did not ring."""
        return set() if self.step is None else {self.step}

    def state_dict(self) -> dict[str, Any]:
        """Return that step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.step = state.get("step")


def check_metric(config: TrainingConfig) -> None:
    """Refuse a metric of validation where there is none.

    Raises:
        ConfigError: Saying which option to set.
    """
    name = (config.keep_best or "").removeprefix("max:")
    validated = config.cadences.val_every and (config.val_data is not None or config.val_fraction)
    if name in ("val_loss", "train_fixed_loss", "val_gap") and not validated:
        raise ConfigError(
            f"{option('keep_best', name)} needs validation. Set {option('val_every')} and"
            f" {option('val_fraction')} or {option('val_data')}, or"
            " leave it out."
        )
