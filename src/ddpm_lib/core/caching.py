"""Where the library keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return where the library keeps what it can make again: $DDPM_LIB_CACHE, else ddpm_lib below
    the user's cache.
    """
    own = os.environ.get("DDPM_LIB_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ddpm_lib"
