"""What a sampler is, and the only sampling loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddpm_lib.core.progress import bar as progress_bar
from ddpm_lib.schedules.levels import Level


class Prediction(NamedTuple):
    """What the network says about x_t: the clean image, the noise, and the variance of a step to
    another level.
    """

    x0: Tensor
    eps: Tensor
    variance: Callable[[Level, Level], float | Tensor]


_SHORT = 3.0
"""Seconds of sampling without a word."""

Predict = Callable[[Tensor, Level], Prediction]
"""Evaluates the network at (x, level); a solver may call it more than once per step, at levels of
its own.
"""

Noise = Callable[[], Tensor]
"""Draws fresh standard Gaussian noise in the shape of x; a deterministic sampler never calls it."""

LevelAt = Callable[[float], Level]
"""Finds the level of a log-SNR, between the levels of the schedule too."""


class Past(NamedTuple):
    """An earlier step: where it started from and what the network said there."""

    level: Level
    x: Tensor
    x0: Tensor


@dataclass
class History:
    """What a step may know besides its own two levels; one per trajectory.

    Args:
        steps: How many steps the trajectory has.
        remaining: How many of them come after the present one.
        level_at: Finds levels in between, for solvers that evaluate the network there.
        past: A multistep solver's memory, oldest first: empty at the start, kept by the solver
            itself.
    """

    steps: int = 1
    remaining: int = 0
    level_at: LevelAt | None = None
    past: list[Past] = field(default_factory=list)

    def between(self, log_snr: float) -> Level:
        """Return the level with a given log-SNR."""
        if self.level_at is None:
            raise ValueError(
                "This sampler visits levels in between. Pass level_at=schedule.level_at to"
                " sample_loop."
            )
        return self.level_at(log_snr)

    def remember(self, level: Level, x: Tensor, x0: Tensor, keep: int) -> None:
        """Add an earlier step, and forget all but the `keep` newest."""
        self.past.append(Past(level, x, x0))
        del self.past[:-keep]


@dataclass(frozen=True)
class Sampler(ABC):
    """One step from level t to a cleaner level s; the fields of a subclass are its options."""

    multistep: ClassVar[bool] = False
    """True if a step uses what the network said in earlier steps (`History.past`)."""

    jumps: ClassVar[bool] = False
    """True if a step takes x̂_0 for the end of the trajectory, not for the mean of clean images."""

    @abstractmethod
    def step(
        self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History
    ) -> Tensor:
        """Return x_s from x = x_t, shape (b, c, *spatial)."""


def sample_loop(
    sampler: Sampler,
    x: Tensor,
    levels: Sequence[Level],
    predict: Predict,
    noise: Noise,
    *,
    level_at: LevelAt | None = None,
    on_state: Callable[[int, Tensor], None] | None = None,
    progress: bool | None = False,
) -> Tensor:
    """Take x through the levels, one step between each two neighbours.

    Levels are Python floats and nothing reads a value back, so that on a GPU the host runs ahead of
    the device.

    Args:
        sampler: Makes the steps.
        x: The state at levels[0], shape (b, c, *spatial).
        levels: The levels to visit. They decrease for sampling; a deterministic sampler may also go
            up (encoding).
        predict: Evaluates the network.
        noise: Draws noise like x.
        level_at: Finds levels in between (`Schedule.level_at`), for samplers that need them.
        on_state: Called with (index of the level, state) for every level, the first included.
        progress: Show progress: True, False, or None for what takes longer than a few seconds.

    Returns:
        The state at levels[-1].
    """
    pairs = list(enumerate(pairwise(levels), start=1))
    history = History(steps=len(pairs), level_at=level_at)
    with torch.inference_mode():
        if on_state is not None:
            on_state(0, x)
        for i, (t, s) in with_progress(pairs, progress):
            history.remaining = len(pairs) - i
            x = sampler.step(x, t, s, predict, noise, history)
            if on_state is not None:
                on_state(i, x)
    return x


def with_progress(
    pairs: list[tuple[int, tuple[Level, Level]]], progress: bool | None
) -> Iterable[tuple[int, tuple[Level, Level]]]:
    """Return the numbered steps, behind a bar if there is to be one: for None only where it takes
    long.
    """
    if progress is False:
        return pairs
    delay = 0.0 if progress else _SHORT
    shown: Iterable[tuple[int, tuple[Level, Level]]] = progress_bar(
        pairs, desc="sampling", unit="step", delay=delay
    )
    return shown
