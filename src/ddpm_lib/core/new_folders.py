"""Folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import beside, flush
from ddpm_lib.core.text import printable


def refuse_taken(folder: str | Path) -> None:
    """Refuse a name at which something lies; an empty folder may.

    Raises:
        ConfigError: Saying what lies there.
    """
    folder = Path(folder)
    if folder.is_dir() and not folder.is_symlink():
        first = next(iter(sorted(folder.iterdir())), None)
        if first is None:
            return
        what = f"holds {printable(first.name)}"
    elif os.path.lexists(folder):
        what = "is a link" if folder.is_symlink() else "is no folder"
    else:
        return
    raise ConfigError(
        f"{printable(folder)} {what}, and nothing is overwritten. Give a name that is free."
    )


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Give an empty folder to write into; once that is done it gets its name.

    Args:
        folder: The name, at which there is nothing or an empty folder.

    Raises:
        ConfigError: If something lies there.
        OSError: If the disk refuses; nothing half-written stays.
    """
    folder = Path(folder)
    refuse_taken(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = beside(folder)
    shutil.rmtree(aside, ignore_errors=True)  # of a process of the same number before us
    try:
        aside.mkdir()
        yield aside
        for path in sorted(aside.rglob("*")):
            flush(path)
        flush(aside)
        refuse_taken(folder)
        os.rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush(folder.parent)
