"""One run directory, one trainer."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import IO

from ddpm_lib.training.config import ConfigError


class RunLock:
    """Keeps a second job out of a run directory while one trains in it.

    A POSIX record lock: the system drops it with the process, however that ends, and forked loader workers do not inherit
    it, so nothing stale stays. File systems without locks, and Windows, go without.

    Args:
        run: The run directory.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / ".lock"
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ConfigError: If another process holds it, naming that process.
        """
        try:
            import fcntl
        except ImportError:
            return
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(
                    f"{self.path.parent} is being trained by {holder}. Wait for it, or choose another output_dir."
                ) from error
            return
        file.truncate(0)
        job = os.environ.get("SLURM_JOB_ID")
        file.write(f"process {os.getpid()} on {socket.gethostname()}" + (f", SLURM job {job}" if job else ""))
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let go of the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None
