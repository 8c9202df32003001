"""Lines that say how far a long reading of images is."""

from __future__ import annotations

import time
from collections.abc import Callable

Log = Callable[[str], None]


class ProgressLines:
    """A line every five seconds, from the second second on.

    Args:
        total: Number of images.
        log: Is given the lines; None for none.
        doing: What is done to them.
    """

    def __init__(self, total: int, log: Log | None, doing: str = "decoding") -> None:
        self._total, self._log, self._doing = total, log, doing
        self._start = time.monotonic()
        self._next = self._start + 2.0

    def __call__(self, done: int) -> None:
        """Say how far it is, if it is time to."""
        now = time.monotonic()
        if self._log is not None and now >= self._next and done:
            rate = done / (now - self._start)
            left = (self._total - done) / rate
            self._log(
                f"{self._doing} {done:,} of {self._total:,} images, {rate:,.0f}/s,"
                f" {left:,.0f} s to go"
            )
            self._next = now + 5.0
