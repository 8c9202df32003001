"""Where the library keeps what it can make again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_lib.core.files import try_writing

if TYPE_CHECKING:
    from ddpm_lib.core.health import Check


def cache_folder() -> Path:
    """Return where the library keeps what it can make again: $DDPM_LIB_CACHE, else ddpm_lib below
    the user's cache.
    """
    own = os.environ.get("DDPM_LIB_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ddpm_lib"


def check_cache() -> Iterator[Check]:
    """Say where the library's cache is, and whether it can be written to."""
    from ddpm_lib.core.health import Check

    folder = cache_folder()
    try:
        try_writing(folder)
    except OSError as error:
        says = f"{folder} cannot be written to ({error.strerror or error})"
        remedy = "set DDPM_LIB_CACHE to a folder of your own; without, things are made anew"
        yield Check("cache", "note", says, remedy)
    else:
        yield Check("cache", "ok", f"{folder} (DDPM_LIB_CACHE moves it)")
