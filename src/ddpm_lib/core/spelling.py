"""How an option is written where the reader of a message stands: a flag for the command, a keyword
in Python.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator

_depth = 0


@contextlib.contextmanager
def flags() -> Iterator[None]:
    """Write options as flags meanwhile, in all threads: the command is what runs."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def in_flags() -> bool:
    """Whether the reader of messages is at a command line."""
    return _depth > 0


def option(name: str, value: object = None) -> str:
    """Write an option, or an option with a value.

    >>> option("on_bad_image", "skip")
    'on_bad_image="skip"'
    >>> with flags():
    ...     option("on_bad_image", "skip"), option("max_steps"), option("override", True)
    ('--on-bad-image skip', '--max-steps', '--override')
    >>> with flags():
    ...     option("value_range", (0, 4095))
    '--value-range 0 4095'
    """
    if not _depth:
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        return name if value is None else f"{name}={shown}"
    flag = "--" + name.replace("_", "-")
    if value is None or value is True:
        return flag
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join([flag, *(shlex.quote(str(v)) for v in values)])
