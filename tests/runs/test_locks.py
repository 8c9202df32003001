"""One run directory, one trainer: what must not loosen the lock, what must not take it, and in
which order a start looks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm_lib.cli import main
from ddpm_lib.core import file_locks as locks
from ddpm_lib.runs import lock as run_locks
from ddpm_lib.runs.lock import RunLock
from ddpm_lib.runs.run_status import run_status
from ddpm_lib.training import ConfigError
from locations import HELPERS
from training_helpers import (
    At,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

SMALL = {"dim": 4, "dim_mults": (1,)}


def word(run: Path) -> str:
    return run_status(run).word


@pytest.mark.parametrize(
    "touch",
    [
        lambda run: shutil.copytree(run, run.with_name("backup")),
        lambda run: (run / ".lock").read_text(),
        lambda run: run_status(run),
        lambda run: (run / ".lock").open("a").close(),
    ],
    ids=["backup", "read", "status", "append"],
)
def test_closing_the_lock_file_somewhere_in_the_process_loosens_nothing(
    tmp_path: Path, touch: Callable[[Path], object]
) -> None:
    seen = []

    def look(trainer: object) -> None:
        touch(trainer.output_dir)
        seen.append(word(trainer.output_dir))
        with pytest.raises(ConfigError, match=rf"is being trained by process {os.getpid()} on"):
            RunLock(trainer.output_dir).acquire()

    tiny_trainer(
        tmp_path / "run", tiny_diffusion(**SMALL), max_steps=2, callbacks=[At(1, look)]
    ).train()
    assert seen == ["running"]
    assert word(tmp_path / "run") == "finished"


def child_that_waits(started: object, event: object) -> None:
    started.set()
    event.wait(240)


def test_a_forked_child_that_outlives_the_trainer_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As loader workers do for a moment when their trainer is killed: the next start must not be
    refused.
    """
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    context = multiprocessing.get_context("fork")
    started, event = context.Event(), context.Event()
    child = context.Process(target=child_that_waits, args=(started, event))
    child.start()
    try:
        assert started.wait(240)
        os.close(lock._handle)  # all that a SIGKILL does
        locks._held.discard(lock._handle)
        assert "ended without a word" in RunLock(tmp_path / "run").acquire()
    finally:
        event.set()
        child.join(60)


@pytest.mark.parametrize("missing", [("fcntl",), ("fcntl", "flock")], ids=["flock", "posix"])
def test_file_systems_that_know_only_other_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    def unknown(*args: object) -> None:
        raise OSError(22, "Invalid argument")

    for name in missing:
        monkeypatch.setattr(locks.fcntl, name, unknown)
    lock = RunLock(tmp_path)
    assert lock.acquire() is None
    if "flock" not in missing:
        with pytest.raises(ConfigError, match=rf"is being trained by process {os.getpid()} on"):
            RunLock(tmp_path).acquire()
    else:  # such a lock is the process's: only another one is kept out
        code = (
            "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / ".lock")], capture_output=True, text=True
        )
        assert "BlockingIOError" in done.stderr
    lock.release()
    assert RunLock(tmp_path).acquire() is None


def test_asking_takes_nothing_and_needs_no_right_to_write(tmp_path: Path) -> None:
    """While a handle asks, and after, a start is not refused; the answer is the same through a
    read-only file.
    """
    lock = RunLock(tmp_path)
    lock.acquire()
    handle = os.open(tmp_path / ".lock", os.O_RDONLY)
    try:
        assert locks.is_locked(handle) is True
        lock.release()
        assert locks.is_locked(handle) is False
        assert RunLock(tmp_path).acquire() is None
    finally:
        os.close(handle)


def test_a_lock_file_that_must_not_be_read_does_not_mean_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"status": "running", "step": 3}))
    real = os.open

    def forbidden(path: object, *args: object, **options: object) -> int:
        if str(path).endswith(".lock"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    (tmp_path / ".lock").write_text("process 1 on n1")
    assert word(tmp_path) == "killed"
    monkeypatch.setattr(os, "open", forbidden)
    assert word(tmp_path) == "running"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_another_user_sees_a_running_job(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    (tmp_path / "status.json").write_text(json.dumps({"status": "running", "step": 3}))
    os.chmod(tmp_path, 0o755)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == os.getuid() and folder not in (Path("/"), Path("/tmp")):
            os.chmod(folder, 0o755)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # nothing but files from here on
        try:
            os.setgid(65534)
            os.setuid(65534)
            os.write(write, word(tmp_path).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"running"
    os.close(read)
    lock.release()


def waited_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_two_jobs_at_the_worst_moments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One opens its data, or saves its last checkpoint, when the other starts: no step is lost,
    both ways round.
    """
    run = tmp_path / "run"
    tiny_trainer(run, max_steps=4, save_every=2).train()
    tiny_trainer(tmp_path / "twin", max_steps=8, save_every=2).train()
    capsys.readouterr()
    old = subprocess.Popen(
        [sys.executable, str(HELPERS / "run_held.py"), str(run), "6"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for mark, sign in (("opening", "open"), ("saving", "save")):
            waited_for(run.with_suffix(f".{mark}"), old)
            newer = tiny_trainer(run, max_steps=8, save_every=2)
            with pytest.raises(ConfigError, match=rf"is being trained by process {old.pid} on"):
                newer.train()
            assert capsys.readouterr().err == "", "nothing is announced, nothing is opened"
            assert word(run) == "running"
            run.with_suffix(f".{sign}").touch()
        assert old.wait(120) == 0
    finally:
        old.kill()
        old.communicate()
    assert newer.train().step == 8
    assert "Resumed" in capsys.readouterr().err
    assert curve(run) == curve(tmp_path / "twin")
    assert_same_tensors(final_tensors(run), final_tensors(tmp_path / "twin"))


def test_a_trainer_that_looked_before_another_process_trained_looks_again(tmp_path: Path) -> None:
    even = {"save_every": 2, "lr_schedule": "constant", "ema_decay": 0.9}
    first = tiny_trainer(tmp_path / "run", max_steps=6, **even)
    first.prepare()
    tiny_trainer(tmp_path / "run", max_steps=4, **even).train()
    assert first.train().step == 6
    assert [row["step"] for row in curve(tmp_path / "run")] == [2, 4, 6]
    tiny_trainer(tmp_path / "twin", max_steps=6, **even).train()
    assert_same_tensors(final_tensors(tmp_path / "run"), final_tensors(tmp_path / "twin"))


def test_the_command_is_refused_before_it_opens_what_building_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class-conditional networks need the data to be built; a directory that is taken is said
    before.
    """
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    assert (
        main(
            [
                "train",
                str(tmp_path / "no such data"),
                "--class-conditional",
                "--output-dir",
                str(tmp_path / "run"),
            ]
        )
        == 2
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        f"ddpm train: {tmp_path / 'run'} is being trained by process {os.getpid()}"
    )
    lock.release()


def test_processes_of_one_run_do_not_refuse_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "2")
        run_locks.refuse_taken(tmp_path)
        monkeypatch.delenv(name)
        with pytest.raises(ConfigError, match="is being trained by"):
            run_locks.refuse_taken(tmp_path)
    lock.release()
    run_locks.refuse_taken(tmp_path)


def test_a_lock_file_that_its_owner_removes_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, a failed start has taken the file away: the lock is
    taken on the new one.
    """
    (tmp_path / ".lock").touch()
    real, times = locks.take, []

    def late(handle: int) -> None:
        if not times:
            (tmp_path / ".lock").unlink()
        times.append(handle)
        real(handle)

    monkeypatch.setattr(locks, "take", late)
    lock = RunLock(tmp_path)
    lock.acquire()
    assert len(times) == 2
    with pytest.raises(ConfigError, match="is being trained by"):
        RunLock(tmp_path).acquire()
    lock.release()
