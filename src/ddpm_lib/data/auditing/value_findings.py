"""What of the findings about pictures is asked of measured values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddpm_lib.data.auditing.audit_findings import Finding
from ddpm_lib.data.auditing.copies import Pairs
from ddpm_lib.data.source import Source

NOT_JUDGED = ("blurry", "enlarged", "border", "grey")
"""Findings about the look of pictures, which says nothing of measured values."""


def without_looks(findings: dict[str, Finding]) -> dict[str, Finding]:
    """Return findings without those about the look of pictures."""
    none = np.zeros(0, dtype=np.int64)
    return findings | {
        kind: Finding(kind, findings[kind].title, none, {}, "not asked of measured values")
        for kind in NOT_JUDGED
    }


def apart(pairs: Pairs, sources: Sequence[Source]) -> np.ndarray:
    """Return which pairs of images, numbered through all parts, are no slices of one volume,
    bool (n,).
    """
    numbers, start = [], 0
    for source in sources:
        groups = getattr(source, "groups", None)
        own = np.arange(len(source)) if groups is None else np.asarray(groups)
        # Counted anew: of the volumes that a list leaves, numbers reach beyond their count.
        numbers.append(np.unique(own, return_inverse=True)[1].reshape(-1) + start)
        start += len(source)
    every = np.concatenate(numbers)
    return np.asarray(every[pairs.first] != every[pairs.second])
