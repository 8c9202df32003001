"""Rows spread evenly over a set, so that a part of it stands for the whole."""

from __future__ import annotations

import numpy as np


def evenly(n: int, of: int) -> np.ndarray:
    """Return n rows spread over `of`, int64."""
    return np.arange(n, dtype=np.int64) * of // n
