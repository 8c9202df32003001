"""`ddpm plan` and `ddpm train DATA --hours`: files, flags, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ddpm_lib.cli import main as ddpm
from ddpm_lib.cli.train import resolve
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.training.planning import deciding
from plan_tools import cost


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with forty pictures, on a machine whose speed is pretended."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats").mkdir()
    draw = np.random.default_rng(0)
    for k in range(40):
        pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "cats" / f"{k}.png")
    monkeypatch.setattr(deciding, "rehearse", lambda settings, images: cost(0.01, 10**7, 8))
    return tmp_path


def test_it_writes_what_train_takes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The settings of the file are those of the run; flags win."""
    assert ddpm(["plan", "cats", "--hours", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert out == (here / "run.yaml").read_text()
    assert "train:   ddpm train run.yaml" in err
    said = yaml.safe_load(out)
    command = resolve(["run.yaml", "--seed", "5"])
    assert command.data == said["data"] == str(here / "cats")
    assert (command.max_steps, command.seed) == (said["max_steps"], 5)
    assert command.model.patch_size == said["model"]["patch_size"]
    assert command.diffusion.parametrization == said["diffusion"]["parametrization"]
    assert list(command.image_size) == said["image_size"]


def test_a_second_plan_has_another_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is overwritten; a name that was asked for and is taken is an error."""
    for _ in range(2):
        assert ddpm(["plan", "cats"]) == 0
    assert (here / "run-2.yaml").is_file()
    assert ddpm(["plan", "cats", "--output", "run.yaml"]) == 2
    assert "run.yaml is there already, and is not overwritten" in capsys.readouterr().err
    assert ddpm(["plan", "cats", "--output", "-"]) == 0
    assert sorted(p.name for p in here.glob("*.yaml")) == ["run-2.yaml", "run.yaml"]


def test_flags_of_training_are_kept(here: Path) -> None:
    """Those of the network and the process as well."""
    flags = ["--batch-size", "4", "--model.dim", "16", "--diffusion.schedule", "linear"]
    assert ddpm(["plan", "cats", "--for", "likelihood", *flags]) == 0
    said = yaml.safe_load((here / "run.yaml").read_text())
    assert (said["batch_size"], said["model"]["dim"]) == (4, 16)
    assert said["diffusion"]["schedule"] == "linear"
    assert said["diffusion"]["loss"] == "hybrid"
    assert resolve(["run.yaml"]).model.dim == 16


def test_train_plans_with_hours(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The limit is what is left of the hours; the reasons are said."""
    command = resolve(["cats", "--hours", "0.5", "--learning-rate", "3e-4"])
    assert command.data == "cats"
    assert 0.4 < (command.max_hours or 0) <= 0.5
    assert command.learning_rate == 3e-4
    assert command.diffusion.weighting in ("flat", "min_snr")
    said = capsys.readouterr().err
    assert "plan: learning_rate 0.0003: as asked for [given]" in said
    assert "plan: copies" in said


def test_the_same_command_goes_on_with_its_plan(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is there has settings, whatever the machine does today."""
    run = here / "runs" / "cats"
    run.mkdir(parents=True)
    (run / "status.json").write_text("{}")
    (run / "config.yaml").write_text(f"output_dir: {run}\nmax_steps: 77\nmodel: {{dim: 24}}\n")
    monkeypatch.setattr(deciding, "rehearse", None)
    command = resolve(["cats", "--hours", "0.5"])
    assert (command.max_steps, command.model.dim, command.max_hours) == (77, 24, 0.5)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no data": (["plan", "--hours", "1"], "on which data?"),
    "no folder": (["plan", "catz"], "cats"),
    "no time": (["plan", "cats", "--hours", "0"], "--hours must be a number of at least 0.01"),
    "a purpose": (["plan", "cats", "--for", "sampels"], "samples"),
    "a purpose without hours": (["train", "cats", "--for", "samples"], "say how many hours"),
    "weights": (["plan", "cats", "--init-from", "x"], "trained weights have one already"),
    "two limits": (["train", "cats", "--hours", "1", "--max-hours", "1"], "leave max_hours out"),
    "no such plan": (["train", "rum.yaml"], "The config file rum.yaml does not exist"),
    "two configs": (["train", "a.yaml", "--config", "b.yaml"], "Give one of them"),
}


@pytest.mark.parametrize(("words", "told"), REFUSED.values(), ids=REFUSED)
def test_mistakes_are_answered(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line, with exit code 2."""
    assert ddpm(words) == 2
    assert told in capsys.readouterr().err


def test_several_processes_do_not_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would disagree."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="Plan first, without a launcher"):
        resolve(["cats", "--hours", "1"])


def test_hours_stand_in_a_config_as_well(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like any option."""
    seen: list[Any] = []
    real: Callable[..., Any] = deciding.Deciding.decide_all
    monkeypatch.setattr(
        deciding.Deciding, "decide_all", lambda self: (seen.append(self.hours), real(self))
    )
    (here / "wish.yaml").write_text("data: cats\nhours: 0.25\nbatch_size: 4\n")
    command = resolve(["wish.yaml"])
    assert seen == [0.25]
    assert command.batch_size == 4
