"""Long curves made short: what a curve looks like does not change, its size does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def thin(values: Sequence[float], most: int) -> list[int]:
    """Return which points of a curve to keep: the lowest and the highest of each stretch.

    A spike of one step stays visible, which it would not if every k-th point were taken.

    Args:
        values: The curve, finite numbers.
        most: Points to keep at most, at least 4.

    >>> thin([0.0, 1.0, 9.0, 1.0, 0.0, -5.0, 0.0, 0.0], 6)
    [0, 2, 4, 5, 7]
    """
    n = len(values)
    if n <= most:
        return list(range(n))
    curve = np.asarray(values, dtype=np.float64)
    kept = {0, n - 1}
    for part in np.array_split(np.arange(n), (most - 2) // 2):
        kept.add(int(part[curve[part].argmin()]))
        kept.add(int(part[curve[part].argmax()]))
    return sorted(kept)


def stretch_means(values: Sequence[float], kept: Sequence[int]) -> list[float]:
    """Return the mean of the curve around each point that is kept, for who smooths it: extremes
    alone have another mean.

    Args:
        values: The curve.
        kept: What `thin` returned.

    >>> stretch_means([0.0, 1.0, 2.0, 3.0], [0, 3])
    [0.5, 2.5]
    """
    curve = np.asarray(values, dtype=np.float64)
    middle = (np.asarray(kept[:-1]) + np.asarray(kept[1:]) + 1) // 2
    starts = np.concatenate([[0], middle]).astype(np.int64)
    counts = np.diff(np.append(starts, len(curve)))
    return [float(v) for v in np.add.reduceat(curve, starts) / counts]


def short_number(value: float) -> float:
    """Return a number with six significant digits, which is shorter in a file.

    >>> short_number(0.123456789)
    0.123457
    """
    return float(f"{value:.6g}")
