"""Functions of the numbers of a level: Python's for sampling, torch's where a level is a tensor
that something is learned through.

`math` would take a tensor too, and drop its gradient in silence.
"""

from __future__ import annotations

import math
from typing import Any

import torch


def _like(name: str, value: float) -> float:
    if isinstance(value, torch.Tensor):
        found: Any = getattr(torch, name)(value)
    else:
        found = getattr(math, name)(value)
    result: float = found
    return result


def exp(value: float) -> float:
    """Return e^value."""
    return _like("exp", value)


def expm1(value: float) -> float:
    """Return e^value − 1."""
    return _like("expm1", value)


def log(value: float) -> float:
    """Return the natural logarithm."""
    return _like("log", value)


def sqrt(value: float) -> float:
    """Return the square root."""
    return _like("sqrt", value)


def isinf(value: float) -> bool:
    """Say whether a number is infinite."""
    return math.isinf(plain(value))


def isfinite(value: float) -> bool:
    """Say whether a number is finite."""
    return math.isfinite(plain(value))


def plain(value: float) -> float:
    """Return a number without what it was computed from.

    >>> plain(torch.tensor(0.5, requires_grad=True))
    0.5
    """
    return float(value.detach()) if isinstance(value, torch.Tensor) else value
