"""One run directory, one trainer."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
from pathlib import Path

from ddpm_lib.core import file_locks as locks
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import (
    NotAFileOfOursError,
    open_own,
    read_at_start,
    write_at_start,
)
from ddpm_lib.core.paths import another, fresh
from ddpm_lib.core.spelling import option


class RunLock:
    """Keeps a second job out of a run directory while one trains in it.

    The file names its owner, and is emptied when it lets go: a name without a lock is that of a run
    that was killed. Where the file system has no locks, the name is all there is.

    Args:
        run: The run directory; it is made where it is not there.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / ".lock"
        self._handle: int | None = None
        self._made: list[Path] = []

    def acquire(self) -> str | None:
        """Take the lock.

        Returns:
            A line about the former owner, if it was killed (or may still run, where there are no
            locks), else None.

        Raises:
            ConfigError: If another process holds it, naming that process; or if the directory
                cannot be written to.
        """
        try:
            self._make_folders()
            handle, owner, trouble = self._locked_file()
        except NotAFileOfOursError as error:
            raise ConfigError(str(error)) from error
        except OSError as error:
            self._remove_folders()
            raise unwritable(self.path.parent, error) from error
        self._handle = handle
        if trouble is not None and locks.lives_here(owner):
            self._close()
            raise taken(self.path.parent, owner)
        job = os.environ.get("SLURM_JOB_ID")
        name = f"process {os.getpid()} on {socket.gethostname()}" + (
            f", SLURM job {job}" if job else ""
        )
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(handle, 0)
            write_at_start(handle, name.encode("utf-8", "replace"))
        if trouble is not None:
            note = f"{self.path.parent} has no file locks ({trouble})"
            return (
                f"{note}; {owner} may still train in it."
                if owner
                else f"{note}: start only one job in it."
            )
        return (
            f"The last run here ({owner}) ended without a word, as when it is killed."
            if owner
            else None
        )

    def _make_folders(self) -> None:
        missing = [p for p in (self.path.parent, *self.path.parent.parents) if not p.exists()]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                self._made.append(folder)
        if not self.path.parent.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _locked_file(self) -> tuple[int, str, str | None]:
        """Return the open lock file, whom it names, and why there are no locks here, if so.

        Raises:
            ConfigError: If another process holds it.
        """
        while True:
            there = os.path.lexists(self.path)
            handle = open_own(self.path, os.O_RDWR | os.O_CREAT)
            try:
                trouble = None
                owner = read_at_start(handle, 1000).decode("utf-8", "replace").strip()
                try:
                    locks.take(handle)
                except BlockingIOError:
                    raise taken(self.path.parent, owner) from None
                except OSError as error:
                    trouble = error.strerror or str(error)
                # A start that failed removes its lock file: one that is not at its path any more
                # keeps nobody out.
                if self.path.exists() and os.path.samestat(os.stat(self.path), os.fstat(handle)):
                    if not there:
                        self._made.append(self.path)
                    return handle, owner, trouble
            except BaseException:
                locks.let_go(handle)
                raise
            locks.let_go(handle)

    def release(self) -> None:
        """Let go of the lock, taking the name out."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)
        self._close()

    def abandon(self) -> None:
        """Let go of the lock after a start that came to nothing, and remove what it made and nobody
        has used since.
        """
        if self.path in self._made:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.release()
        self._remove_folders()

    def _remove_folders(self) -> None:
        for folder in reversed([p for p in self._made if p != self.path]):
            with contextlib.suppress(OSError):  # not empty: somebody else's by now
                folder.rmdir()
        self._made.clear()

    def _close(self) -> None:
        if self._handle is not None:
            locks.let_go(self._handle)
            self._handle = None


def taken(run: Path, owner: str) -> ConfigError:
    """Return the error that names who trains in a run directory."""
    return ConfigError(
        f"{run} is being trained by {owner or 'another process'}. Wait for it, or choose"
        f" {another(run)}."
    )


def refuse_taken(run: Path) -> None:
    """Refuse a run directory in which another process trains, before anything is opened; the lock
    itself comes later.

    Only for a process that is alone: among several the main one may hold it already.

    Raises:
        ConfigError: Naming that process.
    """
    several = {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"}
    if all(os.environ.get(name, "1") in ("", "0", "1") for name in several):
        owner = locks.holder(run)
        if owner is not None:
            raise taken(run, owner)


def unwritable(folder: Path, error: OSError) -> ConfigError:
    """Return the error that names a directory without write access, and a place that has it."""
    advice = f"Choose another {option('output_dir')}"
    there = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), Path("."))
    if not there.is_dir():  # a name beside it is free
        free = fresh(there) / folder.relative_to(there)
        advice += f", such as {shlex.quote(str(free))}: {there} is no folder"
    elif folder.name and os.access(".", os.W_OK) and there.resolve() != Path.cwd():
        free = Path("runs", folder.name)
        advice += f", such as {shlex.quote(str(fresh(free) if os.path.lexists(free) else free))}"
    reason = error.strerror or error
    return ConfigError(f"The run directory {folder} cannot be written to ({reason}). {advice}.")
