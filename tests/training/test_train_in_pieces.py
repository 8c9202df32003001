"""`trainer.train(steps=…)`: a run in pieces is the run in one go."""

from __future__ import annotations

import inspect
import json
import signal
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_lib import Trainer
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training.goal import last_step
from training_helpers import (
    At,
    StopAt,
    assert_same_tensors,
    curve,
    final_tensors,
    tiny_diffusion,
    tiny_trainer,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "constant rate": {},
    "cosine rate": {"lr_schedule": "cosine"},
    "no average": {"ema_decay": ()},
    "accumulation": {"accumulation_steps": 2},
    "validation and grids": {
        "val_every": 3,
        "val_max_images": 4,
        "sample_every": 3,
        "sample_count": 2,
        "sample_steps": 2,
    },
    "posthoc": {"posthoc_ema": (0.1,), "posthoc_every": 2},
    "saved by the way": {"save_every": 2},
    "in a thread": {"save_async": True, "save_every": 2},
}


@pytest.mark.parametrize("kept", [True, False], ids=["one object", "new object"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.every(4)
def test_a_run_in_pieces_is_the_run_in_one_go(
    tmp_path: Path, options: dict[str, Any], kept: bool
) -> None:
    """Weights, averages, moments and the curve, whether the object lives on or is built anew."""
    tiny_trainer(tmp_path / "whole", max_steps=7, **options).train()
    trainer = tiny_trainer(tmp_path / "pieces", max_steps=7, **options)
    for steps, at in ((1, 1), (4, 5), (4, 7)):
        if not kept:
            trainer = tiny_trainer(tmp_path / "pieces", max_steps=7, **options)
        result = trainer.train(steps=steps)
        assert (result.step, result.complete, result.exit_code) == (at, True, 0)
        assert result.checkpoint is not None
        assert result.checkpoint.name == f"step-{at:09d}"
        assert result.status == ("finished" if at == 7 else "stopped")
    assert_same_tensors(final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "pieces"))
    assert curve(tmp_path / "whole") == curve(tmp_path / "pieces")


def test_the_pieces_are_told_in_the_records(tmp_path: Path) -> None:
    result = tiny_trainer(tmp_path, max_steps=2000).train(3)
    assert result.reason == "did the 3 steps asked for, of 2,000"
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["step"], status["max_steps"]) == ("stopped", 3, 2000)
    log = (tmp_path / "train.log").read_text()
    assert "Training stopped at step 3: did the 3 steps asked for, of 2,000." in log
    last = [line for line in log.splitlines() if " 3 " in line and "step 3:" in line]
    assert last, "the last step of a call has its row"


def test_after_the_end_there_is_nothing_to_do(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_steps=3)
    assert trainer.train(steps=5).step == 3
    again = trainer.train(steps=5)
    assert (again.status, again.step, again.reason) == ("finished", 3, "reached max_steps 3")
    assert "A larger max_steps continues it." in (tmp_path / "train.log").read_text()
    longer = tiny_trainer(tmp_path, max_steps=6).train(steps=2)
    assert (longer.status, longer.step) == ("stopped", 5)


def test_without_steps_the_rest_follows(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_steps=5)
    trainer.train(2)
    assert trainer.until == 2
    assert trainer.train().step == trainer.until == 5


@pytest.mark.parametrize("steps", [2, 2.0, np.int64(2), np.array(2), torch.tensor(2)])
def test_whole_numbers_of_every_kind_count(tmp_path: Path, steps: Any) -> None:
    assert tiny_trainer(tmp_path).train(steps).step == 2


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (0, "steps must be at least 1; got 0. It counts optimizer steps from where the run stands"),
        (-5, "steps must be at least 1; got -5."),
        (0.5, r"steps must be a whole number or none; got 0\.5"),
        (float("nan"), "steps must be a whole number or none; got nan"),
        (float("inf"), "steps must be a whole number or none; got inf"),
        ("500", "steps must be a whole number or none; got '500'"),
        (True, "steps must be a whole number or none; got True"),
        ([5], r"steps must be a whole number or none; got \[5\]"),
    ],
)
def test_what_is_no_number_of_steps_is_refused_before_anything(
    tmp_path: Path, steps: Any, said: str
) -> None:
    trainer = tiny_trainer(tmp_path / "run")
    with pytest.raises(ConfigError, match=said):
        trainer.train(steps)
    assert not (tmp_path / "run").exists()


def test_a_callback_that_stops_cuts_a_piece_short(tmp_path: Path) -> None:
    result = tiny_trainer(tmp_path, callbacks=[StopAt(2)]).train(steps=4)
    assert (result.step, result.complete, result.exit_code) == (2, False, 143)


def test_a_signal_in_the_last_step_of_a_piece_is_heard(tmp_path: Path) -> None:
    """A loop of pieces in a notebook must end when it is interrupted."""
    interrupt = At(3, lambda _: signal.raise_signal(signal.SIGINT))
    trainer = tiny_trainer(tmp_path, callbacks=[interrupt])
    result = trainer.train(steps=3)
    assert (result.step, result.signal, result.exit_code) == (3, "SIGINT", 130)
    assert trainer.train().step == 6


def test_rolling_back_keeps_the_goal(tmp_path: Path) -> None:
    diffusion = tiny_diffusion()

    def spoil(trainer: Any) -> None:
        if not trainer.guard.rollbacks:
            next(diffusion.parameters()).data.fill_(float("nan"))

    options = {"on_nonfinite": "rollback", "save_every": 2, "log_every": 1}
    trainer = tiny_trainer(tmp_path, diffusion, max_steps=9, callbacks=[At(3, spoil)], **options)
    result = trainer.train(steps=6)
    assert trainer.guard.rollbacks == 1
    assert (result.step, result.complete) == (6, True)


class Others(Processes):
    """Two processes, one of which was asked for something else."""

    def all_objects(self, value: Any) -> list[Any]:
        return [value, 9]


def test_processes_that_were_asked_for_different_steps_say_so() -> None:
    two = Others(rank=0, count=2)
    assert last_step(9, 1, 100, two) == 10
    with pytest.raises(ConfigError, match="the same on all processes of the run; got 5, 9 on"):
        last_step(5, 1, 100, two)
    with pytest.raises(ConfigError, match="got None, 9 on processes 0 to 1"):
        last_step(None, 1, 100, two)


def test_editors_see_the_argument() -> None:
    parameter = inspect.signature(Trainer.train).parameters["steps"]
    assert parameter.default is None
    assert typing.get_type_hints(Trainer.train)["steps"] == int | None
