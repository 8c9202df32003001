"""What a sampler is, and the only sampling loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddpm_lib.levels import Level


class Prediction(NamedTuple):
    """What the network says about x_t: the clean image, the noise, and the variance of a step to another level."""

    x0: Tensor
    eps: Tensor
    variance: Callable[[Level, Level], float | Tensor]


Predict = Callable[[Tensor, Level], Prediction]
"""Evaluates the network at (x, level); a solver may call it more than once per step, at levels of its own."""

Noise = Callable[[], Tensor]
"""Draws fresh standard Gaussian noise in the shape of x; a deterministic sampler never calls it."""

History = list[tuple[Level, Prediction]]
"""A multistep solver's memory of earlier predictions: empty at the start of a trajectory, kept by the solver itself."""


@dataclass(frozen=True)
class Sampler(ABC):
    """One step from level t to a cleaner level s; the fields of a subclass are its options."""

    order: ClassVar[int] = 1
    """Order of convergence of the distribution of samples in the number of steps."""

    @abstractmethod
    def step(self, x: Tensor, t: Level, s: Level, predict: Predict, noise: Noise, history: History) -> Tensor:
        """Return x_s from x = x_t, shape (b, c, *spatial)."""


def sample_loop(
    sampler: Sampler,
    x: Tensor,
    levels: Sequence[Level],
    predict: Predict,
    noise: Noise,
    *,
    on_state: Callable[[int, Tensor], None] | None = None,
    progress: bool = False,
) -> Tensor:
    """Take x through the levels, one step between each two neighbours.

    Levels are Python floats and nothing reads a value back, so that on a GPU the host runs ahead of the device.

    Args:
        sampler: Makes the steps.
        x: The state at levels[0], shape (b, c, *spatial).
        levels: The levels to visit. They decrease for sampling; a deterministic sampler may also go up (encoding).
        predict: Evaluates the network.
        noise: Draws noise like x.
        on_state: Called with (index of the level, state) for every level, the first included.
        progress: Show a progress bar.

    Returns:
        The state at levels[-1].
    """
    history: History = []
    pairs = list(enumerate(pairwise(levels), start=1))
    with torch.inference_mode():
        if on_state is not None:
            on_state(0, x)
        for i, (t, s) in _bar(pairs, progress):
            x = sampler.step(x, t, s, predict, noise, history)
            if on_state is not None:
                on_state(i, x)
    return x


def _bar(pairs: list[tuple[int, tuple[Level, Level]]], progress: bool) -> Iterable[tuple[int, tuple[Level, Level]]]:
    if not progress:
        return pairs
    from tqdm.auto import tqdm

    bar: Iterable[tuple[int, tuple[Level, Level]]] = tqdm(pairs, desc="sampling", unit="step", leave=False)
    return bar
