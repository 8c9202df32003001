"""The pictures that a page of an audit shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ddpm_lib.data.auditing.audit_findings import Finding
from ddpm_lib.data.auditing.audited_parts import Part
from ddpm_lib.data.auditing.facts_of_sets import CropLoss
from ddpm_lib.data.auditing.picking import Copies
from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.decode_spec import make_spec
from ddpm_lib.data.source import Source

SHOWN_GROUPS = 12
"""Groups of copies whose pictures the page shows."""
SHOWN_ROWS = 12
"""Images of other findings, likewise."""
_SHOWN_SIDE = 96


def to_show(findings: Mapping[str, Finding], crop: CropLoss, n: int) -> list[int]:
    """Choose the rows whose pictures the page shows."""
    rows: dict[int, None] = {}
    for finding in findings.values():
        groups = [row for group in finding.groups[:SHOWN_GROUPS] for row in group[:2]]
        for row in groups or finding.rows[:SHOWN_ROWS].tolist():
            if row not in findings["unreadable"].why and row < n:
                rows.setdefault(int(row))
    for row in crop.worst[:SHOWN_ROWS]:
        rows.setdefault(row)
    return list(rows)


def pictures_of(part: Part, rows: Sequence[int], first: int) -> dict[int, np.ndarray]:
    """Return pictures by row, in their own proportions where they can be read again at once."""
    shown = {}
    for row in rows:
        small = part.measured.small[row - first].transpose(1, 2, 0)
        shown[row] = small if part.source.foreign else _read(part.source, row - first, small)
    return shown


def _read(source: Source, row: int, otherwise: np.ndarray) -> np.ndarray:
    spec = make_spec(_SHOWN_SIDE, 3, "pad", 235)
    try:
        decoded = source.load(row, spec)
    except (ImageError, OSError):
        return otherwise  # what its value range made of it, or what was read a moment ago
    return decoded.pixels.transpose(1, 2, 0)


def held_out_pictures(
    parts: Sequence[Part], leaks: Finding, copies: Copies
) -> dict[int, np.ndarray]:
    """Return the held-out pictures that shown training images are copies of."""
    shown: dict[int, np.ndarray] = {}
    starts = np.cumsum([0, *(len(part.source) for part in parts)])
    for row in leaks.rows[:SHOWN_ROWS].tolist():
        for other in copies.leaked.get(row, ())[:1]:
            k = int(np.searchsorted(starts, other, side="right")) - 1
            shown |= pictures_of(parts[k], [other], int(starts[k]))
    return shown
