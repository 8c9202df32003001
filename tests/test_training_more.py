"""The training loop where things go wrong, or are done twice: disks, damage, signals, threads, leftovers in the process."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
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
from ddpm_lib.training import Callback, CheckpointError, ConfigError, DivergedError
from ddpm_lib.training.sampling import sample_shared
from ddpm_lib.training.stopping import StopSignals, TimeLimit
from training_helpers import StopAt, assert_same_tensors, curve, final_tensors, tiny_diffusion, tiny_trainer

HERE = Path(__file__).parent


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


class At(Callback):
    """Do something after some step."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action = step, action

    def on_step_end(self, trainer) -> None:
        if trainer.step == self.step:
            self.action(trainer)


# --- damaged checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"])
def test_damaged_newest_checkpoint_is_passed_over_and_the_run_ends_the_same(tmp_path: Path, name: str) -> None:
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
    with pytest.raises(CheckpointError, match=r"None of the 2 checkpoints .* is complete.*another output_dir"):
        tiny_trainer(tmp_path).train()
    assert curve(tmp_path) == rows
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 2


def test_damaged_checkpoints_ahead_do_not_push_out_good_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 9):
        save_checkpoint(tmp_path, step, {"model": {"w": torch.zeros(2)}}, {})
    assert [p.name for p in prune(tmp_path, newest=3, keep_last=2)] == ["step-000000001"]
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000000002", "step-000000003", "step-000000009"]


def test_keep_every(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, save_every=1, keep_last=2, keep_every=3, max_steps=8).train()
    steps = [checkpoint.step_of(p) for p in list_checkpoints(tmp_path / "checkpoints")]
    assert steps == [3, 6, 7, 8]


# --- disks ----------------------------------------------------------------------------------------------------------------


class SmallFiles(Callback):
    """No file may grow past `limit` bytes between two steps, which is what a full disk looks like to every writer."""

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
    """Neither a checkpoint nor a line of metrics nor a picture; when there is room again, nothing is missing."""
    options = {"save_every": 2, "log_every": 1, "sample_every": 2, "sample_count": 1, "sample_steps": 1}
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
        pytest.raises(CheckpointError, match=r"last checkpoint \(step 6\) could not be written.*Free space"),
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
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == ["step-000000004", "step-000000006"]


def test_output_directory_that_cannot_be_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        ConfigError, match=r"file/run cannot be written to \(Not a directory\). Choose another output_dir"
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


# --- ends -------------------------------------------------------------------------------------------------------------------


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
    options = {"data": str(tmp_path / "images"), "cache": "none", "num_workers": 1, "save_every": 2, "progress": True}
    with pytest.raises(RuntimeError, match="out of ideas"):
        tiny_trainer(tmp_path / "run", callbacks=[At(3, fail)], **options).train()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["step"], status["reason"]) == ("failed", 3, "RuntimeError: out of ideas")
    assert not active_children()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert tiny_trainer(tmp_path / "run", **options).train().status == "finished"


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    def press_twice(trainer):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path, callbacks=[At(2, press_twice)]).train()
    assert json.loads((tmp_path / "status.json").read_text())["reason"].startswith("KeyboardInterrupt")
    assert list_checkpoints(tmp_path / "checkpoints") == []
    result = tiny_trainer(tmp_path, callbacks=[At(2, lambda t: signal.raise_signal(signal.SIGINT))]).train()
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
    command = [sys.executable, str(HERE / "run_tiny.py"), str(tmp_path), "100000"]
    other = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        record = (tmp_path / "metrics.jsonl").stat().st_ino
        with pytest.raises(ConfigError, match=rf"is being trained by process {other.pid} on .*another output_dir"):
            tiny_trainer(tmp_path).train()
        assert (tmp_path / "metrics.jsonl").stat().st_ino == record, "the refused job rewrote the other one's records"
    finally:
        other.kill()
        other.wait(30)
    now = Callback()
    now.on_step_end = lambda trainer: trainer.stop("enough")
    assert tiny_trainer(tmp_path, max_steps=10**6, callbacks=[now]).train().reason == "enough"


# --- once more in the same process ------------------------------------------------------------------------------------------


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
    before = (torch.get_rng_state(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    inside = []
    look = At(2, lambda t: inside.append(torch.are_deterministic_algorithms_enabled()))
    tiny_trainer(tmp_path, diffusion, mixed_precision=precision, deterministic=True, callbacks=[look]).train()
    assert inside == [True]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before[1:]
    assert set(diffusion.__dict__) == attributes
    assert not diffusion.training
    copy.deepcopy(diffusion)


def test_two_trainers_of_two_precisions_take_turns(tmp_path: Path) -> None:
    """accelerate keeps the precision once per process: the first trainer must not continue in the second one's."""
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


def test_trainer_gets_the_device_it_asks_for_after_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert not torch.equal(fresh.sample(2, num_steps=2), fresh.sample(2, num_steps=2, weights="model"))
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


# --- options ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": ()},
        {"max_grad_norm": None},
        {"deterministic": True},
        {"optimizer": "adam", "weight_decay": 0.1, "lr_schedule": "linear"},
        {"shards": 2, "batch_size": 6, "accumulation_steps": 3},
        {"channels_last": "yes"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_resumed_equals_uninterrupted_with_every_option(tmp_path: Path, options: dict) -> None:
    options = {"val_every": 3, "val_fraction": 0.2, **options}
    tiny_trainer(tmp_path / "a", **options).train()
    tiny_trainer(tmp_path / "b", callbacks=[StopAt(3)], **options).train()
    tiny_trainer(tmp_path / "b", **options).train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_max_grad_norm_clips_and_none_does_not(tmp_path: Path) -> None:
    """With plain Adam statistics off (ε huge), a step is proportional to the gradient that the optimizer saw."""
    moved = []
    for limit in (None, 1e-3):
        diffusion = tiny_diffusion(dropout=0.0)
        before = [p.detach().clone() for p in diffusion.parameters()]
        options = {"adam_eps": 1e6, "learning_rate": 1e6, "warmup_steps": 0, "max_steps": 1, "log_every": 1}
        tiny_trainer(tmp_path / str(limit), diffusion, max_grad_norm=limit, optimizer="adam", **options).train()
        moves = [(p.detach() - b).square().sum() for p, b in zip(diffusion.parameters(), before)]
        moved.append(float(sum(moves)) ** 0.5)
    norm = curve(tmp_path / "None")[0]["grad_norm"]
    assert curve(tmp_path / "0.001")[0]["grad_norm"] == pytest.approx(norm)
    assert moved[0] == pytest.approx(norm, rel=1e-3)
    assert moved[1] == pytest.approx(1e-3, rel=1e-3)


def test_validation_hides_no_labels_and_drops_nothing_out(tmp_path: Path) -> None:
    """With the weights fixed, the loss on fixed images, noise and levels is one number, also for the raw network."""
    for name, averages in (("ema", (0.9,)), ("raw", ())):
        diffusion = tiny_diffusion(num_classes=6, class_drop_prob=0.5, dropout=0.5)
        torch.nn.init.normal_(diffusion.model.conv_out.weight, std=0.1)
        options = {"learning_rate": 1e-30, "val_every": 1, "val_fraction": 0.25, "ema_decay": averages}
        tiny_trainer(tmp_path / name, diffusion, **options).train()
        assert len({row["val_loss"] for row in curve(tmp_path / name)}) == 1
        assert len({row["train_fixed_loss"] for row in curve(tmp_path / name)}) == 1


def test_val_data(tmp_path: Path) -> None:
    from ddpm_lib.images import save_image

    for part, n in (("train", 14), ("val", 6)):
        for i in range(n):
            save_image(Shapes(size=8, n=20)[i]["image"], tmp_path / part / f"{i}.png")
    trainer = tiny_trainer(
        tmp_path / "run", data=str(tmp_path / "train"), val_data=str(tmp_path / "val"), val_every=3, val_max_images=4
    )
    trainer.train()
    assert (len(trainer.dataset), len(trainer.held_out)) == (14, 6)
    assert [row["step"] for row in curve(tmp_path / "run") if "val_loss" in row] == [3, 6]


def test_too_few_images_to_validate_on_is_said(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, data=Shapes(size=8, n=9), val_every=2, val_fraction=0.2).train()
    assert "9 images are too few to hold some out" in (tmp_path / "train.log").read_text()


def test_override_with_another_batch_size_never_draws_the_same_noise_twice(tmp_path: Path) -> None:
    """8 shards of a batch of 8 do not cut a batch of 12: rows would run into the next step's keys."""
    tiny_trainer(tmp_path, batch_size=8, shards=8).train()
    trainer = tiny_trainer(tmp_path, batch_size=12, shards=4, override=True, max_steps=8)
    trainer.prepare()
    draw = trainer.randomness.noise
    both = torch.cat([draw(step, range(12), (3,), "cpu") for step in (6, 7)])
    assert len(both.unique(dim=0)) == 24


def test_shards_stay_what_the_run_began_with_and_say_so(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "a", shards=2).train()
    tiny_trainer(tmp_path / "b", shards=2, callbacks=[StopAt(3)]).train()
    tiny_trainer(tmp_path / "b", shards=3).train()
    assert "shards stays 2, which this run began with; 3 was asked for." in (tmp_path / "b" / "train.log").read_text()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))


def test_averages_that_are_given_up_are_named(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, ema_decay=(0.9, 0.99)).train()
    tiny_trainer(tmp_path, ema_decay=(0.9,), max_steps=7).train()
    assert "The EMA of decay 0.99 is not kept any more" in (tmp_path / "train.log").read_text()


def test_two_callbacks_of_one_class_keep_their_own_state(tmp_path: Path) -> None:
    class Remember(Callback):
        def __init__(self, value=None):
            self.value = value

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    tiny_trainer(tmp_path, callbacks=[Remember(1), Remember(2)]).train()
    again = [Remember(), Remember()]
    tiny_trainer(tmp_path, callbacks=again).train()
    assert [r.value for r in again] == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_sampler": "dddim"}, r"Unknown sampler 'dddim'. Did you mean 'ddim'"),
        ({"sample_guidance_scale": 2.0}, r"sample_guidance_scale=2 needs a condition.*class_drop_prob"),
    ],
)
def test_what_would_end_the_run_at_its_first_grid_is_refused_at_once(
    tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_trainer(tmp_path, sample_every=100, **options)


def test_fp16_is_refused_on_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mixed_precision='fp16' does not train on cpu. Use bf16 or no"):
        tiny_trainer(tmp_path, mixed_precision="fp16").train()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_device_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device='cuda' is not available here \(torch .*available: .*cpu"):
        tiny_trainer(tmp_path, device="cuda").train()


def test_diverged_run_ends_its_workers_and_says_so(tmp_path: Path) -> None:
    poison = At(2, lambda t: torch.nn.init.constant_(t.diffusion.model.conv_in.weight, float("inf")))
    with pytest.raises(DivergedError, match=r"not finite at step 3.*conv_in.weight.*There is no checkpoint yet"):
        tiny_trainer(tmp_path, callbacks=[poison]).train()


def test_failing_tracker_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        name = "away"

        def log(self, values, step=None, **kwargs):
            raise ConnectionError("no route to host")

        def finish(self):
            raise AssertionError("finish of a tracker that failed")

    trainer = tiny_trainer(tmp_path, callbacks=[At(1, lambda t: t.accelerator.trackers.append(Away()))])
    with caplog.at_level(logging.WARNING, "ddpm_lib"):
        assert trainer.train().status == "finished"
    assert sum("no route to host" in record.getMessage() for record in caplog.records) == 1
    assert len(curve(tmp_path)) == 3


def test_shared_sampling_shares_seeds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rank:
        num_processes, device = 2, torch.device("cpu")

        def __init__(self, rank):
            self.process_index = rank

    diffusion = tiny_diffusion().eval()
    torch.nn.init.normal_(diffusion.model.conv_out.weight, std=0.1)
    whole = diffusion.sample(3, seeds=[5, 6, 7], num_steps=2)
    gathered = []
    monkeypatch.setattr("accelerate.utils.gather", lambda part: (gathered.append(part), torch.cat(gathered))[1])
    for rank in range(2):
        shared = sample_shared(diffusion, 3, Rank(rank), seeds=[5, 6, 7], num_steps=2)
    assert torch.allclose(shared, whole, atol=1e-5)
    with pytest.raises(ValueError, match="seeds has 2 entries for 3 images"):
        sample_shared(diffusion, 3, Rank(0), seeds=[5, 6], num_steps=2)


@pytest.mark.slow
def test_compile_trains_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture and autograd as on a GPU; only the generation of kernels, minutes on a CPU, is left out."""
    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kw: real(self, **kw | {"backend": "aot_eager"}))
    options = {"compile": True, "max_steps": 4, "val_every": 2, "val_fraction": 0.2}
    tiny_trainer(tmp_path / "a", **options).train()
    tiny_trainer(tmp_path / "b", callbacks=[StopAt(2)], **options).train()
    tiny_trainer(tmp_path / "b", **options).train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    tiny_trainer(tmp_path / "plain", **options | {"compile": False}).train()
    plain = curve(tmp_path / "plain")
    for row, other in zip(curve(tmp_path / "a"), plain):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
