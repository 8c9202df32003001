"""Devices by number, variables that launchers leave behind, accelerate's state after other work,
errors of validation, bars.
"""

from __future__ import annotations

import io
import os
import socket
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState

from ddpm_lib import Shapes
from ddpm_lib.ablation import ablate
from ddpm_lib.core import progress
from ddpm_lib.core.device_choice import resolve_device
from ddpm_lib.core.errors import LostProcessError
from ddpm_lib.evaluation import evaluate
from ddpm_lib.runtime import launch
from ddpm_lib.runtime.devices import join_processes
from ddpm_lib.runtime.launch import launched_processes
from ddpm_lib.time_sampling import spread_levels
from ddpm_lib.training import ConfigError, process_state
from ddpm_lib.training.callbacks.validation import standard_errors
from ddpm_lib.training.estimate import estimate
from training_helpers import tiny_diffusion, tiny_trainer

NAMES = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*NAMES, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "CUDA_VISIBLE_DEVICES"]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device(torch.device("cuda")).index is None
    with pytest.raises(
        ConfigError,
        match=r"device='cuda:2' does not exist: there are 2 of that kind, cuda:0 … cuda:1\.$",
    ):
        resolve_device("cuda:2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=4,5 hides others"):
        resolve_device("cuda:7")


@pytest.mark.usefixtures("two_gpus")
def test_one_gpu_is_not_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r'2 processes.*Use device="cuda"; CUDA_VISIBLE_DEVICES'):
        join_processes("cuda:1", 1.0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "not MASTER_ADDR and MASTER_PORT"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "n1"},
            "but not MASTER_PORT",
        ),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "9"}, "but not RANK"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "9"},
            "contradicts itself",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number; got 'two'"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "not MASTER_ADDR and MASTER_PORT and RANK"),
        ({"PMI_SIZE": "2", "RANK": "0"}, "not MASTER_ADDR"),
    ],
    ids=str,
)
def test_variables_that_cannot_be_true(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], words: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"{words}.*unset WORLD_SIZE RANK LOCAL_RANK"):
        launched_processes(cpu=True)


def test_tasks_of_slurm_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": "0",
        "WORLD_SIZE": "2",
        "RANK": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="srun --ntasks 1"):
        launched_processes(cpu=True)


@pytest.mark.parametrize(
    "given",
    [
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
        {"LOCAL_RANK": "3"},
        {"RANK": "1", "MASTER_ADDR": "n1"},
    ],
)
def test_what_is_left_over_of_one_process_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert tiny_trainer(tmp_path, max_steps=1).train().status == "finished"
    assert {name: os.environ.get(name) for name in given} == given
    assert not torch.distributed.is_initialized()


def test_other_work_leaves_accelerate_as_it_was(tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    classes: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)
    AcceleratorState._reset_state(reset_partial_state=True)
    before = [cls._shared_state for cls in classes]
    contents = [dict(state) for state in before]
    trainer = tiny_trainer(tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.sample(1, num_steps=1)
    numbers: dict[str, Any] = {
        "metrics": "nll",
        "num": 1,
        "num_levels": 2,
        "device": "cpu",
        "progress": False,
    }
    evaluate(tmp_path / "run", Shapes(size=8, n=4), **numbers)
    estimate(tiny_diffusion(), trainer.config, probe_steps=1)
    sizes: dict[str, Any] = {"images": 32, "seeds": (0,), "num_samples": 8, "device": "cpu"}
    fixed = {"batch_size": 32, "model.width": 8, "sample.num_steps": 2}
    ablate(
        "toy:ring",
        {"diffusion.schedule": ["cosine"]},
        fixed=fixed,
        output_dir=tmp_path / "ablation",
        **sizes,
    )
    process_state("cpu")
    assert all(cls._shared_state is state for cls, state in zip(classes, before))
    assert [dict(state) for state in before] == contents


def test_the_error_of_a_validation_is_that_of_systematic_samples() -> None:
    """Losses f(t) + noise: how f changes with the level is no error, and a level's common noise is
    none of the gap.
    """
    n, sigma, common = 4000, 0.2, 0.5
    draw = torch.Generator().manual_seed(0)
    t = spread_levels(np.arange(n), 1000).double() / 1000
    shared = common * torch.randn(n, generator=draw, dtype=torch.float64)
    sides = [
        5 * t**2 + shared + sigma * torch.randn(n, generator=draw, dtype=torch.float64)
        for _ in range(2)
    ]
    error, gap_error = standard_errors(sides[0], sides[1], 1000)
    assert error == pytest.approx(((sigma**2 + common**2) / n) ** 0.5, rel=0.05)
    assert gap_error == pytest.approx((2 * sigma**2 / n) ** 0.5, rel=0.05)
    assert sides[0].std() / n**0.5 > 2 * error, "the plain standard error counts the levels as well"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars_with_rows_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert progress.bar_style() == "terminal"
    tiny_trainer(tmp_path, progress=True).train()
    assert "\r" in screen.getvalue()
    assert "100%" in screen.getvalue()
    assert "\n        6 " in screen.getvalue() or "\r        6 " in screen.getvalue()
    assert "\r" not in (tmp_path / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(("widgets", "style"), [(False, "lines"), (True, "widgets")])
def test_a_notebook_gets_widgets_or_lines_on_stdout(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    widgets: bool,
    style: str,
) -> None:
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    found = {"ipywidgets": object()} if widgets else {}
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: found.get(name))
    assert progress.bar_style() == style
    assert progress.stream() is sys.stdout
    if not widgets:
        assert list(progress.bar(range(3), desc="work")) == [0, 1, 2]
        progress.write("a line")
        captured = capsys.readouterr()
        assert captured.out == "a line\n"
        assert captured.err == ""


@pytest.mark.parametrize("rank", [0, 1])
def test_waiting_where_nobody_else_is_says_so(
    rank: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """WORLD_SIZE left over from other work: the first process waits for a second one, the second
    for an address.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {
        "WORLD_SIZE": 2,
        "RANK": rank,
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(launch, "WAITING_SECONDS", 0.1)
    with (
        caplog.at_level("WARNING"),
        pytest.raises(LostProcessError, match=r"could not meet at 127\.0\.0\.1") as caught,
    ):
        join_processes("cpu", 0.01)
    assert not PartialState._shared_state, "a second try must meet anew"
    told = [record.getMessage() for record in caplog.records if "Waiting at" in record.getMessage()]
    assert told == [
        f"Waiting at 127.0.0.1:{port} for the other processes (WORLD_SIZE=2, RANK={rank},"
        f" LOCAL_RANK={rank}). If they are left over and this is to be one process: `unset"
        " WORLD_SIZE RANK LOCAL_RANK`."
    ]
    assert "`unset WORLD_SIZE RANK LOCAL_RANK`" in str(caught.value)
    for name in values:
        monkeypatch.delenv(name)
    assert launched_processes(cpu=True) == 1, "the remedy works"
