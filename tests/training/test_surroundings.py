"""Training among other things: logs, everyday types, callbacks of others, accelerate's state, old
variables.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_lib import Shapes, TrainingConfig
from ddpm_lib.cli import main
from ddpm_lib.data import ImageDataset
from ddpm_lib.training import Callback, ConfigError
from ddpm_lib.training.cleanup import run_all
from training_helpers import tiny_diffusion, tiny_trainer

ROW = re.compile(r"^ +\d+ +\d+\.\d +-?\d+\.\d+ ")


def rows_of(text: str) -> list[str]:
    """The rows of numbers in what was said, without a time in front."""
    lines = [
        re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d step \d+: ", "", line)
        for line in text.splitlines()
    ]
    return [line.rstrip() for line in lines if ROW.match(line)]


@pytest.mark.parametrize(("progress", "validation"), [(True, True), (False, False)])
def test_a_log_has_rows_and_no_carriage_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], progress: bool, validation: bool
) -> None:
    options = {"val_every": 2, "val_fraction": 0.2} if validation else {}
    tiny_trainer(
        tmp_path, max_steps=6, progress=progress, log_every=2, sample_every=3, **options
    ).train()
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "\r" not in said
    rows = rows_of(said)
    assert len(rows) == 3
    assert [row.split()[0] for row in rows] == ["2", "4", "6"]
    assert all(("±" in row) == validation for row in rows)
    assert rows_of((tmp_path / "train.log").read_text(encoding="utf-8")) == rows
    assert "\r" not in (tmp_path / "train.log").read_text(encoding="utf-8")
    assert sum("img/s" in line for line in said.splitlines()) == 1  # the header, once


def test_every_row_has_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where validation comes before the first line of metrics."""
    tiny_trainer(tmp_path, max_steps=6, log_every=5, val_every=2, val_fraction=0.2).train()
    rows = rows_of(capsys.readouterr().err)
    assert [row.split()[0] for row in rows] == ["2", "4", "6"]


def test_no_command_writes_carriage_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small = [
        "--model.dim",
        "8",
        "--max-steps",
        "2",
        "--sample-steps",
        "2",
        "--batch-size",
        "4",
        "--device",
        "cpu",
    ]
    assert main(["train", "shapes", "--image-size", "16", *small, "--output-dir", str(run)]) == 0
    assert main(["sample", str(run), "--num", "2", "--num-steps", "2", "--device", "cpu"]) == 0
    assert (
        main(["evaluate", str(run), "--metrics", "loss_gap", "--num", "4", "--device", "cpu"]) == 0
    )
    captured = capsys.readouterr()
    assert "\r" not in captured.out + captured.err


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("output_dir", Path("runs/a"), "runs/a"),
        ("val_data", Path("held"), "held"),
        ("ema_decay", 0.99, (0.99,)),
        ("ema_decay", [0.9, 0.99], (0.9, 0.99)),
        ("posthoc_ema", np.float64(0.1), (0.1,)),
        ("trackers", "tensorboard", ("tensorboard",)),
        ("max_steps", np.int64(7), 7),
        ("max_steps", 1e3, 1000),
        ("batch_size", torch.tensor(4), 4),
        ("learning_rate", np.float32(0.5), 0.5),
        ("horizontal_flip", np.bool_(True), True),
        ("adam_betas", [0.5, 0.9], (0.5, 0.9)),
        ("device", torch.device("cpu"), "cpu"),
        ("device", torch.device("cuda", 1), "cuda:1"),
        ("device", "cuda:01", "cuda:1"),
    ],
)
def test_everyday_types(name: str, given: Any, meant: Any) -> None:
    got = getattr(TrainingConfig(**{name: given}), name)
    assert got == meant
    assert type(got) is type(meant)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("max_steps", 1.5, "whole number"),
        ("max_steps", "many", "whole number"),
        ("ema_decay", "fast", "list of numbers"),
        ("device", 1, "cuda:1"),
        ("device", "1", "cuda:1"),
        ("device", "gpu", "Did you mean 'cuda'"),
        ("device", "cuda:x", "cuda:1"),
        ("learning_rate", torch.zeros(3), "of shape"),
        ("output_dir", object(), "text"),
        ("optimizer", torch.optim.SGD([torch.zeros(1)], 0.1), "SGD"),
    ],
)
def test_wrong_types_are_named_without_a_dump(name: str, given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as failure:
        TrainingConfig(**{name: given})
    assert len(str(failure.value)) < 300


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", ["dataset", "subset", "array", "list"])
def test_held_out_images_may_be_an_object(tmp_path: Path, kind: str) -> None:
    whole = Shapes(size=8, n=60)
    images = whole.batch(np.arange(40, 60))["image"]
    given: dict[str, Any] = {
        "dataset": whole.subset(range(40, 60)),
        "subset": torch.utils.data.Subset([{"image": x} for x in images], range(20)),  # type: ignore[arg-type]
        "array": images.permute(0, 2, 3, 1).numpy(),
        "list": [x.permute(1, 2, 0).numpy() for x in images],
    }
    train = whole.subset(range(40))
    trainer = tiny_trainer(tmp_path, data=train, val_data=given[kind], val_every=3, max_steps=3)
    assert trainer.train().status == "finished"
    assert isinstance(trainer.held_out, ImageDataset)
    assert torch.equal(trainer.held_out.batch(np.arange(20))["image"], images)
    assert (
        "given in Python" in (tmp_path / "config.yaml").read_text(encoding="utf-8") or kind is None
    )
    assert (
        tiny_trainer(tmp_path, data=train, val_data=given[kind], val_every=3, max_steps=4)
        .train()
        .step
        == 4
    )


class Fails(Callback):
    """Fails in its hook and again when it is closed."""

    def on_step_end(self, trainer: Any) -> None:
        raise ValueError("the hook failed")

    def close(self) -> None:
        raise RuntimeError("and so did the clean-up")


def test_clean_up_does_not_hide_the_first_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the hook failed") as failure:
        tiny_trainer(tmp_path, callbacks=[Fails()]).train()
    assert any("and so did the clean-up" in note for note in failure.value.__notes__)
    assert tiny_trainer(tmp_path).train().status == "finished"  # the lock was given back


def test_every_step_of_a_clean_up_is_taken() -> None:
    done: list[int] = []

    def step(k: int, error: Exception | None = None) -> Any:
        def take() -> None:
            done.append(k)
            if error is not None:
                raise error

        return take

    with pytest.raises(KeyError) as failure:
        run_all([step(1), step(2, KeyError("first")), step(3, OSError("second")), step(4)], None)
    assert done == [1, 2, 3, 4]
    assert any("second" in note for note in failure.value.__notes__)
    run_all(
        [step(5, OSError("late"))], ValueError("earlier")
    )  # whoever raised it goes on raising it


class Duck:
    """Only the hook that its author needed."""

    def on_step_end(self, trainer: Any) -> None:
        trainer.stop("quack")


@pytest.mark.parametrize("given", [Duck(), Duck, Callback, print, lambda trainer: None, None, 3])
def test_what_is_no_callback_is_refused_at_once(tmp_path: Path, given: Any) -> None:
    with pytest.raises(TypeError, match="Callback"):
        tiny_trainer(tmp_path, callbacks=[given])


def test_one_callback_needs_no_list(tmp_path: Path) -> None:
    seen: list[int] = []

    class Counts(Callback):
        def on_step_end(self, trainer: Any) -> None:
            seen.append(trainer.step)

    tiny_trainer(tmp_path, callbacks=Counts()).train()
    assert seen == [1, 2, 3, 4, 5, 6]


def test_accelerate_s_state_is_given_back(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    tiny_trainer(tmp_path / "a", mixed_precision="bf16").train()
    mine = Accelerator(
        mixed_precision="no", cpu=True
    )  # "already initialized … restart your runtime", otherwise
    assert mine.mixed_precision == "no"
    tiny_trainer(tmp_path / "b", mixed_precision="bf16").train()
    assert Accelerator().mixed_precision == "no"
    with pytest.raises(ValueError, match="the hook failed"):
        tiny_trainer(tmp_path / "c", mixed_precision="bf16", callbacks=[Fails()]).train()
    assert mine.state.mixed_precision == AcceleratorState().mixed_precision == "no"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_variables_of_a_launcher_that_is_gone_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"(?s)WORLD_SIZE.*unset .*WORLD_SIZE"):
        tiny_trainer(tmp_path).train()
    assert (
        main(
            [
                "train",
                "shapes",
                "--max-steps",
                "1",
                "--output-dir",
                str(tmp_path / "r"),
                "--device",
                "cpu",
            ]
        )
        == 2
    )
    assert "unset" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wandbb", "tensor-board"])
def test_unknown_trackers_are_refused_before_training(tmp_path: Path, name: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=r"(?i)tracker"):
        tiny_trainer(tmp_path / "run", trackers=(name,)).train()
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddpm_lib.runtime import trackers

    class Accelerator:
        trackers: list[Any] = []  # noqa: RUF012
        log_with = ("wandb",)

        def init_trackers(self, *args: Any, **options: Any) -> None:
            raise RuntimeError("No API key configured")

    with pytest.raises(ConfigError, match=r"No API key configured"):
        trackers.start_trackers(Accelerator(), "name", {})  # type: ignore[arg-type]


def test_wrong_keywords_of_the_process_are_answered() -> None:
    diffusion = tiny_diffusion()
    for call, said in (
        (lambda: diffusion.sample(1, num_inference_steps=3), "num_steps"),
        (lambda: diffusion.sample(1, cond_scale=3.0), "guidance_scale"),
        (lambda: diffusion.edit(torch.rand(1, 3, 8, 8), numsteps=3), "num_steps"),
        (lambda: tiny_diffusion(model_channels=8), "dim"),
    ):
        with pytest.raises(TypeError, match=f"Did you mean '{said}'"):
            call()
