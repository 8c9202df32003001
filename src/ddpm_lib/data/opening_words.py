"""What is said when a set is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ddpm_lib.data.file_lists import FileList, Files
from ddpm_lib.data.source import Source


def options_of_files(files: Files | None) -> Any:
    """Return a list of images as it is remembered: its path, or the names."""
    if files is None or isinstance(files, (str, os.PathLike)):
        return None if files is None else os.fspath(files)
    return [os.fspath(name) for name in files]


def roots_of(source: Source) -> tuple[Path, ...]:
    """Return the folder that names of a source start from, where they are those of files."""
    root = getattr(source, "root", None)
    return (root,) if isinstance(root, Path) else ()


def called(data: Any) -> str:
    """Return what to call data in a message."""
    if isinstance(data, (str, os.PathLike)):
        return repr(os.fspath(data))
    return f"the data ({type(data).__name__})"


def said_of(listed: FileList, count: int, source: Source) -> str:
    """Say in a line how many images a list leaves."""
    return f"{count:,} of {len(source):,} images are used: those that {listed.where} names"
