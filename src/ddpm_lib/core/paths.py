"""Names of directories that are free."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import printable


def at_home(text: str) -> str:
    """Return a text with a leading ~ replaced by the home directory, as shells do in some places:
    not in quotes, not behind --flag= and not in files.

    >>> at_home("~/runs/mine") == os.path.expanduser("~") + "/runs/mine", at_home("a~b")
    (True, 'a~b')
    """
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


def fresh(run: Path) -> Path:
    """Return a name beside a run directory that nothing has yet: runs/mine-2."""
    stem = re.compile(r"(.*?)(?:-(\d{1,6}))?", re.DOTALL)
    base, number = stem.fullmatch(run.name).groups()  # type: ignore[union-attr]
    if not base:
        base, number = run.name or "run", None
    count = max(2, int(number or 1) + 1)
    while os.path.lexists(
        run.with_name(f"{base}-{count}") if run.name else Path(f"{base}-{count}")
    ):
        count += 1
    return run.with_name(f"{base}-{count}") if run.name else Path(f"{base}-{count}")


def another(run: Path) -> str:
    """Word the advice to take another run directory: the option, and a name that is free."""
    return f"another {option('output_dir')}, such as {shlex.quote(printable(fresh(run)))}"
