"""Values and texts of others in our sentences: short, and without anything that moves a terminal's
cursor.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any


class _Shortened(reprlib.Repr):
    """`repr` that never walks through a large or endlessly nested value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8
        self.maxstring = self.maxother = self.maxlong = 200

    def repr_int(self, x: int, level: int) -> str:
        """Word a whole number; one of thousands of digits has no decimal repr in Python."""
        return f"a number of {x.bit_length():,} bits" if x.bit_length() > 600 else repr(x)


def digits_between(low: float, high: float, least: int = 6) -> int:
    """Return how many digits tell numbers between two apart, at least so many; nine tell all of
    float32.

    >>> digits_between(0, 1), digits_between(2_459_000, 2_459_010)
    (6, 9)
    """
    most, span = max(abs(low), abs(high)), abs(high - low)
    if not most or not span:
        return least if not most else 9
    return min(9, max(least, math.ceil(math.log10(most / span)) + least - 1))


def span(low: float, high: float) -> str:
    """Write a range, with digits enough to tell its ends apart.

    >>> span(0, 0.5), span(2_459_000, 2_459_010)
    ('0 … 0.5', '2459000 … 2459010')
    """
    digits = digits_between(low, high)
    return f"{low:.{digits}g} … {high:.{digits}g}"


def short(value: Any, limit: int = 240) -> str:
    """Return the `repr` of a value for a message, cut where it is long.

    Aliases in YAML can make a few hundred bytes stand for gigabytes, and nobody reads the third
    line of a value.

    >>> short("cosin")
    "'cosin'"
    >>> len(short([["lol"] * 99] * 99)) <= 240
    True
    """
    text = _Shortened().repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def printable(text: object) -> str:
    r"""Return a text with control characters, and bytes that were no UTF-8, as escapes.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def _escaped(c: str) -> str:
    # A byte of a file name that is no UTF-8 reaches Python as a lone surrogate.
    return f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else repr(c)[1:-1]


def so_many(n: int, what: str) -> str:
    """Word a number of things.

    >>> so_many(1, "image"), so_many(2, "image")
    ('1 image', '2 images')
    """
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def sayable(text: str, encoding: str | None) -> str:
    """Return lines of text as a terminal or a file of some encoding can show them: what it cannot
    becomes an escape.
    """
    plain = "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)
    return plain.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")
