"""Pieces of Markdown, and texts of others made harmless in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ddpm_lib.core.text import printable

_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~])")


def plain(text: object) -> str:
    r"""Return a text that Markdown and HTML show as it is, in one line.

    >>> plain("a_b <script>|")
    'a\\_b \\<script\\>\\|'
    """
    return _MARKS.sub(r"\\\1", " ".join(printable(text).split()))


def code(text: object) -> str:
    """Return a text as a code span, which may stand in a table.

    >>> code("min_snr"), code("a`b")
    ('`min_snr`', "`a'b`")
    """
    inside = " ".join(printable(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{inside}`" if inside else ""


def block(language: str, lines: Iterable[str]) -> str:
    """Return lines as a block of code."""
    inside = "\n".join(line.replace("```", "'''") for line in lines)
    return f"```{language}\n{inside}\n```"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already.

    >>> print(table(("a", "b"), [("1", "2")]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    ruler = "|" + "---|" * len(head)
    first, *rest = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([first, ruler, *rest])
