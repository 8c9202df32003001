"""Who holds a run directory; light, because looking must not load torch."""

from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path

_OWNER = re.compile(r"process (\d+) on (\S+?)(?:, SLURM job \S+)?")


def lives_here(owner: str) -> bool:
    """Say whether a lock file's owner ("process 12 on n1") is another process that lives on this host."""
    match = _OWNER.fullmatch(owner)
    if not match or match[2] != socket.gethostname() or int(match[1]) == os.getpid():
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def holder(run: Path) -> str | None:
    """Return who trains in a run directory now, or None; to be asked by other processes than the trainer's."""
    try:
        import fcntl

        with (run / ".lock").open("r+", encoding="utf-8") as file:
            owner = file.read().strip()
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                taken = error.errno in (errno.EACCES, errno.EAGAIN) or lives_here(owner)
                return (owner or "another process") if taken else None
            return None
    except (OSError, ImportError):
        return None
