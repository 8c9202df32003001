"""The network of `ddpm train` where none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_lib.cli import chosen_network as module
from ddpm_lib.cli import options
from ddpm_lib.cli.chosen_network import choose_network
from ddpm_lib.cli.train import resolve

OWN = ["pictures", "--device", "cpu", "--image-size", "32"]


def network(*flags: str) -> tuple[dict[str, Any], dict[str, Any]]:
    command = resolve([*OWN, *flags])
    return options.to_plain(command.model), options.to_plain(command.diffusion)


def test_a_cpu_gets_a_small_network_with_patches(capsys: pytest.CaptureFixture[str]) -> None:
    model, process = network()
    assert (model["dim"], model["patch_size"]) == (32, 2)
    assert (process["parametrization"], process["weighting"]) == ("x0", "flat")
    assert resolve(OWN).optimizer == "muon"
    told = capsys.readouterr().err
    assert "Chosen for a CPU" in told
    assert "--preset small" in told


@pytest.mark.parametrize(
    "flags",
    [
        ("--preset", "small"),
        ("--model.dim", "64"),
        ("--diffusion.parametrization", "v"),
        ("--diffusion.weighting", "min_snr"),
        ("--image-size", "28"),
        ("--image-size", "36"),
    ],
)
def test_what_is_named_wins(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    model, process = network(*flags)
    assert (model["dim"], model["patch_size"]) == (64, 1)
    assert (process["parametrization"], process["weighting"]) == ("v", "min_snr")
    assert resolve([*OWN, *flags]).optimizer == "adamw"
    assert capsys.readouterr().err == ""


def test_dropout_and_classes_change_nothing_of_the_choice() -> None:
    model, process = network("--model.dropout", "0.2", "--diffusion.schedule", "linear")
    assert (model["dim"], model["dropout"], process["schedule"]) == (32, 0.2, "linear")


def test_accelerators_keep_the_larger_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resolve_device", lambda wanted: torch.device("cuda"))
    assert choose_network({}, (32, 32), "auto", None).preset == "small"


@pytest.mark.parametrize("data", ["pictures", "shapes"])
def test_a_run_goes_on_with_its_own_optimizer(data: str, tmp_path: Path) -> None:
    """Another optimizer would begin its moments afresh."""
    run = tmp_path / "run"
    words = [data, "--device", "cpu", "--image-size", "32", "--output-dir", str(run)]
    assert resolve(words).optimizer == "muon"
    run.mkdir()
    (run / "status.json").write_text("{}")
    network = "model: {dim: 32, patch_size: 2}\ndiffusion: {parametrization: x0}\n"
    (run / "config.yaml").write_text(f"optimizer: adamw\n{network}")
    assert resolve(words).optimizer == "adamw"
    assert resolve([*words, "--optimizer", "muon"]).optimizer == "muon"
    assert resolve([*words, "--resume", "never"]).optimizer == "muon"


def test_a_run_goes_on_with_its_own_network(tmp_path: Path) -> None:
    """Begun when the default was another, or on another machine, whose command is the same."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "status.json").write_text("{}")
    (run / "config.yaml").write_text(
        "model: {dim: 24, patch_size: 1, num_classes: 3}\ndiffusion: {parametrization: eps}\n"
    )
    model, process = network("--output-dir", str(run))
    assert (model["dim"], model["patch_size"], model["num_classes"]) == (24, 1, None)
    assert (process["parametrization"], process["weighting"]) == ("eps", "min_snr")
    model, _ = network("--output-dir", str(run), "--resume", "never")
    assert model["dim"] == 32
