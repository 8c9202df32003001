"""Who holds a run directory; light, because looking must not load torch.

The lock belongs to the open file, not to the process as POSIX' record locks do: those are dropped
by *any* close of the file in the process, for example by a callback that copies the run. Forked
children would share it and keep it after their parent's death, so they close it. Who only asks
takes nothing, and needs no more than the right to read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import struct
from pathlib import Path
from typing import Any

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import msvcrt
except ImportError:  # everything but Windows
    msvcrt = None

_OWNER = re.compile(r"process (\d+) on (\S+?)(?:, SLURM job \S+)?")
_FLOCK = "hhqqi4x"  # l_type, l_whence, l_start, l_len, l_pid of Linux on 64 bits
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
_FAR = 1 << 30
"""The byte that is locked on Windows, where nobody reads what is: far behind the name."""

_held: set[int] = set()


def _forget_in_child() -> None:
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def lives_here(owner: str) -> bool:
    """Say whether a lock file's owner ("process 12 on n1") is another process that lives on this
    host.
    """
    match = _OWNER.fullmatch(owner)
    if not match or match[2] != socket.gethostname() or int(match[1]) == os.getpid():
        return False
    if msvcrt is not None:  # asking with signal 0 would interrupt it there; and there are locks
        return False
    try:
        os.kill(int(match[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _host(owner: str) -> str:
    match = _OWNER.fullmatch(owner)
    return match[2] if match else ""


def take(handle: int) -> None:
    """Lock an open file against all others, without waiting, until `let_go`, or until this process
    ends.

    Raises:
        BlockingIOError: If it is locked already.
        OSError: If there are no locks here.
    """
    if fcntl is None and msvcrt is None:
        raise OSError(errno.ENOLCK, "this system has no file locks")
    try:
        if fcntl is None:
            _lock_far_byte(handle, msvcrt.LK_NBLCK)
        else:
            _open_file_lock(handle)
    except OSError as error:
        if error.errno in _TAKEN:
            raise BlockingIOError(error.errno, error.strerror) from error
        raise
    _held.add(handle)


def _open_file_lock(handle: int) -> None:
    if hasattr(fcntl, "F_OFD_SETLK"):
        try:
            fcntl.fcntl(
                handle, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            )
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_far_byte(handle: int, how: int) -> None:
    os.lseek(handle, _FAR, os.SEEK_SET)
    msvcrt.locking(handle, how, 1)


def let_go(handle: int) -> None:
    """Unlock a file and close it; a child that was forked just now may have it open still, so
    closing is not enough.
    """
    _held.discard(handle)
    if fcntl is not None:
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(
                handle, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
            )
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
    elif msvcrt is not None:
        with contextlib.suppress(OSError):
            _lock_far_byte(handle, msvcrt.LK_UNLCK)
    os.close(handle)


def is_locked(handle: int) -> bool | None:
    """Say whether somebody has locked a file that is open for reading, taking nothing; None where
    it cannot be known.
    """
    if fcntl is None and msvcrt is None:
        return None
    if fcntl is None:
        try:
            _lock_far_byte(handle, msvcrt.LK_NBLCK)
        except OSError as error:
            return True if error.errno in _TAKEN else None
        _lock_far_byte(handle, msvcrt.LK_UNLCK)
        return False
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    for name in ("F_OFD_GETLK", "F_GETLK"):
        if hasattr(fcntl, name) and hasattr(
            fcntl, "F_OFD_GETLK"
        ):  # elsewhere the structure is laid out otherwise
            with contextlib.suppress(OSError):
                answer = fcntl.fcntl(handle, getattr(fcntl, name), question)
                return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in _TAKEN else None
    fcntl.flock(handle, fcntl.LOCK_UN)
    return False


def look(run: Path) -> tuple[bool | None, str]:
    """Return whether a process trains in a run directory now (None: it cannot be known), and whom
    its lock file names.

    A name without a lock is that of a process that ended without a word.
    """
    try:
        handle = os.open(run / ".lock", os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        return False, ""
    except OSError:
        return None, ""
    try:
        owner = os.read(handle, 1000).decode("utf-8", "replace").strip()
        held = is_locked(handle)
    except OSError:
        return None, ""
    finally:
        os.close(handle)
    if held is None and (not owner or _host(owner) == socket.gethostname()):
        held = lives_here(owner)  # no locks here: on the owner's own host the name decides
    return held, owner


def holder(run: Path) -> str | None:
    """Return who trains in a run directory now, or None where nobody does or nobody can tell."""
    held, owner = look(run)
    return (owner or "another process") if held else None
