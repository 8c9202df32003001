"""Tables and durations as text, as wide as the reader's terminal and no wider."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST = 12
"""Characters of a name that stay where a terminal is narrow."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its head.
        right: Whether its texts stand at the right, as numbers do.
        rank: Columns of the highest rank are left out first where there is no room; 0 never.
    """

    title: str
    right: bool = False
    rank: int = 0


def room() -> int | None:
    """Return the columns of the terminal that stdout is; None for a pipe or a file, in which lines
    may be as long as they are.
    """
    try:
        there = sys.stdout.isatty()
    except ValueError:
        there = False
    return shutil.get_terminal_size().columns if there else None


def colours() -> bool:
    """Say whether stdout shows colours: a terminal, and nobody has asked for none (NO_COLOR)."""
    return room() is not None and not os.environ.get("NO_COLOR") and os.environ["TERM"] != "dumb"


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None
) -> list[str]:
    """Lay rows out under the titles of their columns.

    Columns without any text are left out. Where a width is given, columns go by their rank until
    the others fit; the first one is cut at its beginning at last, as names of paths differ at
    their ends.

    Args:
        columns: One per text of a row.
        rows: Texts.
        width: Characters of a line; None for as many as it takes.
    """
    kept = [k for k, _ in enumerate(columns) if any(row[k] for row in rows) or not rows or not k]
    sizes = [
        max(len(text) for text in (c.title, *(r[k] for r in rows))) for k, c in enumerate(columns)
    ]

    def taken() -> int:
        return sum(sizes[k] for k in kept) + 2 * (len(kept) - 1)

    while width is not None and taken() > width and any(columns[k].rank for k in kept):
        kept.remove(max(kept, key=lambda k: columns[k].rank))
    if width is not None and taken() > width:
        sizes[0] = max(SHORTEST, sizes[0] - (taken() - width))
    lines = []
    for row in [[column.title for column in columns], *rows]:
        texts = [row[0] if len(row[0]) <= sizes[0] else f"…{row[0][1 - sizes[0] :]}", *row[1:]]
        lines.append(
            "  ".join(
                texts[k].rjust(sizes[k]) if columns[k].right else texts[k].ljust(sizes[k])
                for k in kept
            ).rstrip()
        )
    return lines


def duration(seconds: float) -> str:
    """Word a time.

    >>> duration(90), duration(5400), duration(10_000), duration(400_000)
    ('90 s', '90 min', '2.8 h', '4.6 days')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"
