"""Paths that lead nowhere: what is wrong with them, and what may have been meant."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from ddpm_lib.core.lost_paths import lost, meant
from ddpm_lib.data.archives.archive_files import archive_in
from ddpm_lib.data.kinds import LISTED, SUFFIXES
from ddpm_lib.data.measurements.array_stores import store_in
from ddpm_lib.data.run_folders import is_a_run, is_run_directory
from ddpm_lib.data.torchvision_sets import set_named

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def may_be_hub_name(written: str) -> bool:
    """Say whether what is no path can be the name of a dataset of the hub."""
    files = (".npz", ".npy", ".parquet", *SUFFIXES)
    return _HUB_NAME.fullmatch(written) is not None and Path(written).suffix.lower() not in files


def leads_into(written: str) -> bool:
    """Say whether a path leads into a file that is there: pets.zip/train, scans.h5:images."""
    return archive_in(Path(written).expanduser()) is not None or store_in(written) is not None


def look_for(written: str) -> str | None:
    """Refuse a path that leads nowhere, opening nothing; return a note on what may be a hub name.

    Raises:
        FileNotFoundError: If there is no such path, naming one that is nearly called so.
    """
    path = Path(written).expanduser()
    if not written:
        raise FileNotFoundError(lost(written))
    if path.is_dir() and is_run_directory(set(map(os.fsencode, os.listdir(path)))):
        raise FileNotFoundError(is_a_run(path))
    known = written == "shapes" or path.exists() or leads_into(written)
    if known or set_named(written) is not None:
        return None
    if glob.has_magic(written) and glob.glob(str(path), recursive=True):
        return None
    if os.path.lexists(path) or not may_be_hub_name(written):
        raise FileNotFoundError(missing_path(path, written))
    like = meant(written)
    said = f" (did you mean {like!r}?)" if like else ""
    if like is None and path.parent != Path() and path.parent.is_dir():
        said = f" ({lost(written)})"
    return (
        f"{written!r} is no local path{said}; taken for a dataset of the hub, which is not opened."
    )


def missing_path(path: Path, written: str) -> str:
    """Say what is wrong with a path that leads nowhere, and what may have been meant."""
    if written.startswith("toy:"):
        return (
            f"{written!r} is a toy of points, not of images: `ddpm ablate {written}` trains on it."
        )
    if _URL.match(written) and meant(written) is None:
        return f"{written!r} is an address, not a path. Download what it names, and pass {LISTED}."
    if path.is_symlink() and not path.exists():
        return f"{written!r} is a link to {os.readlink(path)!r}, which does not exist."
    if path.exists():
        return (
            f"{written!r} is no file and no folder (a device, a pipe or a socket). Pass {LISTED}."
        )
    if glob.has_magic(written):
        return f"{written!r} matches no file, seen from {str(Path.cwd())!r}."
    return lost(written)
