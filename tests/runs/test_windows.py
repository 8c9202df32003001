"""Files as Windows has them, on this system: no directories to open, no flushing of what is only
read, no reading and writing at a place, other locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddpm_lib import Shapes
from ddpm_lib.core import file_locks, files
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.runs.lock import RunLock
from ddpm_lib.training.option_values import wanted_kind
from training_helpers import tiny_trainer


class Locks:
    """msvcrt's locks: of bytes, against every other open file, this process's included."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], int] = {}

    def locking(self, handle: int, how: int, count: int) -> None:
        key = os.fstat(handle).st_ino, os.lseek(handle, 0, os.SEEK_CUR)
        if self.held.get(key, handle) != handle or (how == self.LK_UNLCK and key not in self.held):
            raise OSError(errno.EACCES, "Permission denied")
        if how == self.LK_UNLCK:
            del self.held[key]
        else:
            self.held[key] = handle


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    seen = SimpleNamespace(flushed=0, locks=Locks())
    real_open, real_fsync = os.open, os.fsync

    def open_file(path: Any, *args: Any, **options: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, *args, **options)

    def fsync(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        seen.flushed += 1
        real_fsync(handle)

    monkeypatch.setattr(shutil, "_use_fd_functions", False)
    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.delattr(os, "pwrite")
    monkeypatch.delattr(os, "pread")
    monkeypatch.setattr(os, "kill", lambda *a: pytest.fail("a signal ends processes there"))
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(file_locks, "fcntl", None)
    monkeypatch.setattr(file_locks, "msvcrt", seen.locks)
    return seen


def test_a_run_trains_saves_and_goes_on(tmp_path: Path, windows: SimpleNamespace) -> None:
    for steps in (1, None):
        trainer = tiny_trainer(
            tmp_path, data=Shapes(size=8, n=24), max_steps=4, keep_last=2, save_every=1
        )
        assert trainer.train(steps).step == (steps or 4)
    assert windows.flushed > 8
    assert not windows.locks.held
    status = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert status["status"] == "finished"
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-000000003", "step-000000004"]


def test_one_run_directory_one_trainer(tmp_path: Path, windows: SimpleNamespace) -> None:
    first, second = RunLock(tmp_path / "run"), RunLock(tmp_path / "run")
    assert first.acquire() is None
    assert file_locks.look(tmp_path / "run")[0] is True
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        second.acquire()
    first.release()
    assert file_locks.look(tmp_path / "run") == (False, "")
    assert second.acquire() is None
    second.release()


def test_a_table_keeps_its_ends_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "linesep", "\r\n")
    files.write_atomically(tmp_path / "a.csv", "step,loss\r\n1,2\r\n")
    assert (tmp_path / "a.csv").read_bytes() == b"step,loss\r\n1,2\r\n"


def test_a_checkpoint_to_go_back_to_may_have_backslashes(monkeypatch: pytest.MonkeyPatch) -> None:
    path = r"runs\mine\checkpoints\step-000000002"
    with pytest.raises(ConfigError, match="resume must be auto"):
        wanted_kind(path)
    monkeypatch.setattr(os, "sep", "\\")
    assert wanted_kind(path) == wanted_kind(path + "\\") == "checkpoint"
    assert wanted_kind("runs/mine/checkpoints/step-000000002/") == "checkpoint"
