"""Progress bars and lines, by one rule: a bar only where somebody can see it move, plain lines
everywhere else.

A carriage return in a log file or a pipe makes one endless line of thousands of bars. So a terminal
gets tqdm's bar, a notebook with ipywidgets its widget, and all other places get at most one line a
minute. A view that shows lines in its own place, as a notebook's does while training, hears them
instead of the console.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Literal, TextIO, TypeVar

T = TypeVar("T")

LINE_SECONDS = 60.0
"""Where there is no bar: seconds between two lines about the same work."""
FORETOLD_SECONDS = 5.0
"""Seconds after which work that will take longer than a minute says how long."""


def in_notebook() -> bool:
    """Say whether the code runs in the kernel of a notebook."""
    # That ipykernel was imported says little (tools import it); that the shell has a kernel says
    # it.
    return hasattr(getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)(), "kernel")


def bar_style() -> Literal["terminal", "widgets", "lines"]:
    """Return what progress looks like here."""
    if in_notebook():
        return "widgets" if importlib.util.find_spec("ipywidgets") is not None else "lines"
    try:
        return "terminal" if sys.stderr.isatty() else "lines"
    except (AttributeError, ValueError):  # no stderr at all, or a closed one
        return "lines"


def _import_tqdm_quietly() -> None:
    """Import tqdm.auto, which accelerate and 🤗's hub use, without its warning of missing
    ipywidgets.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        import tqdm.auto  # noqa: F401  (it warns only at the first import)


if in_notebook() and bar_style() == "lines":
    _import_tqdm_quietly()


def stream() -> TextIO | None:
    """Return where lines for the user go: stderr, which a notebook would colour red, so stdout
    there.
    """
    return sys.stdout if in_notebook() else sys.stderr


_listeners: list[Callable[[str], None]] = []


def hear_lines(listener: Callable[[str], None]) -> None:
    """Give lines to a listener instead of the console until `stop_hearing`; the newest one
    counts.
    """
    _listeners.append(listener)


def stop_hearing(listener: Callable[[str], None]) -> None:
    """Give lines to the console again, or to the listener before."""
    if listener in _listeners:
        _listeners.remove(listener)


def write(line: str) -> None:
    """Write a line, above a bar where there is one, or give it to the view that hears lines.

    Raises:
        OSError: If the stream refuses it.
    """
    if _listeners:
        _listeners[-1](line)
        return
    if bar_style() == "lines":
        out = stream()
        if out is not None:  # a process without a console
            out.write(f"{line}\n")
            out.flush()
        return
    from tqdm import tqdm

    tqdm.write(line, file=stream())


class Lines(Generic[T]):
    """Stands in for a bar where there is none: says how far the work is, once in a while.

    Args:
        iterable: What to walk through, if anything.
        total: Number of units; default: the length of `iterable`.
        desc: Names the work.
        unit: Names one unit.
        shown: Whether to say anything.
    """

    def __init__(
        self, iterable: Iterable[T] | None, total: int | None, desc: str, unit: str, shown: bool
    ) -> None:
        self._iterable = iterable
        self.total = total if total is not None else getattr(iterable, "__len__", lambda: None)()
        self.desc, self.unit, self.n = desc, unit, 0
        self._since = self._said = time.monotonic() if shown else float("inf")

    def __iter__(self) -> Iterator[T]:
        assert self._iterable is not None
        for item in self._iterable:
            yield item
            self.update(1)

    def update(self, n: int = 1) -> None:
        """Count `n` units; say so if the last line is old enough."""
        self.n += n
        now = time.monotonic()
        first = self._said == self._since and self._is_long(now)
        if now - self._said < LINE_SECONDS and not first:
            return
        self._said = now
        of = f" of {self.total:,}" if self.total else ""
        left = (
            (now - self._since) * (self.total - self.n) / self.n if self.total and self.n else None
        )
        write(
            f"{self.desc}: {self.n:,}{of} {self.unit}s"
            + (f", {duration(left)} left" if left is not None else "")
        )

    def _is_long(self, now: float) -> bool:
        """Say whether the work has gone on long enough to foretell that it will take minutes."""
        spent = now - self._since
        if spent < FORETOLD_SECONDS or not self.total or not self.n:
            return False
        return spent / self.n * (self.total - self.n) > LINE_SECONDS

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Do nothing: lines have no postfix."""

    def close(self) -> None:
        """Do nothing: there is nothing on the screen to finish."""


def bar(
    iterable: Iterable[T] | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "step",
    shown: bool = True,
    **options: Any,
) -> Any:
    """Return tqdm's bar where one can be seen, else `Lines`, which takes the same calls.

    Args:
        iterable: What to walk through, if anything; without it the caller calls `update`.
        total: Number of units; default: the length of `iterable`.
        desc: Names the work.
        unit: Names one unit.
        shown: Whether to show anything.
        **options: Further arguments of tqdm.
    """
    style = bar_style() if shown else "lines"
    if style == "lines":
        return Lines(iterable, total, desc, unit, shown)
    drawn: Any
    if style == "widgets":
        from tqdm.notebook import tqdm as drawn
    else:
        from tqdm import tqdm as drawn
    return drawn(iterable, total=total, desc=desc or None, unit=unit, **{"leave": False, **options})


@contextlib.contextmanager
def foreign_bars_hidden() -> Iterator[None]:
    """Keep 🤗 datasets and its hub from drawing their bars where there is none of ours."""
    if bar_style() != "lines":
        yield
        return
    import datasets
    from huggingface_hub import utils as hub

    restore = []
    for library in (datasets, hub):
        if not library.are_progress_bars_disabled():
            library.disable_progress_bars()
            restore.append(library.enable_progress_bars)
    try:
        yield
    finally:
        for enable in restore:
            enable()


def duration(seconds: float) -> str:
    """Write a duration in at most six characters.

    >>> [duration(s) for s in (9.6, 59.4, 61, 3599, 3600, 86_399, 86_400, 5e6)]
    ['10s', '59s', '1m01s', '59m59s', '1h00m', '23h59m', '1d00h', '57d20h']
    """
    whole = round(seconds)
    for size, big, small, part in (
        (86_400, "d", "h", 3600),
        (3600, "h", "m", 60),
        (60, "m", "s", 1),
    ):
        if whole >= size:
            return f"{whole // size}{big}{whole % size // part:02d}{small}"
    return f"{whole}s"
