"""What a metric returns: numbers with a unit, a standard error and an interval."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch import Tensor

from ddpm_lib.metrics import bootstrap_interval


@dataclass(frozen=True)
class Score:
    """One number of a metric.

    Attributes:
        name: Such as "nll" or, for a part of it, "nll/decoder".
        value: Mean over the images.
        standard_error: From the choice of images and the noise; None where a metric has none.
        unit: Such as "bits/dim".
        per_image: The numbers it is the mean of, float64 (n,), where there are some; not written to
            files.
        interval: 95 % bootstrap interval for the choice of images; it says nothing of bias.
        remark: What a reader must know beside the number: that it is worse than trivial, or rests
            on too little.
    """

    name: str
    value: float
    standard_error: float | None
    unit: str
    per_image: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)
    interval: tuple[float, float] | None = None
    remark: str = ""


def mean_score(name: str, values: Tensor, unit: str) -> Score:
    """Return the mean of float64 (n,) with its standard error s/√n and its bootstrap interval, None
    for one image.
    """
    value = float(values.mean())
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None
    return Score(name, value, error, unit, values, bootstrap_interval(value, values))


def count_word(n: int) -> str:
    """Write a number of images as names do: 50k, 1001.

    >>> count_word(50_000), count_word(1001)
    ('50k', '1001')
    """
    return f"{n // 1000}k" if n >= 1000 and n % 1000 == 0 else str(n)
