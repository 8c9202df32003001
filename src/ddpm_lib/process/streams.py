"""What drawing a batch of images takes: their number, their streams of noise, and the states that a
trajectory keeps.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core import keys

_AHEAD = 16
"""Steps of which the noise is drawn at once, at most."""
_AT_ONCE = 1 << 17
"""Numbers of one image drawn at once, at most: many more depend on the kind of GPU."""


class Noise:
    """Standard Gaussian noise in which every image of the batch has its own stream.

    Args:
        shape: Of one image.
        generators: One per image, all on one device.
        dtype: float32, or float64 for computations in float64.
        device: Where it is drawn: the generators'.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        generators: Sequence[torch.Generator],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape, self.generators, self.dtype = shape, generators, dtype
        self.device = device
        self._drawn: list[Tensor] = []
        self._first = True

    def __call__(self) -> Tensor:
        """Draw the next noise (b, *shape)."""
        if not self._drawn:
            self._drawn = list(self._draw(1 if self._first else self._ahead()).unbind(1)[::-1])
            self._first = False
        return self._drawn.pop()

    def _draw(self, times: int) -> Tensor:
        """Draw noise (b, times, *shape)."""
        return torch.stack(
            [
                torch.randn((times, *self.shape), generator=g, device=self.device, dtype=self.dtype)
                for g in self.generators
            ]
        )

    def _ahead(self) -> int:
        """Return of how many steps a GPU draws the noise at once: each image and step would be a
        launch of its own, which takes longer than the numbers. Most samplers draw once, so that is
        never part of it.
        """
        if self.device.type == "cpu":
            return 1
        return max(1, min(_AHEAD, _AT_ONCE // max(1, math.prod(self.shape))))


def image_generator(
    device: torch.device | str,
    seed: int,
    seeds: Sequence[int] | None,
    first_index: int,
    i: int,
    purpose: str = "sample",
) -> torch.Generator:
    """Return the random numbers of image i: of its own seed if there are seeds, else of (seed,
    first_index + i).

    Each purpose has its own: an image that was sampled with a seed must not be edited with the
    noise it came from.
    """
    if seeds is not None:
        return keys.generator(device, first_index, keys.check_seed(seeds[i]), purpose)
    return keys.generator(device, first_index + i, seed, purpose)


@dataclass(frozen=True)
class ImageStreams:
    """The random numbers of the images of one call; see `image_generator`.

    Args:
        purpose: What the noise is for, such as "sample".
        seed: Names the stream of the call.
        seeds: One seed per image instead.
        first_index: Number of the first image in its stream.
    """

    purpose: str
    seed: int
    seeds: Sequence[int] | None = None
    first_index: int = 0

    @classmethod
    def make(
        cls, purpose: str, seed: int | None, seeds: Sequence[int] | None, first_index: int
    ) -> ImageStreams:
        """Take the arguments of a method of `GaussianDiffusion`; seed=None draws a fresh seed."""
        return cls(purpose, keys.check_seed(seed), seeds, first_index)

    def noise(
        self,
        images: Sequence[int],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Noise:
        """Return the noise of these images, each of which has its own stream."""
        generators = [self._generator(device, i, self.purpose) for i in images]
        return Noise(shape, generators, dtype, torch.device(device))

    def condition(self, i: int) -> torch.Generator:
        """Return the random numbers of the conditions of image i, on the CPU for every device."""
        return self._generator("cpu", i, "condition")

    def check_count(self, n: int, entries: str = "images", entry: str = "image") -> None:
        """Raise ValueError if there are seeds, but not one for each of n images."""
        if self.seeds is not None and len(self.seeds) != n:
            raise ValueError(
                f"There are {len(self.seeds)} seeds for {n} {entries}. Give one per {entry}."
            )

    def _generator(self, device: torch.device | str, i: int, purpose: str) -> torch.Generator:
        return image_generator(device, self.seed, self.seeds, self.first_index, i, purpose)


def batches(n: int, batch_size: int | None) -> Iterator[tuple[int, int]]:
    """Return the (start, stop) of the batches of n images; None: all at once."""
    size = n if batch_size is None else batch_size
    if size < 1:
        raise ValueError(
            f"batch_size must be at least 1, got {size}. Leave it out to draw all images at once."
        )
    return ((start, min(start + size, n)) for start in range(0, n, size))


def count_images(
    n: int | None,
    seeds: Sequence[int] | None,
    x_T: Tensor | None,
    shape: tuple[int, ...],
    cond: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> int:
    """Agree on the number of images; conditions with one entry per image say it where nothing else
    does.

    A condition with a single entry counts for all images, and says nothing of their number where
    another has more.

    Raises:
        ValueError: If they contradict each other, x_T is no batch of states, or a batch size is
            given and nothing says how many images there are to be.
        TypeError: If n is no whole number.
    """
    if n is not None:
        try:
            n = operator.index(n)
        except TypeError:
            raise TypeError(
                f"n must be a whole number of images; got {type(n).__name__}."
            ) from None
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}.")
    if x_T is not None and (
        tuple(x_T.shape[1:]) != shape or x_T.dtype not in (torch.float32, torch.float64)
    ):
        raise ValueError(
            f"x_T must be float32 or float64 of shape (n, {', '.join(map(str, shape))}); got"
            f" {tuple(x_T.shape)}."
        )
    said = {
        "n": n,
        "seeds": None if seeds is None else len(seeds),
        "x_T": None if x_T is None else len(x_T),
    }
    counts = {name: count for name, count in said.items() if count is not None}
    for name, count in counts.items():
        if not count:
            raise ValueError(f"{name} is empty: it is to say at least 1 image.")
    if not counts:
        entries = {f"cond[{k!r}]": len(v) for k, v in (cond or {}).items() if np.ndim(v)}
        for name, count in entries.items():
            if not count:
                raise ValueError(f"{name} has no entry. Give one for all images, or one per image.")
        counts = {name: count for name, count in entries.items() if count > 1} or entries
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"The number of images is not clear: {counts}. Make them agree, or leave n out."
        )
    if (
        batch_size is not None
        and max(counts.values(), default=1) == 1
        and n is None
        and x_T is None
        and seeds is None
    ):
        raise ValueError(
            f"batch_size={batch_size} says how many images are drawn at a time, not how many there"
            f" are to be. Say that with n: sample({batch_size}) draws {batch_size}."
        )
    return next(iter(counts.values()), 1)


def kept_frames(wanted: bool | int, states: int) -> set[int]:
    """Return the indices of the states that a trajectory holds."""
    if wanted is True or wanted is False:
        return set(range(states)) if wanted else set()
    if wanted < 2:
        raise ValueError(
            f"return_trajectory must be True, False or at least 2 (first and last), got {wanted}."
        )
    return {round(k * (states - 1) / (wanted - 1)) for k in range(wanted)}


def keep_frame(frames: list[Tensor], kept: set[int], index: int, x: Tensor) -> None:
    """Append the state to the frames, in [0, 1], if it is one to keep."""
    if index in kept:
        frames.append(((x + 1.0) * 0.5).clamp(0.0, 1.0))
