"""What lies below a folder: pictures, and other files by extension."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ddpm_lib.data.names import show
from ddpm_lib.data.run_folders import is_run_directory
from ddpm_lib.data.suffixes import UNSUPPORTED

Entry = tuple[bytes, int, int, str | None]
"""Of a picture: relative name, size in bytes, time of last change in ns, what is wrong with it."""

_NO_DATA = frozenset(
    (
        b"@eadir",
        b"__macosx",
        b".appledouble",
        b".appledb",
        b"lost+found",
        b".ipynb_checkpoints",
        b".thumbnails",
        b".thumbs",
        b"$recycle.bin",
        b"#recycle",
        b"@recycle",
        b".trash",
        b"system volume information",
    )
)
"""Folders that systems make beside pictures, whatever they hold; lower case."""
_JUNK = frozenset((b"thumbs.db", b"desktop.ini"))
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


@dataclass
class Walked:
    """What lies below a folder.

    Attributes:
        found: The pictures.
        others: Other files, counted by extension.
        foreign: Pictures of kinds that are not supported, counted by extension.
        examples: One name of each extension that is no picture's.
        runs: Run directories, which are left out.
    """

    found: list[Entry]
    others: Counter[bytes]
    foreign: Counter[bytes]
    examples: dict[bytes, bytes]
    runs: list[bytes]


def walk(root: bytes, extensions: frozenset[bytes], left: Counter[str]) -> Walked:
    """Find the pictures below a folder and count all other files.

    Args:
        root: The folder.
        extensions: Of pictures, in lower case.
        left: Counts the folders that are left out, by name.
    """
    found: list[Entry] = []
    others: Counter[bytes] = Counter()
    foreign: Counter[bytes] = Counter()
    examples: dict[bytes, bytes] = {}
    runs: list[bytes] = []
    for name, entry in _entries(root, b"", set(), left, runs):
        extension = os.path.splitext(name)[1].lower()
        if extension not in extensions:
            examples.setdefault(extension or b"(no extension)", name)
            (foreign if extension in UNSUPPORTED else others)[extension or b"(no extension)"] += 1
            continue
        size, mtime, problem = 0, 0, None
        try:
            info = entry.stat()
            size, mtime = info.st_size, info.st_mtime_ns
            if not stat.S_ISREG(info.st_mode):
                problem = f"{_KINDS.get(stat.S_IFMT(info.st_mode), 'no regular file')}, not a file"
        except FileNotFoundError:
            problem = "a link to a file that does not exist"
        except OSError as error:
            problem = (
                "a link that leads to itself"
                if entry.is_symlink()
                else (error.strerror or str(error))
            )
        found.append((name, size, mtime, problem))
    return Walked(found, others, foreign, examples, runs)


def is_left_out(name: bytes) -> bytes | None:
    """Return the part of a file's name for which it is left out: that of a folder which systems
    make, or b"" for hidden files and folders and for junk; None for others.
    """
    *folders, base = name.split(b"/")
    made = next((part for part in folders if part.lower() in _NO_DATA), None)
    if made is not None:
        return made
    hidden = any(part.startswith(b".") for part in (*folders, base)) or base.lower() in _JUNK
    return b"" if hidden else None


def _entries(
    root: bytes, below: bytes, above: set[tuple[int, int]], left: Counter[str], runs: list[bytes]
) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    """Yield every file below `root`, following links to folders but never in a circle, without
    hidden ones and those of run directories, whose pictures are samples.
    """
    folder = os.path.join(root, below) if below else root
    info = os.stat(folder)
    if (info.st_dev, info.st_ino) in above:
        return
    above = above | {(info.st_dev, info.st_ino)}
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        raise PermissionError(
            f"No permission to read the folder {show(folder)!r}. Ask its owner, or move it away."
        ) from None
    if is_run_directory({entry.name for entry in entries}):
        runs.append(below)
        return
    for entry in entries:
        if entry.name.lower() in _NO_DATA:
            left[show(entry.name)] += 1
            continue
        if entry.name.startswith(b".") or entry.name.lower() in _JUNK:
            continue
        name = below + b"/" + entry.name if below else entry.name
        try:
            is_folder = entry.is_dir()
        except OSError:
            is_folder = False
        if is_folder:
            yield from _entries(root, name, above, left, runs)
        else:
            yield name, entry
