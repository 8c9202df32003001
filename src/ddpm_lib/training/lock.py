"""One run directory, one trainer."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import IO

from ddpm_lib.locks import lives_here
from ddpm_lib.training.config import ConfigError


class RunLock:
    """Keeps a second job out of a run directory while one trains in it.

    A POSIX record lock: the system drops it with the process, however that ends, and forked loader workers do not inherit
    it. The file names its owner, and is emptied when it lets go: a name without a lock is that of a run that was killed.
    Where the file system has no locks, the name is all there is.

    Args:
        run: The run directory.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / ".lock"
        self._file: IO[str] | None = None

    def acquire(self) -> str | None:
        """Take the lock.

        Returns:
            A line about the former owner, if it was killed (or may still run, where there are no locks), else None.

        Raises:
            ConfigError: If another process holds it, naming that process; or if the directory cannot be written to.
        """
        try:
            import fcntl
        except ImportError:
            return None
        try:
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise unwritable(self.path.parent, error) from error
        file.seek(0)
        owner = file.read().strip()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN) or lives_here(owner):
                raise self._taken(owner or "another process") from error
            note = f"{self.path.parent} has no file locks ({error.strerror})"
            return f"{note}; {owner} may still train in it." if owner else f"{note}: start only one job in it."
        file.truncate(0)
        job = os.environ.get("SLURM_JOB_ID")
        file.write(f"process {os.getpid()} on {socket.gethostname()}" + (f", SLURM job {job}" if job else ""))
        file.flush()
        self._file = file
        return f"The last run here ({owner}) ended without a word, as when it is killed." if owner else None

    def _taken(self, owner: str) -> ConfigError:
        return ConfigError(
            f"{self.path.parent} is being trained by {owner}. Wait for it, or choose another output_dir."
        )

    def release(self) -> None:
        """Let go of the lock."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def unwritable(folder: Path, error: OSError) -> ConfigError:
    """Return the error that names a directory in which nothing can be written."""
    return ConfigError(
        f"The run directory {folder} cannot be written to ({error.strerror or error}). Choose another output_dir."
    )
