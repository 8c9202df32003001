"""What a shell does to a command line: patterns that it has replaced by the files they match."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def folder_of_pictures(words: Sequence[str]) -> str | None:
    """Return the folder whose pictures the words are, where a shell has put them in the place of
    `folder/*`.

    Args:
        words: Two or more words of a command line.

    Returns:
        The folder as the words spell it; None where they are not files of one folder, or not all of
        its pictures.
    """
    from ddpm_lib.data.suffixes import PICTURES

    paths = [Path(word) for word in words]
    parents = {path.parent for path in paths}
    if len(paths) < 2 or len(parents) != 1 or not all(path.exists() for path in paths):
        return None
    (folder,) = parents

    def is_picture(path: Path) -> bool:
        return (
            path.suffix.lower().encode() in PICTURES
            and not path.name.startswith(".")
            and path.is_file()
        )

    inside = {
        path
        for path in folder.iterdir()
        if is_picture(path) or (path.is_dir() and not path.name.startswith("."))
    }
    if not inside <= set(paths) or not any(is_picture(path) for path in paths):
        return None
    return str(folder)
