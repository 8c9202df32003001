"""A callable of the user's between a decoded picture and its uint8 tensor, such as one of
torchvision.transforms.v2: called, checked, and asked whether it draws random numbers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddpm_lib.data.readers import generator_states, generators_kept, seed_generators

_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_OUTCOMES = 4


class TransformError(ValueError):
    """A transform that gives no picture; the message says what it gave and what it should."""


@dataclass(frozen=True)
class Transform:
    """A callable on pictures, with words for it that are the same in every process.

    Attributes:
        function: From a PIL picture of mode L, RGB or RGBA to one of the same mode, to uint8 (c, h,
            w), or to floats (c, h, w) in [0, 1].
        description: What a run's fingerprint of the data holds of it.
    """

    function: Callable[[Any], Any]
    description: str

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Return the transformed picture, in the mode of the one given.

        Raises:
            TransformError: If the result is no picture of these channels.
        """
        return _picture(self.function(picture), picture.mode)

    def __str__(self) -> str:
        return self.description


class AppliedTransform:
    """The transform that a set was opened with, for sets that are to be read alike.

    It is not pickled: images in RAM need it no more, and a lambda could not be.

    Attributes:
        transform: The transform; None where there was none, and in another process.
    """

    def __init__(self, transform: Callable[[Any], Any] | None = None) -> None:
        self.transform = transform

    def __reduce__(self) -> tuple[type[AppliedTransform], tuple[()]]:
        return AppliedTransform, ()

    def __deepcopy__(self, memo: object) -> AppliedTransform:
        return self


@dataclass
class Probe:
    """Stands in for a transform on one picture, and finds out whether it draws random numbers.

    Attributes:
        transform: The transform.
        random: Whether it does; None before it was called.
    """

    transform: Transform
    random: bool | None = field(default=None, init=False)

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Apply the transform a few times, with other random numbers each time.

        Raises:
            TransformError: If it draws from a generator of its own, or its result is no picture.
        """
        with generators_kept():
            results = []
            drew = False
            for k in range(_OUTCOMES):
                seed_generators("probe", k)
                before = generator_states()
                last = self.transform(picture.copy())
                results.append(np.asarray(last))
                drew |= before != generator_states()
        same = all(
            result.shape == results[0].shape and np.array_equal(result, results[0])
            for result in results
        )
        if not drew and not same:
            raise TransformError(
                f"The transform {self.transform} gives another picture each time, by a generator of"
                " its own, which no run could repeat. Let it draw from torch's, numpy's or Python's"
                " global generator: they are seeded for every image."
            )
        self.random = drew
        return last


def make_transform(function: Any) -> Transform | None:
    """Return a transform with its description; None for None.

    Raises:
        TypeError: If it cannot be called.
    """
    if function is None or isinstance(function, Transform):
        return function
    if not callable(function) or isinstance(function, type):
        raise TypeError(
            "transform must be a callable from a PIL picture to a picture, such as"
            f" torchvision.transforms.v2.RandomResizedCrop(64); got {function!r}."
        )
    return Transform(function, _describe(function))


def _describe(function: Any) -> str:
    if inspect.isroutine(function):
        return f"{function.__module__}.{function.__qualname__}"
    kind = type(function)
    if kind.__repr__ is object.__repr__:
        return f"{kind.__module__}.{kind.__qualname__}"
    return " ".join(_ADDRESS.sub("", repr(function)).split())


def _picture(result: Any, mode: str) -> Image.Image:
    """Make a picture of what a transform returned."""
    if isinstance(result, Image.Image):
        if result.mode != mode:
            raise TransformError(
                f"The transform returned a picture of mode {result.mode} for one of {mode}. Leave"
                " the conversion out: the option channels says it."
            )
        return result
    if not isinstance(result, (torch.Tensor, np.ndarray)):
        raise TransformError(
            "The transform must return a PIL picture, or a tensor (c, h, w) of uint8 or of floats"
            f" in [0, 1]; got {type(result).__name__}."
        )
    pixels = result.detach().cpu().numpy() if isinstance(result, torch.Tensor) else result
    if pixels.ndim != 3 or pixels.shape[0] != _CHANNELS[mode] or 0 in pixels.shape:
        raise TransformError(
            f"The transform returned shape {tuple(pixels.shape)} for a picture of"
            f" {_CHANNELS[mode]} channels; it must be (c, h, w)."
        )
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise TransformError(
                f"The transform returned values from {low:.4g} to {high:.4g}; floats must lie in"
                " [0, 1]. Leave Normalize() out: the library maps images to [-1, 1] itself."
            )
        pixels = (pixels * 255.0).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise TransformError(
            f"The transform returned {pixels.dtype}; it must be uint8, or floats in [0, 1]."
        )
    plain = np.ascontiguousarray(pixels[0] if mode == "L" else pixels.transpose(1, 2, 0))
    return Image.fromarray(plain)
