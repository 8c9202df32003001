"""Files that are ours: opened without following links, written whole or not at all, swept up after
a crash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ddpm_lib.core.text import printable

WINDOWS = os.name == "nt"
"""Whether this system opens no directories and flushes only what is open for writing."""
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


class NotAFileOfOursError(OSError):
    """Something lies where a file of ours belongs that must not be written to: a link, a directory,
    a device.
    """


def open_own(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a file of a run for writing and return its descriptor; a link is not followed, and only
    a plain file is taken.

    Whoever may write into a run directory could otherwise lead what we append or empty to any file
    of the user.

    Args:
        path: The file.
        flags: As for `os.open`, without what concerns links.
        mode: Rights of a new file, before the umask.

    Raises:
        NotAFileOfOursError: Naming the file, if it is a link, a directory or a device.
        OSError: If it cannot be opened.
    """
    names = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT")
    careful = 0
    for name in names:  # the last two are Windows'
        careful |= getattr(os, name, 0)
    try:
        handle = os.open(path, flags | careful, mode)
    except OSError as error:
        if (
            error.errno in (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO)
            or path.is_symlink()
        ):
            raise not_ours(path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise not_ours(path)
    return handle


def try_writing(folder: Path) -> None:
    """Try whether a file can be made in a folder, or in the nearest one above it that exists;
    nothing stays.

    Raises:
        OSError: If not: no permission, a read-only file system, a file in the place of the folder.
    """
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        return


def not_ours(path: Path) -> NotAFileOfOursError:
    """Return the error that names what lies in the place of a file of ours."""
    what = "a link" if path.is_symlink() else "a directory" if path.is_dir() else "no plain file"
    return NotAFileOfOursError(
        f"{printable(path)} is {what}; a file of the run belongs there, and nothing is written to"
        " anything else. Move it away."
    )


@contextlib.contextmanager
def appending(path: Path) -> Iterator[IO[str]]:
    """Open a text file of a run to append to; what cannot be encoded is written as an escape.

    Raises:
        OSError: See `open_own`.
    """
    handle = open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with open(handle, "a", encoding="utf-8", errors="backslashreplace", newline="") as file:
        yield file


@contextlib.contextmanager
def utf8_name(path: Path) -> Iterator[str]:
    """Give a name in UTF-8 under which a file can be read, for readers that take no other."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        handle = os.open(path, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{handle}" if os.path.isdir("/proc/self/fd") else str(path)
        finally:
            os.close(handle)
    else:
        yield str(path)


def flush(path: Path) -> None:
    """Bring a file, or what a directory says of its entries, to the disk itself.

    Windows knows no such thing for directories (NTFS keeps a journal of them), and flushes files
    only through handles that may write.
    """
    if WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise  # some network file systems flush files, but know no such thing for directories
    finally:
        os.close(handle)


def beside(path: Path) -> Path:
    """Return the name under which this process writes a file before it takes the place of
    `path`.
    """
    return path.with_name(f".{path.name[:50]}.{os.getpid()}.tmp")  # a name may have 255 bytes only


def write_aside(path: Path, write: Callable[[Path], Any], *, durable: bool = True) -> None:
    """Let `write` make a file under a temporary name in the same folder, flush it and rename it.

    Args:
        path: Where the file is to be.
        write: Gets the temporary name, under which there is nothing yet.
        durable: Bring file and folder to the disk itself. False is for what is written by the
            thousand and easily made again, as pictures are.

    Raises:
        OSError: If the disk refuses; what was at `path` stays, and nothing half-written.
    """
    temporary = beside(path)
    try:
        temporary.unlink(missing_ok=True)  # of a process of the same number before us, or a trap
        write(temporary)
        if durable:
            flush(temporary)
        if path.is_dir() and not path.is_symlink():
            raise not_ours(path)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        flush(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, see `write_aside`; what cannot be encoded becomes an escape.

    Raises:
        OSError: If the disk refuses; what was there stays, and nothing half-written.
    """

    def write(temporary: Path) -> None:
        handle = open_own(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        options: dict[str, Any] = {"errors": "backslashreplace", "newline": ""}
        with open(handle, "w", encoding="utf-8", **options) as file:
            file.write(text)

    write_aside(path, write)


def write_at_start(handle: int, raw: bytes) -> None:
    """Write bytes at the beginning of an open file; its position is then anybody's guess."""
    if hasattr(os, "pwrite"):
        os.pwrite(handle, raw, 0)
    else:
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, raw)


def read_at_start(handle: int, count: int) -> bytes:
    """Read up to `count` bytes from the beginning of an open file."""
    if hasattr(os, "pread"):
        return os.pread(handle, count, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    return os.read(handle, count)


def write_in_place(path: Path, text: str) -> None:
    """Overwrite the beginning of an existing file, which takes no room on a full disk; the rest
    becomes blanks.

    Args:
        path: The file, which must be at least as long as the text.
        text: What it is to hold, in ASCII.

    Raises:
        OSError: If the file is not there, is too short, or the disk refuses.
    """
    handle = open_own(path, os.O_RDWR)
    try:
        room, raw = os.fstat(handle).st_size, text.encode("ascii", "backslashreplace")
        if len(raw) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_at_start(handle, raw.ljust(room))
        os.fsync(handle)
    finally:
        os.close(handle)


def keep_aside(path: Path, word: str) -> Path:
    """Copy a file as it is to `<name>.<word>`, or the next free name, and return that.

    Raises:
        OSError: If the disk refuses.
    """
    raw = path.read_bytes()
    for number in range(1, 10**6):
        kept = path.with_name(f"{path.name}.{word}{'' if number == 1 else f'-{number}'}")
        try:
            handle = open_own(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            continue
        with open(handle, "wb") as file:
            file.write(raw)
        return kept
    raise OSError(errno.EEXIST, f"every name like {path.name}.{word} is taken")


def sweep(folder: Path) -> list[str]:
    """Remove what processes that were killed in the middle of a write left in a folder; to be
    called by its only writer.

    Returns:
        The names of what went.
    """
    gone: list[str] = []
    if not folder.is_dir():
        return gone
    for entry in folder.iterdir():
        found = _TEMPORARY.fullmatch(entry.name)
        if found and int(found[1]) != os.getpid() and (entry.is_symlink() or entry.is_file()):
            with contextlib.suppress(OSError):
                entry.unlink()
                gone.append(entry.name)
    return gone
