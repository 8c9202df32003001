"""Damaged checkpoints, full disks, signals and limits that end a run, and several trainers in one
process.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from ddpm_lib import Shapes
from ddpm_lib.runs import checkpoint
from ddpm_lib.runs.checkpoint import list_checkpoints, prune, save_checkpoint
from ddpm_lib.runs.metrics_file import MetricsFile
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training import Callback, CheckpointError, ConfigError
from ddpm_lib.training.stopping import StopSignals, TimeLimit
from locations import HELPERS
from training_helpers import (
    At,
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_damaged_newest_checkpoint_is_passed_over_and_the_run_ends_the_same(
    tmp_path: Path, name: str
) -> None:
    tiny_trainer(tmp_path / "a").train()
    tiny_trainer(tmp_path / "b", save_every=2, callbacks=[StopAt(4)]).train()
    flip_byte(tmp_path / "b" / "checkpoints" / "step-000000004" / name)
    tiny_trainer(tmp_path / "b", save_every=2).train()
    log = (tmp_path / "b" / "train.log").read_text()
    assert f"step-000000004: {name} is damaged" in log
    assert "step-000000002 at step 2 of 6" in log
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_a_run_with_nothing_but_damage_does_not_silently_start_anew(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, save_every=3).train()
    for path in list_checkpoints(tmp_path / "checkpoints"):
        flip_byte(path / "model.safetensors")
    rows = curve(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"None of the 2 checkpoints .* is complete.*another output_dir"
    ):
        tiny_trainer(tmp_path).train()
    assert curve(tmp_path) == rows
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 2


def test_damaged_checkpoints_ahead_do_not_push_out_good_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 9):
        save_checkpoint(tmp_path, step, {"model": {"w": torch.zeros(2)}}, {})
    assert [p.name for p in prune(tmp_path, newest=3, keep_last=2)] == ["step-000000001"]
    assert [p.name for p in list_checkpoints(tmp_path)] == [
        "step-000000002",
        "step-000000003",
        "step-000000009",
    ]


def test_keep_every(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, save_every=1, keep_last=2, keep_every=3, max_steps=8).train()
    steps = [checkpoint.step_of(p) for p in list_checkpoints(tmp_path / "checkpoints")]
    assert steps == [3, 6, 7, 8]


class SmallFiles(Callback):
    """No file may grow past `limit` bytes between two steps, which is what a full disk looks like
    to every writer.
    """

    def __init__(self, first: int, last: int, limit: int) -> None:
        self.first, self.last, self.limit = first, last, limit

    def on_step_end(self, trainer) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        inside = self.first <= trainer.step < self.last
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit if inside else hard, hard))


@contextlib.contextmanager
def limit_lifted_after():
    """Not a fixture: pytest writes its report before fixtures are torn down."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, 3000])
def test_full_disk_does_not_end_training(tmp_path: Path, limit: int) -> None:
    """Neither a checkpoint nor a line of metrics nor a picture; when there is room again, nothing
    is missing.
    """
    options = {
        "save_every": 2,
        "log_every": 1,
        "sample_every": 2,
        "sample_count": 1,
        "sample_steps": 1,
    }
    tiny_trainer(tmp_path / "a", **options).train()
    small = SmallFiles(2, 5, limit)
    with limit_lifted_after():
        result = tiny_trainer(tmp_path / "b", callbacks=[small], **options).train()
    assert result.status == "finished"
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    table = (tmp_path / "b" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["step", "1", "2", "3", "4", "5", "6"]
    assert [p.name for p in list_checkpoints(tmp_path / "b" / "checkpoints")] == ["step-000000006"]
    assert not list((tmp_path / "b" / "checkpoints").glob(".tmp-*"))
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))


def test_full_disk_at_the_end_is_an_error_and_keeps_what_there_was(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, save_every=3, callbacks=[SmallFiles(5, 99, 4096)])
    with (
        limit_lifted_after(),
        pytest.raises(
            CheckpointError, match=r"last checkpoint \(step 6\) could not be written.*Free space"
        ),
    ):
        trainer.train()
    assert "step 6 could not be written" in (tmp_path / "train.log").read_text()
    assert "The last good checkpoint is step-000000003" in (tmp_path / "train.log").read_text()
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "failed"
    assert tiny_trainer(tmp_path).train().status == "finished"


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def full(source, target):
        if "step-000000002" in str(target):
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "rename", full)
    assert tiny_trainer(tmp_path, save_every=2).train().status == "finished"
    log = (tmp_path / "train.log").read_text()
    assert "The checkpoint of step 2 could not be written" in log
    assert "No space left on device" in log
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == [
        "step-000000004",
        "step-000000006",
    ]


def test_output_directory_that_cannot_be_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        ConfigError,
        match=r"file/run cannot be written to \(Not a directory\). Choose another output_dir",
    ):
        tiny_trainer(tmp_path / "file" / "run").train()


def test_metrics_get_new_columns_and_drop_a_half_line(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    file.append({"step": 1, "a": 1.0})
    file.append({"step": 2, "b": float("nan")})
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,a,b", "1,1.0,", "2,,"]
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "a"')
    file = MetricsFile(tmp_path)
    file.cut_back(2)
    file.append({"step": 3, "a": 2.0})
    assert [row["step"] for row in file.rows()] == [1, 2, 3]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[-1] == "3,2.0,"


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    weight = torch.arange(4.0)
    saved = save_checkpoint(tmp_path, 1, {"model": {"a": weight, "b": weight}}, {})
    read = checkpoint.read_tensors(saved.path, "model")
    assert torch.equal(read["a"], weight)
    assert torch.equal(read["b"], weight)


def test_exception_in_a_callback_ends_cleanly(tmp_path: Path) -> None:
    """Status, workers, signal handlers and the progress bar; the run can be continued."""
    from multiprocessing import active_children

    from ddpm_lib.images import save_image

    for i in range(12):
        save_image(Shapes(size=8, n=12)[i]["image"], tmp_path / "images" / f"{i}.png")

    def fail(trainer):
        assert active_children(), "workers run"
        raise RuntimeError("out of ideas")

    handler = signal.getsignal(signal.SIGTERM)
    options = {
        "data": str(tmp_path / "images"),
        "cache": "none",
        "num_workers": 1,
        "save_every": 2,
        "progress": True,
    }
    with pytest.raises(RuntimeError, match="out of ideas"):
        tiny_trainer(tmp_path / "run", callbacks=[At(3, fail)], **options).train()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["step"], status["reason"]) == (
        "failed",
        3,
        "RuntimeError: out of ideas",
    )
    assert not active_children()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert tiny_trainer(tmp_path / "run", **options).train().status == "finished"


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def press_twice(trainer):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path, callbacks=[At(2, press_twice)]).train()
    assert json.loads((tmp_path / "status.json").read_text())["reason"].startswith(
        "KeyboardInterrupt"
    )
    assert list_checkpoints(tmp_path / "checkpoints") == []
    result = tiny_trainer(
        tmp_path, callbacks=[At(2, lambda t: signal.raise_signal(signal.SIGINT))]
    ).train()
    assert (result.status, result.step, result.exit_code) == ("stopped", 2, 130)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.received is None
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.received == "SIGHUP"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_training_in_a_thread(tmp_path: Path) -> None:
    results = []
    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: results.append(tiny_trainer(tmp_path).train()))
    thread.start()
    thread.join(60)
    assert results[0].status == "finished"
    assert signal.getsignal(signal.SIGTERM) is handler


def test_stop_file_is_obeyed_once(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, callbacks=[At(3, lambda t: (t.output_dir / "STOP").touch())])
    assert trainer.train().reason == "found the file STOP"
    assert trainer.train().status == "finished"


def test_time_limit_counts_from_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    limit = TimeLimit(1.0, began=time.monotonic() - 3500)
    assert limit.reached(slowest_step=1.0, save_seconds=1.0) is None
    assert limit.reached(slowest_step=120.0, save_seconds=1.0) == "max_hours=1 reached"
    assert TimeLimit(1.0, began=time.monotonic() - 3601).reached(0.0, 0.0) == "max_hours=1 reached"


def test_slurm_job_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 200))
    limit = TimeLimit(None, began=time.monotonic())
    assert limit.reached(slowest_step=1.0, save_seconds=1.0) is None
    assert "SLURM" in str(limit.reached(slowest_step=1.0, save_seconds=100.0))


def test_second_job_in_a_run_directory_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(HELPERS / "run_tiny.py"), str(tmp_path), "100000"]
    other = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        record = (tmp_path / "metrics.jsonl").stat().st_ino
        with pytest.raises(
            ConfigError, match=rf"is being trained by process {other.pid} on .*another output_dir"
        ):
            tiny_trainer(tmp_path).train()
        assert (tmp_path / "metrics.jsonl").stat().st_ino == record, (
            "the refused job rewrote the other one's records"
        )
    finally:
        other.kill()
        other.wait(240)
    now = Callback()
    now.on_step_end = lambda trainer: trainer.stop("enough")
    assert tiny_trainer(tmp_path, max_steps=10**6, callbacks=[now]).train().reason == "enough"


def test_train_again_keeps_the_logging_window(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "a").train()
    trainer = tiny_trainer(tmp_path / "b", callbacks=[StopAt(3)])
    trainer.train()
    trainer.train()
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_train_again_after_an_error_forgets_what_was_asked_of_the_last_call(tmp_path: Path) -> None:
    def fail(trainer):
        trainer.log({"half": 1.0})
        trainer.save()
        raise RuntimeError("once")

    trainer = tiny_trainer(tmp_path, callbacks=[At(3, fail)], log_every=1)
    with pytest.raises(RuntimeError, match="once"):
        trainer.train()
    trainer.train()
    assert not any("half" in row for row in curve(tmp_path))
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == ["step-000000006"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_leaves_the_process_as_it_was(tmp_path: Path, precision: str) -> None:
    diffusion = tiny_diffusion()
    attributes = set(diffusion.__dict__)
    before = (
        torch.get_rng_state(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
    )
    inside = []
    look = At(2, lambda t: inside.append(torch.are_deterministic_algorithms_enabled()))
    tiny_trainer(
        tmp_path, diffusion, mixed_precision=precision, deterministic=True, callbacks=[look]
    ).train()
    assert inside == [True]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before[
        1:
    ]
    assert set(diffusion.__dict__) == attributes
    assert not diffusion.training
    copy.deepcopy(diffusion)


def test_two_trainers_of_two_precisions_take_turns(tmp_path: Path) -> None:
    """accelerate keeps the precision once per process: the first trainer must not continue in the
    second one's.
    """
    tiny_trainer(tmp_path / "a", mixed_precision="bf16").train()
    first = tiny_trainer(tmp_path / "b", mixed_precision="bf16", callbacks=[StopAt(2)])
    first.train()
    tiny_trainer(tmp_path / "c", mixed_precision="no", max_steps=1).train()
    seen = []
    real = first.diffusion.model.conv_in.forward
    first.diffusion.model.conv_in.forward = lambda x: (seen.append(real(x).dtype), real(x))[1]
    first.train()
    assert set(seen) == {torch.bfloat16}
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))


def test_trainer_gets_the_device_it_asks_for_after_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import PartialState

    PartialState(cpu=True)
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("meta"))
    trainer = tiny_trainer(tmp_path)
    trainer.prepare()
    assert trainer.device.type == "cpu"
    assert PartialState().device.type == "meta", "the other's state is given back"


def test_launchers_accumulation_setting_does_not_scale_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_steps": 1, "log_every": 1}
    tiny_trainer(tmp_path / "a", **options).train()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    tiny_trainer(tmp_path / "b", **options).train()
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_sample_before_train(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).train()
    fresh = tiny_trainer(tmp_path, tiny_diffusion(seed=1))
    trained = tiny_trainer(tmp_path)
    trained.train()
    assert torch.equal(fresh.sample(2, num_steps=2), trained.sample(2, num_steps=2))
    assert not torch.equal(
        fresh.sample(2, num_steps=2), fresh.sample(2, num_steps=2, weights="model")
    )
    with pytest.raises(ConfigError, match="weights must be 'ema' or 'model'; got 'best'"):
        fresh.sample(2, weights="best")


def test_what_fails_on_the_main_process_fails_on_the_others() -> None:
    """Instead of waiting for it in the next collective."""
    told = []

    class Main(Processes):
        def from_main(self, value):
            told.append(value)
            return value

    class Other(Processes):
        def from_main(self, value):
            return told[0]

    main, other = Main(0, 2), Other(1, 2)

    def fail():
        raise ConfigError("no such thing")

    with pytest.raises(ConfigError, match="no such thing"):
        main.on_main(fail)
    with pytest.raises(RuntimeError, match="main process failed with ConfigError: no such thing"):
        other.on_main(fail)
    told.clear()
    assert main.on_main(lambda: 3) == other.on_main(fail) == 3
