"""Checkpoints: the best one, those written beside the training, old formats, every kind of damage,
and disks that refuse.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from ddpm_lib import TrainingConfig
from ddpm_lib.core.file_locks import holder
from ddpm_lib.runs import checkpoint
from ddpm_lib.runs.checkpoint import list_checkpoints, newest_complete, save_checkpoint, step_of
from ddpm_lib.runs.lock import RunLock
from ddpm_lib.training import Callback, CheckpointError, ConfigError, load_run, saving
from locations import FIXTURES
from training_helpers import StopAt, assert_same_tensors, curve, tiny_diffusion, tiny_trainer

SMALL = {"dim": 4, "dim_mults": (1,), "dropout": 0.0}


def trainer_of(run: Path, **options):
    return tiny_trainer(run, tiny_diffusion(**SMALL), **options)


def log_of(run: Path) -> str:
    return (run / "train.log").read_text()


def steps_in(run: Path) -> list[int]:
    return [step_of(p) for p in list_checkpoints(run / "checkpoints")]


class Log(Callback):
    """Log given values of a metric, one per step."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def on_step_end(self, trainer) -> None:
        trainer.log({"score": self.values[trainer.step - 1]})


@pytest.mark.parametrize(("name", "best"), [("score", 2), ("max:score", 5)])
def test_best_checkpoint_is_saved_and_kept(tmp_path: Path, name: str, best: int) -> None:
    options = {"keep_best": name, "keep_last": 2, "save_every": 3, "max_steps": 8}
    values = (3.0, 1.0, 2.0, float("nan"), 9.0, 4.0, 4.0, 4.0)
    trainer_of(tmp_path, callbacks=[Log(*values)], **options).train()
    assert steps_in(tmp_path) == sorted({best, 6, 8})
    assert f"Best score: {values[best - 1]:g} at step {best}." in log_of(tmp_path)
    assert load_run(tmp_path, "best").step == best
    assert load_run(tmp_path).step == 8


def test_best_is_remembered_by_a_resumed_run(tmp_path: Path) -> None:
    options = {"keep_best": "score", "keep_last": 2}
    values = (3.0, 1.0, 2.0, 2.0, 0.5, 2.0)
    for stop in (3, 4, 0):
        trainer_of(tmp_path, callbacks=[Log(*values), StopAt(stop)], **options).train()
    assert 2 not in steps_in(tmp_path)
    assert load_run(tmp_path, "best").step == 5


def test_a_metric_that_never_comes_is_said(tmp_path: Path) -> None:
    trainer_of(tmp_path, keep_best="scoer", callbacks=[Log(*range(6))]).train()
    assert "keep_best: no 'scoer' was logged (did you mean 'score'?). There were: " in log_of(
        tmp_path
    )
    with pytest.raises(
        CheckpointError, match=r"trained without keep_best.*There are: step-000000006"
    ):
        load_run(tmp_path, "best")
    with pytest.raises(ConfigError, match=r'keep_best="val_loss" needs validation. Set val_every'):
        trainer_of(tmp_path, keep_best="val_loss", val_every=0)


def test_saving_beside_the_training_saves_the_same(tmp_path: Path) -> None:
    """The tensors are those of the step of the save, although training has gone on meanwhile."""
    trainer_of(tmp_path / "a", save_every=2, max_steps=7).train()
    trainer_of(tmp_path / "b", save_every=2, max_steps=7, save_async=True).train()
    assert steps_in(tmp_path / "a") == steps_in(tmp_path / "b") == [2, 4, 6, 7]
    for a, b in zip(*(list_checkpoints(tmp_path / run / "checkpoints") for run in "ab")):
        for stem in ("model", "ema", "optimizer"):
            assert_same_tensors(checkpoint.read_tensors(a, stem), checkpoint.read_tensors(b, stem))
    assert " MiB in " in log_of(tmp_path / "a")
    assert " s beside the training." in log_of(tmp_path / "b")


@pytest.mark.slow
def test_never_two_checkpoints_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk slower than training: the next save waits; at the end everything is there."""
    writing, most, go = [], [], threading.Event()
    real = save_checkpoint

    def slow(folder, step, tensors, state):
        writing.append(step)
        most.append(len(writing))
        assert threading.current_thread() is not threading.main_thread()
        go.wait(0.2)
        saved = real(folder, step, tensors, state)
        writing.remove(step)
        return saved

    monkeypatch.setattr(saving.files, "save_checkpoint", slow)
    trainer_of(tmp_path, save_every=1, save_async=True).train()
    assert most == [1] * 6
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_disk_that_refuses_is_said_beside_the_training_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def full(source, target):
        if "step-000000002" in str(target):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(target))
        real(source, target)

    monkeypatch.setattr(os, "rename", full)
    assert trainer_of(tmp_path, save_every=2, save_async=True).train().status == "finished"
    assert "The checkpoint of step 2 could not be written" in log_of(tmp_path)
    assert "Disk quota exceeded" in log_of(tmp_path)
    assert steps_in(tmp_path) == [4, 6]


def test_an_error_of_ours_in_the_thread_is_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving.files, "save_checkpoint", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer_of(tmp_path, save_every=2, save_async=True).train()


def test_ten_points_of_a_save_where_the_disk_is_full(tmp_path: Path) -> None:
    """RLIMIT_FSIZE fails the write of the first file that grows past it: at ten sizes, in each file
    of a checkpoint.
    """
    good = save_checkpoint(tmp_path, 1, {"model": {"w": torch.ones(64)}}, {}).path
    tensors = {
        stem: {"w": torch.zeros(n)}
        for stem, n in (("model", 500), ("optimizer", 1000), ("ema", 2000))
    }
    state = {"long": "x" * 12_000}
    points = [0, 1, 100, 1000, 2000, 3000, 4040, 6000, 8050, 11_000]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = []
    for limit in points:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            save_checkpoint(tmp_path, 2, tensors, state)
        except OSError as error:
            failed.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert newest_complete(tmp_path, pytest.fail).path == good
        assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000001"]
    assert len(failed) == 10
    assert all("File too large" in text for text in failed)
    assert newest_complete(tmp_path, pytest.fail).path == good
    save_checkpoint(tmp_path, 2, tensors, state)


@pytest.mark.slow
def test_a_file_system_without_room(tmp_path: Path) -> None:
    """A real ENOSPC, on a tmpfs of 400 kB; needs the right to mount."""
    (tmp_path / "run").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path / "run")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        run = tmp_path / "run"
        with pytest.raises(CheckpointError, match=r"could not be written. Free space"):
            trainer_of(run, save_every=1).train()
        assert newest_complete(run / "checkpoints", pytest.fail) is not None
        for path in list_checkpoints(run / "checkpoints")[:-1]:
            shutil.rmtree(path)
        assert trainer_of(run, keep_last=2).train().status == "finished"
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "run")], check=True)


def test_too_little_space_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: usage._replace(free=120_000))
    trainer_of(tmp_path / "a").train()
    assert "too little for keep_last=10. Free space, or set keep_last=2." in log_of(tmp_path / "a")
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: usage._replace(free=20_000))
    with pytest.raises(
        ConfigError,
        match=r"needs about 0.09 MiB and .* has 0.02 MiB free: not one fits. Free space",
    ):
        trainer_of(tmp_path / "b").train()


def test_a_run_directory_that_vanishes(tmp_path: Path) -> None:
    """A scratch directory is purged: training goes on, and the next checkpoint makes it anew."""

    class Purge(Callback):
        def on_step_end(self, trainer) -> None:
            if trainer.step == 3:
                shutil.rmtree(trainer.output_dir)

    run = tmp_path / "run"
    assert (
        trainer_of(run, save_every=2, log_every=1, callbacks=[Purge()]).train().status == "finished"
    )
    assert steps_in(run) == [4, 6]
    assert trainer_of(run).train().status == "finished"


def test_a_read_only_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def read_only(path, flags, *args, **options):
        if str(path).startswith(str(tmp_path)) and flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(
        ConfigError,
        match=r"run cannot be written to \(Read-only file system\). Choose another output_dir",
    ):
        trainer_of(tmp_path / "run").train()
    assert not (tmp_path / "run").exists()


def test_directories_that_cannot_be_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems refuse to flush a directory; a file that cannot be flushed is
    another matter.
    """
    real = os.fsync

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    save_checkpoint(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {})
    assert newest_complete(tmp_path, pytest.fail) is not None
    monkeypatch.setattr(
        os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
    )
    with pytest.raises(OSError, match="Input/output"):
        save_checkpoint(tmp_path, 2, {"model": {"w": torch.ones(2)}}, {})


FILES = [
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
]
DAMAGES = ["missing", "empty", "half", "one byte short", *(f"bit {k}" for k in range(7))]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("damage")
    trainer_of(run, save_every=3).train()
    return run / "checkpoints"


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how.startswith("bit"):
        at = (
            len(data) * 8 * (2 * int(how[4:]) + 1) // 14
        )  # spread over the file, and over the bits of a byte
        data[at // 8] ^= 1 << (at + int(how[4:])) % 8
    size = {"empty": 0, "half": len(data) // 2, "one byte short": len(data) - 1}.get(how, len(data))
    path.write_bytes(data[:size])


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_seen_and_named(
    two_checkpoints: Path, tmp_path: Path, name: str, how: str
) -> None:
    """5 files × 11 damages of the newest checkpoint: the one before is taken, and the reason
    said.
    """
    shutil.copytree(two_checkpoints, tmp_path / "checkpoints")
    damage(tmp_path / "checkpoints" / "step-000000006" / name, how)
    lines: list[str] = []
    found = newest_complete(tmp_path / "checkpoints", lines.append)
    assert found is not None
    assert found.path.name == "step-000000003"
    (line,) = lines
    assert line.startswith("Passed over a broken checkpoint: step-000000006: ")
    if name != "manifest.json":
        assert name in line


def test_format_1_still_loads_and_continues(tmp_path: Path) -> None:
    """A checkpoint as the first release wrote it: tests/fixtures/format-1, made by
    tests/helpers/make_format_1.py.
    """
    from make_format_1 import frozen_trainer

    shutil.copytree(FIXTURES / "format-1", tmp_path / "run")
    run = load_run(tmp_path / "run", weights="model")
    assert (run.step, run.class_names[:2]) == (4, ("circle", "square"))
    frozen = checkpoint.read_tensors(
        FIXTURES / "format-1" / "checkpoints" / "step-000000004", "model"
    )
    assert_same_tensors(dict(run.diffusion.model.state_dict()), frozen)
    assert run.diffusion.sample(1, num_steps=2).shape == (1, 3, 8, 8)
    trainer = frozen_trainer(tmp_path / "run", max_steps=6)
    assert trainer.train().step == 6
    assert "Resumed" in log_of(tmp_path / "run")
    assert [row["step"] for row in curve(tmp_path / "run")] == [2, 4, 6]


def test_a_newer_format_is_named(two_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(two_checkpoints / "step-000000006", tmp_path / "step-000000006")
    manifest = tmp_path / "step-000000006" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match=r"format 2, this version reads 1; upgrade ddpm-lib"):
        checkpoint.verify(manifest.parent)


def test_a_stale_lock_is_recognised(tmp_path: Path) -> None:
    trainer_of(tmp_path, max_steps=2).train()
    assert (tmp_path / ".lock").read_text() == ""
    (tmp_path / ".lock").write_text("process 999999999 on gone, SLURM job 7")
    trainer_of(tmp_path, max_steps=3).train()
    assert (
        "The last run here (process 999999999 on gone, SLURM job 7) ended without a word"
        in log_of(tmp_path)
    )
    assert holder(tmp_path) is None


def test_without_file_locks_the_owner_s_name_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for name in ("fcntl", "flock", "lockf"):
        monkeypatch.setattr(fcntl, name, no_locks)
    lock, here = RunLock(tmp_path), socket.gethostname()
    assert "has no file locks (No locks available): start only one job in it." in str(
        lock.acquire()
    )
    (tmp_path / ".lock").write_text(f"process {os.getppid()} on {here}")
    with pytest.raises(ConfigError, match=rf"is being trained by process {os.getppid()} on {here}"):
        lock.acquire()
    (tmp_path / ".lock").write_text(f"process 999999999 on {here}")
    assert "process 999999999" in str(lock.acquire())
    (tmp_path / ".lock").write_text("process 1 on another-node")
    assert "process 1 on another-node may still train in it" in str(lock.acquire())


def test_options_round_trip() -> None:
    config = TrainingConfig(keep_best="max:score", save_async=True)
    assert TrainingConfig.from_options(json.loads(json.dumps(config.to_dict()))) == config
