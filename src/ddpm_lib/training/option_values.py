"""Values of options of training in words, and what words stand for."""

from __future__ import annotations

import os
import re
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.paths import at_home
from ddpm_lib.core.registry import nearest
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import short


def describe_object(data: Any) -> str:
    """Word a data source that only Python can name, in angle brackets, which no path or hub name
    has.

    >>> describe_object([1, 2, 3])
    '<list of 3, given in Python>'
    """
    try:
        count = f" of {len(data):,}"
    except TypeError:
        count = ""
    return f"<{type(data).__name__}{count}, given in Python>"


def is_described(data: Any) -> bool:
    """Say whether a text is what `describe_object` wrote."""
    return isinstance(data, str) and data.startswith("<") and data.endswith(", given in Python>")


def refuse_described(data: Any) -> None:
    """Refuse what `describe_object` wrote in the place of data.

    Raises:
        ConfigError: Saying that the object is needed again.
    """
    if is_described(data):
        raise ConfigError(
            f"{data} was an object of Python, which a file cannot hold. Pass it again, or name a"
            " path instead."
        )


def wanted_kind(resume: str) -> str:
    """Return what `resume` is: "auto", "never", "step" or "checkpoint".

    Raises:
        ConfigError: If it is none of them.
    """
    if resume in ("auto", "never"):
        return resume
    if re.fullmatch(r"[0-9]{1,18}", resume):
        return "step"
    between = re.escape(f"/{os.sep}")  # a backslash on Windows
    if re.fullmatch(rf"(.*[{between}])?step-[0-9]{{9,18}}[{between}]*", resume, re.DOTALL):
        return "checkpoint"
    hint = nearest(resume, ["auto", "never"])
    also = f" Did you mean {hint!r}?" if hint else ""
    raise ConfigError(
        "resume must be auto, never, a step such as 1200, or a checkpoint such as step-000001200;"
        f" got {short(resume)}.{also}"
    )


def place(name: str, path: str | None) -> str | None:
    """Return the path of an option with the home directory in the place of a ~.

    Raises:
        ConfigError: If it is empty, as a variable that is not set makes it.
    """
    if path is not None and not path.strip():
        raise ConfigError(f"{option(name)} is empty. Is a variable of the shell unset?")
    return None if path is None else at_home(path)


def divisors(n: int) -> str:
    """List the divisors of n for a message."""
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
