"""Which paths lead to archives of pictures, or into one."""

from __future__ import annotations

from pathlib import Path

ARCHIVES = (".zip", ".tar")


def archive_in(path: Path) -> tuple[Path, str] | None:
    """Split a path into that of an archive and what follows: pets.zip/train is the folder train in
    it. None where no part of it is an archive.
    """
    for whole in (path, *path.parents):
        if whole.suffix.lower() in ARCHIVES and whole.is_file():
            return whole, path.relative_to(whole).as_posix().removeprefix(".")
    return None


def shards_in(folder: Path) -> list[Path]:
    """Return the archives directly in a folder, in the order of their names."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in ARCHIVES and entry.is_file() and entry.name[:1] != "."
    )
