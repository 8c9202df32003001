"""`ddpm train --init-from`: what the command takes over from trained weights, maps and refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from command_line import ddpm, train
from ddpm_lib import Shapes
from ddpm_lib.images import save_image
from ddpm_lib.runs.checkpoint import list_checkpoints, read_state
from ddpm_lib.training import load_run

NETWORK = ("--model.time-order", "sin_cos", "--diffusion.schedule", "linear")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional run whose network and process are not the defaults."""
    run = tmp_path_factory.mktemp("init") / "source"
    assert train(run, "--class-conditional", *NETWORK, "--learning-rate", "0.01") == 0
    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures without labels."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(8):
        save_image(Shapes(size=8, n=8)[i]["image"], folder / f"{i}.png")
    return folder


def begin(source: Path, run: Path, *more: object, data: object = "shapes") -> int:
    """Train a step or two without a word on the network."""
    usual = ("--max-steps", 2, "--batch-size", 4, "--val-every", 0, "--sample-every", 0)
    where = ("--device", "cpu", "--mixed-precision", "no", "--no-progress")
    return ddpm("train", data, "--init-from", source, "--output-dir", run, *usual, *where, *more)


def said_on_stderr(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return " ".join(err.replace("│", " ").split())


def state_of(run: Path) -> dict:
    return read_state(list_checkpoints(run / "checkpoints")[-1])


def log_of(run: Path) -> str:
    return (run / "train.log").read_text()


def test_without_further_flags_network_and_process_are_those_of_the_weights(
    source: Path, tmp_path: Path
) -> None:
    assert begin(source, tmp_path / "run") == 0
    old, new = state_of(source), state_of(tmp_path / "run")
    assert (new["model"], new["diffusion"]) == (old["model"], old["diffusion"])
    assert new["started_from"]["source"] == str(source)
    assert new["started_from"]["notes"] == []
    assert new["step"] == 2


def test_the_same_command_continues_when_the_source_is_gone(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source")
    assert begin(tmp_path / "source", tmp_path / "run") == 0
    shutil.rmtree(tmp_path / "source")
    assert begin(tmp_path / "source", tmp_path / "run", "--max-steps", 3) == 0
    state = state_of(tmp_path / "run")
    assert (state["step"], state["started_from"]["step"]) == (3, state_of(source)["step"])
    assert "is not read" not in log_of(tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    assert ddpm("train", "--config", config, "--max-steps", 4) == 0
    assert state_of(tmp_path / "run")["step"] == 4


def test_flags_are_mapped_and_said(source: Path, tmp_path: Path) -> None:
    flags = ["--channels", 1, "--image-size", 16, "--model.self-condition", "--model.dropout", 0.2]
    flags += ["--diffusion.variance", "learned_range", "--diffusion.schedule", "cosine"]
    flags += ["--augment", 0.1, "--no-class-conditional"]
    assert begin(source, tmp_path, *flags) == 0
    log = log_of(tmp_path)
    said = ["channels 3 → 1", "image_size: 8×8 in source, 16×16 here", "self_condition is new"]
    said += ["The variance is learned here and was fixed", "schedule: 'linear' in source, 'cosine'"]
    said += ["augment is a new condition", "6 classes go", "dropout: 0.0 in source, 0.2 here"]
    for words in said:
        assert words in log, words
    loaded = load_run(tmp_path)
    assert loaded.diffusion.config["loss"] == "hybrid"
    assert loaded.run_state.started_from["notes"]


def test_classes_are_those_of_the_data(source: Path, tmp_path: Path) -> None:
    for kind in ("circle", "zebra", "yak"):
        for i in range(3):
            save_image(Shapes(size=8, n=8)[i]["image"], tmp_path / "data" / kind / f"{i}.png")
    assert begin(source, tmp_path / "run", data=tmp_path / "data") == 0
    assert state_of(tmp_path / "run")["model"]["config"]["num_classes"] == 3
    assert "classes by name: " in log_of(tmp_path / "run")
    assert "zebra" in log_of(tmp_path / "run")


def test_data_without_labels_need_a_word(
    source: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(source, tmp_path / "run", data=pictures) == 2
    assert "--no-class-conditional" in said_on_stderr(capsys)
    assert begin(source, tmp_path / "run", "--no-class-conditional", data=pictures) == 0
    assert "6 classes go: the network begins as for the null class." in log_of(tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model.dim", 16], "dim: 8 in source, 16 here"),
        (["--preset", "tiny"], "dim: 8 in source, 32 here"),
        (["--model.dim-mults", "1,2,2"], "dim_mults: [1, 2] in source, [1, 2, 2] here"),
        (["--diffusion.parametrization", "eps"], "is how to predict"),
        (["--diffusion.timesteps", 100], "timesteps"),
    ],
)
def test_flags_that_contradict_are_refused_before_the_data_are_opened(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags, says
) -> None:
    assert begin(source, tmp_path / "run", *flags, data=tmp_path / "nothing-here") == 2
    assert says in said_on_stderr(capsys)
    assert not (tmp_path / "run").exists()


def test_a_source_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(tmp_path / "nowhere", tmp_path / "run") != 0
    error = said_on_stderr(capsys)
    assert "nowhere does not exist" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [("--freeze", "0"), ("--pull-to-start", "0.1")])
def test_nothing_holds_on_to_random_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags
) -> None:
    assert train(tmp_path / "run", *flags) == 2
    assert f"{flags[0]} holds on to the weights that training begins with" in said_on_stderr(capsys)


def test_frozen_and_pulled_on_the_command_line(source: Path, tmp_path: Path) -> None:
    flags = ("--freeze", "time_embedding,down.0", "--pull-to-start", 0.01)
    assert begin(source, tmp_path, *flags) == 0
    old, new = (load_run(run).diffusion.model.state_dict() for run in (source, tmp_path))
    same = {k.split(".layers")[0] for k in old if old[k].equal(new[k])}
    assert {"time_embedding.linear1.weight", "down.0"} <= same
    said = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert said["freeze"] == ["time_embedding", "down.0"]


def test_print_config_is_what_would_be_trained(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert begin(source, tmp_path / "run", "--print-config") == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["model"]["time_order"] == "sin_cos"
    assert said["diffusion"]["schedule"] == "linear"
    assert said["class_conditional"] is True


def test_estimate_takes_it_too(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    flags = ("--init-from", source, "--output-dir", tmp_path / "run", "--probe-steps", 0)
    assert ddpm("estimate", "shapes", *flags, "--device", "cpu") == 0
    parameters = sum(p.numel() for p in load_run(source).diffusion.model.parameters())
    assert f"{parameters / 1e6:.2f} M parameters" in capsys.readouterr().err


FOREIGN = {
    "improved_diffusion": ("improved_diffusion", ["--image-size", 8]),
    "lucidrains": ("lucidrains_trainer/model-1.pt", ["--image-size", 16]),
    "pytorch-ddpm": ("pytorch_ddpm/ckpt.pt", ["--image-size", 8]),
    "ddpm-torch": ("tqch/ddpm_2.pt", ["--image-size", 8]),
    "Simple_DDPM": ("simple_ddpm/latest_model.pth", ["--image-size", 8]),
    "diffusers": ("diffusers/ddpm_pipeline", []),
}


@pytest.mark.filterwarnings("ignore:With groups=32 a level of 32 channels")  # as published
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(k, marks=[] if k in ("lucidrains", "diffusers") else [pytest.mark.slow])
        for k in FOREIGN
    ],
)
def test_files_of_other_libraries_are_trained_on(shared: Path, tmp_path: Path, name: str) -> None:
    """The network is built as it was, whichever class it is of, and a run that goes on says it."""
    place, flags = FOREIGN[name]
    file = shared / "fixtures" / "D_checkpoints" / place
    assert begin(file, tmp_path / "run", *flags) == 0
    state = state_of(tmp_path / "run")
    assert state["started_from"]["source"] == str(file)
    assert state["started_from"]["kind"] not in ("run", "pretrained")
    count = len(load_run(tmp_path / "run").diffusion.model.state_dict())
    assert begin(file, tmp_path / "run", *flags, "--max-steps", 3) == 0
    again = load_run(tmp_path / "run")
    assert again.step == 3
    assert len(again.diffusion.model.state_dict()) == count


def test_flags_of_unet_are_refused_for_another_network(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shared / "fixtures" / "D_checkpoints" / "lucidrains_trainer" / "model-1.pt"
    assert begin(file, tmp_path / "run", "--image-size", 16, "--model.dim", 16) == 2
    assert "--model.dim is an option of Unet, but the weights are those of a LucidrainsUnet" in (
        said_on_stderr(capsys)
    )
