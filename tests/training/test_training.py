"""The training loop: what it promises about resuming, precision, shares, records and ends."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, TrainingConfig, Unet
from ddpm_lib.training import Callback, CheckpointError, ConfigError, DivergedError, load_run
from ddpm_lib.training.batches import BatchPlan
from ddpm_lib.training.ema import WeightAverages
from ddpm_lib.training.optim import learning_rate
from ddpm_lib.training.randomness import DataOrder, StepRandomness
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


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema_decay": (0.9, 0.999), "lr_schedule": "cosine", "accumulation_steps": 3},
        {
            "val_every": 3,
            "val_fraction": 0.2,
            "sample_every": 3,
            "sample_count": 2,
            "sample_steps": 2,
        },
    ],
    ids=["plain", "two averages, accumulating", "validating and sampling"],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, options: dict) -> None:
    """Weights, averages, optimizer and loss curve, bit for bit, although the cut falls inside a
    logging window.
    """
    tiny_trainer(tmp_path / "a", **options).train()
    for cut in (1, 3, 6):
        result = tiny_trainer(tmp_path / "b", callbacks=[StopAt(cut)], **options).train()
    assert result.status == "finished"
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_resumed_equals_uninterrupted_with_classes_and_conditioning_dropout(tmp_path: Path) -> None:
    def make(run: str, stop: int = 0):
        diffusion = tiny_diffusion(num_classes=6, class_drop_prob=0.5)
        return tiny_trainer(tmp_path / run, diffusion, callbacks=[StopAt(stop)])

    make("a").train()
    make("b", 2).train()
    make("b").train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_equals_ram(tmp_path: Path, workers: int) -> None:
    """Where the images come from, and how many workers decode them, changes nothing."""
    shapes = Shapes(size=8, n=40)
    folder = tmp_path / "images"
    from ddpm_lib.images import save_image

    for i in range(len(shapes)):
        save_image(shapes[i]["image"], folder / f"{i:03d}.png")
    tiny_trainer(tmp_path / "ram", data=str(folder), cache="ram").train()
    tiny_trainer(
        tmp_path / "stream",
        data=str(folder),
        cache="none",
        num_workers=workers,
        callbacks=[StopAt(3)],
    ).train()
    tiny_trainer(tmp_path / "stream", data=str(folder), cache="none", num_workers=workers).train()
    assert_same_tensors(final_tensors(tmp_path / "ram"), final_tensors(tmp_path / "stream"))


@pytest.mark.slow
def test_killed_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL in the middle; the same trainer continues; the end is bitwise the uninterrupted
    one.
    """

    def trainer(run: str) -> Trainer:
        """What run_tiny.py trains."""
        return tiny_trainer(tmp_path / run, max_steps=40, save_every=5, keep_last=3)

    trainer("a").train()
    command = [sys.executable, str(HELPERS / "run_tiny.py"), str(tmp_path / "b"), "40"]
    victim = subprocess.Popen(command)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "b" / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait(240) == -signal.SIGKILL
    trainer("b").train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert "Resumed" in (tmp_path / "b" / "train.log").read_text()


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130)])
def test_signal_ends_in_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    interrupt = At(3, lambda _: signal.raise_signal(getattr(signal, name)))
    result = tiny_trainer(tmp_path, max_steps=100, callbacks=[interrupt]).train()
    assert (result.status, result.step, result.exit_code) == ("stopped", 3, code)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("stopped", f"received {name}")
    assert (tmp_path / "checkpoints" / "step-000000003" / "manifest.json").is_file()
    assert "Training stopped at step 3" in capsys.readouterr().err


def test_a_signal_from_outside_ends_the_process_with_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, str(HELPERS / "run_tiny.py"), str(tmp_path), "100000"]
    victim = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and '"loss"' in metrics.read_text()):
        assert time.monotonic() < deadline
        assert victim.poll() is None
        time.sleep(0.02)
    victim.send_signal(signal.SIGTERM)
    _, err = victim.communicate(timeout=240)
    assert victim.returncode == 143
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("stopped", "received SIGTERM")
    assert (tmp_path / "checkpoints" / f"step-{status['step']:09d}" / "manifest.json").is_file()
    assert f"Training stopped at step {status['step']:,}" in err


def test_train_again_after_an_interruption_continues(tmp_path: Path) -> None:
    """In a notebook: Ctrl-C returns, and the same object goes on."""
    tiny_trainer(tmp_path / "a").train()
    trainer = tiny_trainer(tmp_path / "b", callbacks=[StopAt(2)])
    first = trainer.train()
    assert (first.status, first.step, first.exit_code) == ("stopped", 2, 143)
    assert trainer.train().status == "finished"
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))


def test_time_limit_stops_with_a_checkpoint_and_stop_file_too(tmp_path: Path) -> None:
    result = tiny_trainer(tmp_path / "a", max_steps=10**6, max_hours=1.0 / 3600).train()
    assert result.status == "stopped"
    assert "max_hours" in result.reason
    assert result.checkpoint is not None

    class TouchStop(Callback):
        def on_step_end(self, trainer):
            if trainer.step == 3:
                (trainer.output_dir / "STOP").touch()

    result = tiny_trainer(tmp_path / "b", callbacks=[TouchStop()]).train()
    assert (result.step, result.reason) == (3, "found the file STOP")
    assert tiny_trainer(tmp_path / "b").train().status == "finished"


def test_finished_run_does_nothing_more(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).train()
    before = final_tensors(tmp_path)
    assert tiny_trainer(tmp_path).train().status == "finished"
    assert_same_tensors(before, final_tensors(tmp_path))


def test_resume_never_refuses_a_used_directory(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).train()
    with pytest.raises(ConfigError, match=r"holds step-000000006 already.*another output_dir"):
        tiny_trainer(tmp_path, resume="never").train()


def test_changed_architecture_names_the_difference(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).train()
    with pytest.raises(ConfigError, match=r"model\.config\.dim: 8 in the checkpoint, 16 now"):
        tiny_trainer(tmp_path, tiny_diffusion(dim=16), max_steps=8).train()


def test_changed_process_names_the_difference(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).train()
    other = GaussianDiffusion(
        tiny_diffusion().model, image_size=8, timesteps=50, parametrization="eps"
    )
    with pytest.raises(
        ConfigError, match=r"diffusion\.parametrization: 'v' in the checkpoint, 'eps' now"
    ):
        tiny_trainer(tmp_path, other, max_steps=8).train()


def test_changed_data_batch_and_seed_are_refused_unless_overridden(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).train()
    changed = {"data": Shapes(size=8, n=41), "batch_size": 12, "seed": 5, "max_steps": 8}
    with pytest.raises(
        ConfigError,
        match=(
            r"(?s)data: 40 training images.*batch_size: 6.*seed: 0 in the checkpoint, 5"
            r" now.*override"
        ),
    ):
        tiny_trainer(tmp_path, **changed).train()
    assert tiny_trainer(tmp_path, **changed, override=True).train().step == 8
    assert "Continuing although batch_size" in (tmp_path / "train.log").read_text()


def test_new_average_starts_from_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_trainer(tmp_path, ema_decay=0.9999).train()
    trainer = tiny_trainer(tmp_path, ema_decay=(0.9999, 0.5), max_steps=7)
    trainer.prepare()
    assert "no EMA of decay 0.5" in capsys.readouterr().err
    for a, b in zip(trainer.ema.network(0.5).parameters(), trainer.diffusion.model.parameters()):
        assert torch.equal(a, b)
    trainer.train()  # only then is it known that the lines belong there
    assert "no EMA of decay 0.5" in (tmp_path / "train.log").read_text()


def test_order_visits_every_image_once_per_epoch_at_any_start() -> None:
    order = DataOrder(7, seed=3)
    slots = order.indices(0, 21)
    for epoch in range(3):
        assert sorted(slots[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert not np.array_equal(slots[:7], slots[7:14])
    assert np.array_equal(order.indices(5, 18), slots[5:18])


def test_order_is_pinned() -> None:
    """Guards exact resuming across releases: this is the order of the first release."""
    assert DataOrder(1000, 0).indices(0, 6).tolist() == [445, 39, 297, 379, 943, 505]


def test_noise_does_not_depend_on_who_draws_it() -> None:
    whole = StepRandomness(0, 12, 4)
    everything = whole.noise(3, range(12), (2, 5), "cpu")
    for split in (2, 3, 4, 6, 12):
        size = 12 // split
        parts = [
            whole.noise(3, range(i * size, (i + 1) * size), (2, 5), "cpu") for i in range(split)
        ]
        assert torch.equal(torch.cat(parts), everything)
    assert not torch.equal(everything, whole.noise(4, range(12), (2, 5), "cpu"))


def test_plan_shares_every_row_once() -> None:
    rows = [r for rank in range(3) for part in BatchPlan(24, 3, rank, 2).rows() for r in part]
    assert rows == list(range(24))
    with pytest.raises(
        ConfigError, match=r"24 cannot be shared by 5 processes.*fit: 1, 2, 3, 4, 6, 8, 12, 24"
    ):
        BatchPlan(24, 5, 0, 1)


def test_global_random_state_does_not_matter(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "a", tiny_diffusion()).train()
    diffusion = tiny_diffusion()
    torch.manual_seed(1234)
    np.random.seed(99)  # noqa: NPY002 - that is the point
    tiny_trainer(tmp_path / "b", diffusion).train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("when", ["before", "between two pieces", "in a callback"])
def test_gradients_that_somebody_else_left_are_no_part_of_a_step(
    when: str, precision: str, tmp_path: Path
) -> None:
    def leave(trainer: Trainer) -> None:
        trainer.diffusion(torch.rand(2, 3, 8, 8)).backward()

    options = {"max_steps": 2, "mixed_precision": precision}
    tiny_trainer(tmp_path / "a", **options).train()
    other = tiny_trainer(
        tmp_path / "b", callbacks=[At(1, leave)] if when == "in a callback" else [], **options
    )
    if when == "before":
        leave(other)
    if when == "between two pieces":
        other.train(1)
        leave(other)
    other.train()
    assert_same_tensors(final_tensors(tmp_path / "a"), final_tensors(tmp_path / "b"))


def test_accumulation_is_the_same_batch(tmp_path: Path) -> None:
    """One micro-batch or three: same images, noise and levels; gradients differ in summation order
    only.
    """
    diffusion = tiny_diffusion(dropout=0.0)
    tiny_trainer(tmp_path / "a", diffusion, shards=3).train()
    tiny_trainer(tmp_path / "b", tiny_diffusion(dropout=0.0), accumulation_steps=3).train()
    a, b = curve(tmp_path / "a"), curve(tmp_path / "b")
    for x, y in zip(a, b):
        assert x["loss"] == pytest.approx(
            y["loss"], rel=1e-4
        )  # float32 sums in another order, through Adam


@pytest.mark.slow
def test_loss_falls(tmp_path: Path) -> None:
    trainer = tiny_trainer(
        tmp_path,
        tiny_diffusion(dropout=0.0),
        max_steps=60,
        log_every=20,
        learning_rate=5e-3,
        lr_schedule="constant",
        batch_size=8,
    )
    trainer.train()
    losses = [row["loss"] for row in curve(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]


def test_learning_rate_is_a_function_of_the_step() -> None:
    config = TrainingConfig(
        learning_rate=1.0,
        warmup_steps=10,
        max_steps=110,
        lr_schedule="cosine",
        final_learning_rate_ratio=0.1,
    )
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(9, config) == learning_rate(10, config) == 1.0
    assert learning_rate(60, config) == pytest.approx(0.55)
    assert learning_rate(110, config) == learning_rate(500, config) == pytest.approx(0.1)


def test_ema_follows_its_formula() -> None:
    """After update n (n ≥ 2) the decay is min(decay, 1 − n^−power), and the first update copies
    (ema-pytorch's warm-up).
    """
    model = torch.nn.Linear(1, 1, bias=False)
    averages = WeightAverages(model, (0.9, 0.6), power=0.75)
    expected = {0.9: 0.0, 0.6: 0.0}
    for n in range(1, 40):
        with torch.no_grad():
            model.weight.fill_(float(n))
        averages.update()
        for decay in expected:
            beta = 0.0 if n == 1 else min(decay, 1 - n**-0.75)
            expected[decay] = beta * expected[decay] + (1 - beta) * n
            assert averages.network(decay).weight.item() == pytest.approx(expected[decay], rel=1e-5)
    with pytest.raises(ValueError, match=r"No EMA with decay 0.5.*0.9, 0.6"):
        averages.network(0.5)


def test_uncopyable_model_is_named() -> None:
    class Uncopyable(torch.nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copies of me")

    with pytest.raises(TypeError, match=r"deep-copied.*no copies of me.*ema_decay=\(\)"):
        WeightAverages(Uncopyable(1, 1), (0.9,))


@pytest.mark.slow
def test_validation_is_smooth_and_shows_overfitting(tmp_path: Path) -> None:
    """With the weights fixed the validation loss is the same number every time; memorising opens
    the gap.
    """
    frozen = tiny_trainer(tmp_path / "a", learning_rate=1e-30, val_every=2, val_fraction=0.25)
    frozen.train()
    values = {row["val_loss"] for row in curve(tmp_path / "a") if "val_loss" in row}
    assert len(values) == 1
    data = Shapes(size=8, n=12)
    memorising = tiny_trainer(
        tmp_path / "b",
        tiny_diffusion(dropout=0.0, dim=16),
        data,
        max_steps=100,
        val_every=100,
        val_fraction=0.8,
        learning_rate=3e-3,
        ema_decay=(0.9,),
        horizontal_flip=False,
    )
    memorising.train()
    last = curve(tmp_path / "b")[-1]
    assert last["val_loss"] > 1.2 * last["train_fixed_loss"]


def test_records(tmp_path: Path) -> None:
    tiny_trainer(
        tmp_path, val_every=4, val_fraction=0.2, sample_every=4, sample_count=5, sample_steps=2
    ).train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        assert {
            "images",
            "epoch",
            "loss",
            "grad_norm",
            "learning_rate",
            "images_per_second",
            "seconds",
        } <= row.keys()
        counted = [row[f"loss_q{i}"] for i in range(1, 5)]
        assert all(v is None or math.isfinite(v) for v in counted)
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(r["loss"]) for r in table] == [r["loss"] for r in rows]
    assert table[0]["val_loss"] == ""
    assert table[1]["val_loss"]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "step-000000004.png",
        "step-000000006.png",
    ]
    assert (tmp_path / "config.yaml").is_file()


def test_quarters_average_to_the_loss(tmp_path: Path) -> None:
    """loss is the mean over images, so it lies within the quarters' range and equals them when only
    one is hit.
    """
    tiny_trainer(tmp_path, batch_size=40, log_every=1, max_steps=2).train()
    for row in curve(tmp_path):
        quarters = [row[f"loss_q{i}"] for i in range(1, 5)]
        assert min(quarters) <= row["loss"] <= max(quarters)


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Poison(Callback):
        def on_step_end(self, trainer):
            if trainer.step == 4:
                with torch.no_grad():
                    next(trainer.diffusion.model.parameters()).fill_(float("nan"))

    with pytest.raises(
        DivergedError, match=r"not finite at step 5.*first is .*step-000000003.*learning_rate"
    ):
        tiny_trainer(tmp_path, save_every=3, log_every=100, callbacks=[Poison()]).train()
    assert torch.isfinite(final_tensors(tmp_path)["model:conv_in.weight"]).all()
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "failed"


def test_custom_callback_and_its_state(tmp_path: Path) -> None:
    class Counter(Callback):
        def __init__(self):
            self.seen = 0

        def on_step_end(self, trainer):
            self.seen += 1
            trainer.log({"seen": self.seen})

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state.get("seen", 0)

    tiny_trainer(tmp_path, callbacks=[Counter(), StopAt(4)]).train()
    counter = Counter()
    tiny_trainer(tmp_path, callbacks=[counter]).train()
    assert counter.seen == 6
    assert [row["seen"] for row in curve(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_state_dict_of_older_versions_still_gets_the_trainer(tmp_path: Path) -> None:
    class Old(Callback):
        def __init__(self):
            self.step = 0

        def state_dict(self, trainer):
            return {"step": trainer.step}

        def load_state_dict(self, state):
            self.step = state.get("step", 0)

    with pytest.warns(
        DeprecationWarning, match=r"Old\.state_dict takes an argument.*define state_dict\(self\)"
    ) as seen:
        trainer = tiny_trainer(tmp_path, callbacks=[Old(), StopAt(4)])
    assert Path(seen[0].filename).name == "training_helpers.py", "the caller of Trainer is told"
    trainer.train()
    with pytest.warns(DeprecationWarning, match="Old"):
        again = tiny_trainer(tmp_path, callbacks=[old := Old()])
    again.prepare()
    assert old.step == 4


def test_bf16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, mixed_precision="bf16")
    trainer.train()
    assert {
        v.dtype for k, v in final_tensors(tmp_path).items() if k.startswith(("model", "ema"))
    } == {torch.float32}
    loss = curve(tmp_path)[-1]["loss"]
    tiny_trainer(tmp_path / "fp32").train()
    assert loss == pytest.approx(
        curve(tmp_path / "fp32")[-1]["loss"], rel=0.05
    )  # bf16 has 8 bits of mantissa


def test_second_trainer_may_use_another_precision(tmp_path: Path) -> None:
    """accelerate's singleton would refuse it; a notebook does it."""
    tiny_trainer(tmp_path / "a", max_steps=1, mixed_precision="bf16").train()
    tiny_trainer(tmp_path / "b", max_steps=1, mixed_precision="no").train()


def test_trainer_takes_a_plain_module_and_torch_dataset(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        channels = 1

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x, t, cond=None):
            return self.conv(x) + t.view(-1, 1, 1, 1) * 0

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, i):
            return {"image": torch.full((1, 8, 8), i * 10, dtype=torch.uint8)}

    trainer = tiny_trainer(
        tmp_path, GaussianDiffusion(Net(), image_size=8), Data(), sample_every=6, sample_steps=2
    )
    assert trainer.train().step == 6
    assert trainer.sample(3, num_steps=2).shape == (3, 1, 8, 8)
    with pytest.raises(CheckpointError, match="weights of a Net, which is not registered here"):
        load_run(tmp_path)


def test_tracker(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"Unknown tracker 'tensorbord'. Did you mean 'tensorboard'"
    ):
        tiny_trainer(tmp_path, trackers=("tensorbord",)).train()


def test_missing_tracker_package_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else real(name, *a)
    )
    with pytest.raises(ConfigError, match="pip install wandb"):
        tiny_trainer(tmp_path, trackers=("wandb",)).train()


def test_classes_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="6 classes but the network num_classes=3"):
        tiny_trainer(tmp_path, tiny_diffusion(num_classes=3)).train()

    class Unlabelled(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, i):
            return {"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}

    with pytest.raises(ConfigError, match="no labels"):
        tiny_trainer(tmp_path, tiny_diffusion(num_classes=3), Unlabelled()).train()


def test_batch_larger_than_the_data_works_and_says_so(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, data=Shapes(size=8, n=5), batch_size=12).train()
    assert (
        "batch of 12 is larger than the 5 training images" in (tmp_path / "train.log").read_text()
    )


def test_image_size_must_fit_the_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="9"):
        tiny_trainer(tmp_path, GaussianDiffusion(Unet(dim=8, dim_mults=(1, 2)), image_size=9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bacth_size": 3},
            r"Unknown option of Trainer: 'bacth_size' \(did you mean 'batch_size'\?\)",
        ),
        ({"batch_size": "32"}, r"batch_size must be a whole number or 'auto'; got '32' \(str\)"),
        ({"batch_size": True}, "batch_size must be a whole number or 'auto'; got True"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        (
            {"batch_size": 10, "accumulation_steps": 3},
            r"10 is not divisible by accumulation_steps 3.*fit: 1, 2, 5, 10",
        ),
        ({"batch_size": 10, "shards": 4}, r"not divisible by shards 4.*1, 2, 5, 10"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive finite number; got -1.0"),
        (
            {"learning_rate": float("nan")},
            "learning_rate must be a number or 'auto'; got nan",
        ),
        ({"ema_decay": (1.0,)}, r"ema_decay must lie in \[0, 1\); got 1.0"),
        ({"ema_decay": (0.9, 0.9)}, "names the same decay twice"),
        ({"lr_schedule": "cosin"}, r"lr_schedule must be one of .*Did you mean 'cosine'"),
        ({"keep_last": 1}, "keep_last must be at least 2"),
        ({"num_workers": -1}, r"num_workers must be 0 or more; got -1"),
        ({"val_fraction": 1.0}, r"val_fraction must lie in \[0, 1\)"),
        ({"val_data": "x", "val_every": 0}, "val_data is given but val_every is 0"),
        ({"max_hours": 0}, "max_hours must be a positive"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_options_name_what_was_got_and_what_fits(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig.from_options(options)


def test_options_of_parts_may_be_switches() -> None:
    from ddpm_lib.core.validation import check_type

    given = {"zero_terminal_snr": True, "s": 1}
    assert check_type("schedule_options", given, dict[str, float] | None) == {
        "zero_terminal_snr": True,
        "s": 1.0,
    }
    with pytest.raises(ConfigError):
        check_type("schedule_options", {"s": "much"}, dict[str, float] | None)


def test_config_round_trip() -> None:
    config = TrainingConfig(ema_decay=(0.9, 0.99), batch_size=8)
    assert TrainingConfig.from_options(json.loads(json.dumps(config.to_dict()))) == config


def test_help_lists_the_options() -> None:
    import inspect

    from ddpm_lib import Trainer

    assert {"batch_size", "num_workers", "max_hours"} <= inspect.signature(
        Trainer
    ).parameters.keys()
