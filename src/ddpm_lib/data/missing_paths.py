"""Paths that lead nowhere: what is wrong with them, and what may have been meant."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from ddpm_lib.core.registry import nearest
from ddpm_lib.data.kinds import LISTED, SUFFIXES
from ddpm_lib.data.torchvision_sets import set_named

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def may_be_hub_name(written: str) -> bool:
    """Say whether what is no path can be the name of a dataset of the hub."""
    files = (".npz", ".npy", ".parquet", *SUFFIXES)
    return _HUB_NAME.fullmatch(written) is not None and Path(written).suffix.lower() not in files


def look_for(written: str) -> str | None:
    """Refuse a path that leads nowhere, opening nothing; return a note on what may be a hub name.

    Raises:
        FileNotFoundError: If there is no such path, naming one that is nearly called so.
    """
    path = Path(written).expanduser()
    if written == "shapes" or path.exists() or set_named(written) is not None:
        return None
    if glob.has_magic(written) and glob.glob(str(path), recursive=True):
        return None
    if os.path.lexists(path) or not may_be_hub_name(written):
        raise FileNotFoundError(missing_path(path, written))
    like = nearest_path(path)
    meant = f" (did you mean {like!r}?)" if like else ""
    return (
        f"{written!r} is no local path{meant}; taken for a dataset of the hub, which is not opened."
    )


def nearest_path(path: Path) -> str | None:
    """Return the path of the entry whose name is nearest, if the folder is there."""
    if not path.parent.is_dir():
        return None
    hint = nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    return str(path.parent / hint) if hint else None


def missing_path(path: Path, written: str) -> str:
    """Say what is wrong with a path that leads nowhere, and what may have been meant."""
    parent = path.parent
    if _URL.match(written):
        return f"{written!r} is an address, not a path. Download what it names, and pass {LISTED}."
    if path.is_symlink() and not path.exists():
        return f"{written!r} is a link to {os.readlink(path)!r}, which does not exist."
    if path.exists():
        return (
            f"{written!r} is no file and no folder (a device, a pipe or a socket). Pass {LISTED}."
        )
    text = f"{written!r} does not exist."
    if parent.is_dir():
        hint = nearest_path(path)
        return (
            f"{text} Did you mean {hint!r}?"
            if hint
            else f"{text} {str(parent)!r} has no such entry."
        )
    while not parent.is_dir():
        parent = parent.parent
    if parent == Path():  # nothing of it is there: the word "." would tell nobody where to look
        return f"{text} There is no {path.parts[0]!r} in {str(Path.cwd())!r}."
    return f"{text} The path exists only up to {str(parent)!r}."
