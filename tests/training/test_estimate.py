"""`ddpm estimate`: its numbers are those of the run that follows."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command_line import TINY, ddpm, error_of
from ddpm_lib import GaussianDiffusion, Shapes, TrainingConfig, Unet
from ddpm_lib.cli import main
from ddpm_lib.nn.mlp import MLP
from ddpm_lib.runs.checkpoint import list_checkpoints, read_state
from ddpm_lib.training import ConfigError
from ddpm_lib.training import estimate as module
from ddpm_lib.training.estimate import Estimate, Rehearsal, estimate
from ddpm_lib.training.step import ForwardPass
from launchers import torchrun
from training_helpers import assert_same_tensors, final_tensors, tiny_diffusion, tiny_trainer


def options(**changes: Any) -> TrainingConfig:
    settings = {
        "device": "cpu",
        "mixed_precision": "no",
        "batch_size": 6,
        "max_steps": 600,
    } | changes
    return TrainingConfig.from_options(settings)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("changes", "probe_steps"),
    [
        ({}, 0),
        ({"ema_decay": (0.9, 0.99)}, 1),
        ({"ema_decay": (), "posthoc_ema": (0.05, 0.1)}, 0),
        ({"optimizer": "adam"}, 1),
    ],
    ids=str,
)
def test_the_checkpoint_has_the_foretold_size(
    tmp_path: Path, changes: dict[str, Any], probe_steps: int
) -> None:
    told = estimate(tiny_diffusion(), options(max_steps=1, **changes), probe_steps)
    trainer = tiny_trainer(tmp_path / "run", max_steps=1, **changes)
    before = trainer.prepare() or trainer.learner.checkpoint_bytes()
    trainer.train()
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert told.checkpoint_bytes == pytest.approx(size_of(saved), rel=0.02)
    assert before == pytest.approx(size_of(saved), rel=0.02)
    assert trainer.learner.checkpoint_bytes() == pytest.approx(size_of(saved), rel=0.02)


def test_learned_uncertainty_is_in_the_checkpoint(tmp_path: Path) -> None:
    def make() -> GaussianDiffusion:
        return GaussianDiffusion(tiny_diffusion().model, image_size=8, learn_uncertainty=True)

    tiny_trainer(tmp_path / "run", make(), max_steps=1).train()
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert estimate(make(), options(max_steps=1), 0).checkpoint_bytes == pytest.approx(
        size_of(saved), rel=0.02
    )


def test_numbers_of_the_network_and_of_memory() -> None:
    diffusion = tiny_diffusion()
    told = estimate(diffusion, options(accumulation_steps=2, ema_decay=(0.9, 0.99)), 0)
    weights = sum(p.numel() for p in diffusion.model.parameters())
    summary = diffusion.model.summary(8, 3)
    assert (told.parameters, told.macs, told.image_size) == (weights, summary.macs, (8, 8))
    assert (told.batch_size, told.images_per_pass, told.processes) == (6, 3, 1)
    assert told.activation_bytes_float32 == summary.activation_bytes
    assert 0.4 < told.activation_bytes_bf16 / told.activation_bytes_float32 < 1
    assert told.state_bytes == pytest.approx(4 * weights * (1 + 1 + 2 + 2), rel=0.01)
    assert told.memory_bytes > told.state_bytes + told.activation_bytes_float32
    assert told.fits
    assert told.memory_bytes < told.available_bytes


def test_the_probe_measures_the_steps_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    real = Rehearsal._optimizer_step
    monkeypatch.setattr(
        Rehearsal, "_optimizer_step", lambda self, *args: (steps.append(self), real(self, *args))[1]
    )
    told = estimate(tiny_diffusion(), options(accumulation_steps=2, save_every=1), 3)
    assert len(steps) == module.WARM_UP + 3
    assert steps[0].ema is not None
    assert steps[0].optimizer.state
    assert told.probe_steps == 3
    assert told.seconds_per_step is not None
    assert told.seconds_per_step > 0
    assert told.images_per_second == pytest.approx(6 / told.seconds_per_step)
    assert told.hours == pytest.approx(600 * told.seconds_per_step / 3600)


def test_no_steps_no_speed() -> None:
    told = estimate(tiny_diffusion(), options(), 0)
    assert (told.seconds_per_step, told.images_per_second, told.hours, told.probe_steps) == (
        None,
        None,
        None,
        0,
    )
    assert "not measured: no steps were asked for (probe_steps 0)" in str(told)
    with pytest.raises(ConfigError, match="probe_steps must be 0 or more; got -1"):
        estimate(tiny_diffusion(), options(), -1)


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    told = estimate(tiny_diffusion(), options(), 0)
    assert not told.fits
    assert "does NOT fit" in str(told)
    monkeypatch.undo()

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ForwardPass, "__call__", full)
    told = estimate(tiny_diffusion(), options(), 2)
    assert not told.fits
    assert "not measured: out of memory" in str(told)


def test_other_networks_have_no_summary() -> None:
    with pytest.raises(ConfigError, match="Only a Unet can be estimated; got MLP"):
        estimate(
            GaussianDiffusion(MLP(channels=2), image_size=(1,), channels=2, timesteps=50),
            options(),
            0,
        )


def test_options_of_a_real_run_cost_nothing_and_leave_nothing(tmp_path: Path) -> None:
    """Random state, process and a run that is there already stay as they are."""
    tiny_trainer(tmp_path / "run", max_steps=2).train()
    before, files = final_tensors(tmp_path / "run"), sorted(tmp_path.rglob("*"))
    diffusion, state = tiny_diffusion(), torch.get_rng_state()
    wishes = {
        "output_dir": str(tmp_path / "run"),
        "resume": "never",
        "val_data": "nowhere",
        "keep_best": "val_loss",
    }
    estimate(diffusion, options(**wishes, trackers=("tensorboard",)), 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not {"forward", "_original_forward"} & set(diffusion.__dict__)
    assert sorted(tmp_path.rglob("*")) == files
    assert_same_tensors(before, final_tensors(tmp_path / "run"))


def test_what_comes_with_the_data_costs_what_it_costs(tmp_path: Path) -> None:
    """Conditions of files and added images are of the run, not of random images: the network takes
    values of its own.
    """
    data = Shapes(size=8, n=20).with_conditions({"size": np.arange(20.0)})
    model = Unet(dim=8, dim_mults=(1, 2), blocks_per_level=1, conditions=data.condition_table)
    words = {"condition": ("size=:size",), "add_data": ("more",), "batch_size": 4, "max_steps": 3}
    config = TrainingConfig(**words, device="cpu", output_dir=str(tmp_path / "run"))
    found = estimate(GaussianDiffusion(model, image_size=8), config, 1, 20)
    assert found is not None
    assert found.probe_steps == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("images", [None, 5])
def test_auto_is_what_the_run_will_take(images: int | None) -> None:
    told = estimate(tiny_diffusion(num_classes=3), options(batch_size="auto"), 1, images)
    assert told.batch_size == (64 if images is None else 5)
    assert told.batch_reason.startswith(
        f"batch_size auto: {told.batch_size} images per step, because "
    )
    assert str(told).startswith("batch_size auto: ")


def test_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ddpm("estimate", "shapes", *TINY, "--probe-steps", 2) == 0
    told = capsys.readouterr().out
    for words in (
        "parameters",
        "MACs per 8×8 image",
        "cpu, float32",
        "4 images",
        "MiB on disk, 5 of them at most",
    ):
        assert words in told
    assert re.search(r"images/s, .* s per step \(mean of 2 after 2 of warm-up\)", told)
    assert "4 steps" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_are_measured_together() -> None:
    flags = ["shapes", *TINY, "--batch-size", "auto", "--probe-steps", "2", "--json"]
    done = torchrun("-m", "ddpm_lib.cli", "estimate", *flags)
    told = json.loads(done.stdout)  # one object: the main process speaks
    assert (told["processes"], told["batch_size"], told["images_per_pass"]) == (2, 128, 64)
    assert told["images_per_second"] == pytest.approx(128 / told["seconds_per_step"])


@pytest.mark.slow
def test_command_as_json_agrees_with_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "shapes",
        *TINY,
        "--batch-size",
        "auto",
        "--class-conditional",
        "--model.gradient-checkpointing",
    ]
    assert ddpm("estimate", *flags, "--probe-steps", 1, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {f.name for f in dataclasses.fields(Estimate)}
    assert ddpm("train", *flags, "--output-dir", tmp_path / "run", "--max-steps", 1) == 0
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    state = read_state(saved)
    assert told["batch_size"] == state["batch_size"] == 64
    assert state["model"]["config"]["gradient_checkpointing"] is True
    assert told["checkpoint_bytes"] == pytest.approx(size_of(saved), rel=0.02)
    assert min(told["images_per_second"], told["seconds_per_step"], told["hours"]) > 0


@pytest.mark.slow
def test_command_reads_config_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(
        "data: shapes\nbatch_size: auto\naccumulation_steps: 2\nprobe_steps: 0\n"
    )
    assert (
        ddpm(
            "estimate",
            "--config",
            tmp_path / "c.yaml",
            "--preset",
            "tiny",
            "--device",
            "cpu",
            "--json",
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["batch_size"] == 128
    (tmp_path / "c.yaml").write_text("batch_size: autu\n")
    assert "batch_size (the config file" in error_of(
        capsys, "estimate", "--config", tmp_path / "c.yaml"
    )
    assert "must be a whole number or 'auto'; got 'autu'" in error_of(
        capsys, "train", "--config", tmp_path / "c.yaml"
    )


def test_command_refuses_what_training_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert "probe_steps must be 0 or more" in error_of(
        capsys, "estimate", "shapes", "--probe-steps", -1, *TINY
    )
    assert "batch-size" in error_of(capsys, "estimate", "--batch-size", "much")
    assert "image_size" in error_of(capsys, "estimate", "shapes", "--image-size", "0")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert ddpm("estimate", "--help-all") == 0
    text = capsys.readouterr().out
    for flag in (
        "--probe-steps",
        "--json",
        "--batch-size",
        "--model.gradient-checkpointing",
        "--diffusion.schedule",
    ):
        assert flag in text
    assert ddpm("train", "--help") == 0
    assert "--batch-size N|auto" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert re.search(r"estimate +say what a run costs", capsys.readouterr().out)


def test_dry_run_with_auto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        ddpm(
            "train",
            "shapes",
            *TINY,
            "--batch-size",
            "auto",
            "--dry-run",
            "--output-dir",
            tmp_path / "run",
        )
        == 0
    )
    assert "batch size: auto, chosen when training starts" in capsys.readouterr().out


def test_recomputing_may_be_switched_on_for_a_run_that_is_there(tmp_path: Path) -> None:
    """It changes memory only: a run goes on with it, bit for bit."""
    for run, flag in (("same", False), ("switched", True)):
        tiny_trainer(tmp_path / run, max_steps=3, horizontal_flip=False).train()
        tiny_trainer(
            tmp_path / run, tiny_diffusion(gradient_checkpointing=flag), horizontal_flip=False
        ).train()
    assert_same_tensors(final_tensors(tmp_path / "same"), final_tensors(tmp_path / "switched"))
