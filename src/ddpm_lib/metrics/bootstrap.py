"""Bootstrap intervals from the influence of single images."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ddpm_lib.core import keys


def bootstrap_interval(
    value: float, influence: Tensor, *, seed: int = 0, replicates: int = 1000, level: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval that resampling the images with replacement gives a metric, to first
    order.

    A metric of a weighted set of images changes by mean_i w_i L_i, where L is its influence
    function (Efron & Tibshirani 1993, §22). Resampling the L_i costs next to nothing where
    recomputing the metric (an eigenvalue problem of 2,048 dimensions) a thousand times would take
    hours, and it does not see the same image twice, from which distances between sets and nearest
    neighbours would only learn of the repetition. For a mean it is the ordinary percentile
    bootstrap. It says how much the choice of images matters, nothing of bias.

    Args:
        value: The metric.
        influence: float64 (n,): the derivative by the weight of each image, times n.
        seed: Names the resampling.
        replicates: Number of resampled sets.
        level: Coverage.

    Returns:
        Lower and upper end, or None for fewer than two images.
    """
    n = len(influence)
    if n < 2:
        return None
    values = influence.double().numpy() - float(influence.double().mean())
    draws = np.random.Generator(np.random.PCG64(keys.key(seed, "bootstrap", n)))
    means = [values[draws.integers(n, size=n)].mean() for _ in range(replicates)]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return value + float(low), value + float(high)


def share_interval(
    values: Tensor, z: float = 1.96, more: float = 0.0
) -> tuple[float, float] | None:
    """Return Wilson's interval for a share (Wilson 1927), from float (n,) of 0 and 1; None for
    fewer than two.

    Resampling cannot say anything where all images agree: 0 of 100 is no proof of 0 %.

    Args:
        values: What is averaged.
        z: Standard errors on each side.
        more: Standard error of the share besides that of `values`: it counts as fewer values.
    """
    n: float = len(values)
    if n < 2:
        return None
    p = float(values.double().mean())
    spread = p * (1 - p)
    n = spread / (spread / n + more**2) if spread else n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (spread / n + z * z / (4 * n * n)) ** 0.5
    low = 0.0 if p == 0.0 else max(0.0, middle - half)  # not what rounding leaves of it
    return low, 1.0 if p == 1.0 else min(1.0, middle + half)
