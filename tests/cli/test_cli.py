"""The command line from end to end, in this process: `ddpm train`, `ddpm sample`, `ddpm
prepare`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from command_line import DRAW, TINY, ddpm, error_of, train
from ddpm_lib import GaussianDiffusion, TrainingConfig, Unet
from ddpm_lib.cli import train as train_command
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.images import save_image
from ddpm_lib.runs.checkpoint import list_checkpoints
from sysu_clone import clone


def config_of(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    assert ddpm("train", *args, "--print-config") == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished class-conditional run with two averages and the checkpoints of steps 2 and 4."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert (
        train(out, "--class-conditional", "--ema-decay", "0.5", "0.9", "--learning-rate", "0.01")
        == 0
    )
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on grey images that are not square, without classes and averages."""
    out = tmp_path_factory.mktemp("cli") / "plain"
    flags = (
        "--channels",
        1,
        "--image-size",
        8,
        12,
        "--ema-decay",
        "--learning-rate",
        "0.01",
        "--no-class-conditional",
    )
    assert train(out, *flags) == 0
    return out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    from ddpm_lib import __version__

    assert ddpm() == 0
    assert "ddpm COMMAND --help" in capsys.readouterr().out
    assert ddpm("--version") == 0
    assert __version__ in capsys.readouterr().out
    assert "Unknown command 'trian'. Did you mean 'train'?" in error_of(capsys, "trian")


def proposals(told: str) -> dict[str, list[str]]:
    """Return the words of each command that the end of a training proposes, by its reason."""
    found = re.findall(r"^(?:NEXT)? +(\S.*?)(?: \(.*?\))? +(ddpm .*)$", told, re.MULTILINE)
    return {why: shlex.split(command)[1:] for why, command in found}


def test_train_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run directory, the report, and the commands that it ends with, which are run as they are
    printed, but that no training is longer than twenty steps.
    """
    out = tmp_path / "my run"
    assert train(out) == 0
    told = capsys.readouterr()
    assert {p.name for p in out.iterdir()} >= {
        "checkpoints",
        "samples",
        "config.yaml",
        "metrics.csv",
        "metrics.jsonl",
        "status.json",
        "train.log",
    }
    assert [p.name for p in list_checkpoints(out / "checkpoints")] == [
        "step-000000002",
        "step-000000004",
    ]
    assert "Training finished at step 4: reached max_steps 4" in told.err
    sections = re.findall(r"^[A-Z]+(?=  )", told.out, re.MULTILINE)
    assert sections == ["VERDICT", "SCORE", "FILES", "NEXT"]
    proposed = proposals(told.out)
    assert set(proposed) >= {"your own images", "more samples", "one class", "score it"}
    assert "path/to/images" in proposed.pop("your own images")
    assert ddpm(*proposed["more samples"], *DRAW) == 0
    assert "64 images" in capsys.readouterr().out
    assert ddpm(*proposed["one class"], *DRAW) == 0
    assert ddpm(*proposed["score it"], "--num", "8", "--device", "cpu") == 0
    for why, words in proposed.items():
        if words[0] == "train":
            steps = words.index("--max-steps") + 1
            short = [*words[:steps], str(min(20, int(words[steps]))), *words[steps + 1 :]]
            assert ddpm(*short) == 0, why


def test_the_same_command_again_finds_the_run_finished(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*")}
    again = ("--class-conditional", "--ema-decay", "0.5", "0.9", "--learning-rate", "0.01")
    assert train(run, *again) == 0
    assert "Training was finished before, at step 4: nothing to do." in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "own", "other"),
    [
        ("parametrization", ("x0", {"skip": 0.0}), "v"),
        ("weighting", ("min_snr", {"gamma": 3.0}), "flat"),
        ("schedule", ("sigmoid", {"start": -2.0}), "linear"),
    ],
)
def test_a_flag_replaces_what_a_file_says_with_its_options(
    tmp_path: Path, name: str, own: tuple[str, dict[str, float]], other: str
) -> None:
    """Those of the file mean nothing for another name; for its own name they stay."""
    file = tmp_path / "run.yaml"
    process = {name: own[0], f"{name}_options": own[1]}
    file.write_text(yaml.safe_dump({"data": "shapes", "diffusion": process}))
    flag = f"--diffusion.{name}"
    settings = train_command.resolve(["--config", str(file), flag, other]).diffusion
    assert getattr(settings, name) == other
    assert not getattr(settings, f"{name}_options")
    for words in ([], [flag, own[0]]):
        settings = train_command.resolve(["--config", str(file), *words]).diffusion
        assert getattr(settings, f"{name}_options") == own[1]


def test_a_name_replaces_that_of_a_preset_with_its_options(tmp_path: Path) -> None:
    """Given by a flag or a file; what is not named otherwise stays the preset's."""
    file = tmp_path / "run.yaml"
    file.write_text("data: shapes\npreset: cifar10-edm\ndiffusion:\n  parametrization: v\n")
    flags = ["shapes", "--preset", "cifar10-edm", "--diffusion.parametrization", "v"]
    for words in (flags, ["--config", str(file)]):
        settings = train_command.resolve(words).diffusion
        assert settings.parametrization == "v"
        assert not settings.parametrization_options
        assert settings.weighting_options == {"sigma_data": 0.5}


def test_settings_win_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flag over file over preset over default."""
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: images\npreset: cifar10\nlearning_rate: 1e-4\nmodel:\n  dropout: 0.3\n  heads: 2\n"
    )
    got = config_of(capsys, "--config", file, "--model.heads", 8)
    assert got["model"]["heads"] == 8  # flag
    assert got["model"]["dropout"] == 0.3  # file, over the preset's 0.1
    assert got["learning_rate"] == 1e-4  # file
    assert got["model"]["norm_eps"] == 1e-6  # preset
    assert got["max_steps"] == TrainingConfig().max_steps  # default
    assert config_of(capsys, "--config", file, "--preset", "tiny")["model"]["dim"] == 32


def test_what_suits_the_shapes_is_for_them_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes, images = config_of(capsys), config_of(capsys, "some/images")
    assert shapes["preset"] == "tiny"
    assert images["image_size"] == [64]
    assert images["max_steps"] == TrainingConfig().max_steps != shapes["max_steps"]
    assert config_of(capsys, "shapes", "--max-steps", 7)["max_steps"] == 7


def test_guidance_of_the_shapes_goes_with_their_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert config_of(capsys)["sample_guidance_scale"] > 1
    assert config_of(capsys, "--no-class-conditional", "shapes")["sample_guidance_scale"] == 1
    asked = config_of(capsys, "shapes", "--no-class-conditional", "--sample-guidance-scale", 3)
    assert asked["sample_guidance_scale"] == 3


def test_print_config_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "all.yaml"
    first = config_of(
        capsys,
        "shapes",
        *TINY,
        "--ema-decay",
        "0.5",
        "0.9",
        "--trackers",
        "wandb",
        "--class-conditional",
    )
    file.write_text(yaml.safe_dump(first))
    assert config_of(capsys, "--config", file) == first


@pytest.mark.parametrize("which", ["run", "plain"])
def test_the_run_directorys_config_repeats_the_run(
    which: str, request: pytest.FixtureRequest
) -> None:
    out = request.getfixturevalue(which)
    again = train_command.resolve(["--config", str(out / "config.yaml")])
    diffusion, _ = train_command.build(again)
    from ddpm_lib.training import load_run

    loaded = load_run(out, weights="model")
    assert diffusion.config == loaded.diffusion.config
    assert diffusion.model.config == loaded.diffusion.model.config
    assert again.training().to_dict() == loaded.state["training"]
    assert again.data == "shapes"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bacth_size: 3", "'bacth_size' (did you mean 'batch_size'?)"),
        ("model:\n  dimm: 3", "group model: 'dimm' (did you mean 'dim'?)"),
        ("diffusion:\n  shedule: cosine", "group diffusion: 'shedule' (did you mean 'schedule'?)"),
        ("batch_size: many", "must be a whole number or 'auto'; got 'many'"),
        ("batch_size: true", "must be a whole number or 'auto'; got True"),
        ("learning_rate: fast", "must be a number or 'auto'; got 'fast'"),
        ("model: 3", "must be a list of `option: value` lines; got int"),
        ("- 1\n- 2", "must hold `option: value` lines; got list"),
        ("a: [", "is not valid YAML"),
        ("data: shapes\npreset: smal", "Unknown preset 'smal'. Did you mean 'small'?"),
        ("lr_schedule: cosin", "Did you mean 'cosine'?"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_wrong_config_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert message in error_of(capsys, "train", "--config", file, "--output-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--bacth-size 3", "--batch-size"),
        ("--model.dimm 3", "Unknown option '--model.dimm': did you mean '--model.dim'?"),
        ("--batch-size many", "--batch-size takes a whole number or 'auto'; got 'many'"),
        ("--batch-size 0", "batch_size must be at least 1; got 0"),
        ("--preset smal", "Unknown preset 'smal'. Did you mean 'small'?"),
        ("--diffusion.schedule cosin", "Unknown schedule 'cosin'. Did you mean 'cosine'?"),
        ("--diffusion.parametrization epss", "Unknown parametrization 'epss'. Did you mean 'eps'?"),
        ("--sample-sampler dddim", "Unknown sampler 'dddim'. Did you mean 'ddim'?"),
        (
            "--lr-schedule cosin",
            (
                "--lr-schedule takes one of 'auto', 'constant', 'cosine', 'linear', 'wsd'; got"
                " 'cosin'. Did you mean 'cosine'?"
            ),
        ),
        ("--image-size 9", "9×9 must be divisible by 8"),
        ("--image-size 1 2 3", "image_size must be one number or height and width; got [1, 2, 3]"),
        ("--config nowhere.yaml", "The config file nowhere.yaml does not exist"),
        ("--trackers tensorbord", "Unknown tracker 'tensorbord'. Did you mean 'tensorboard'?"),
    ],
)
def test_wrong_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert message in error_of(
        capsys, "train", "shapes", "--output-dir", tmp_path / "run", *flags.split()
    )
    assert not list(tmp_path.rglob("checkpoints"))


def test_data_that_is_not_there_and_classes_that_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "images" / f"{i}.png")
    flags = [*TINY, "--output-dir", tmp_path / "run"]
    assert "class_conditional needs labels" in error_of(
        capsys, "train", tmp_path / "images", *flags, "--class-conditional"
    )
    assert "nowhere" in error_of(capsys, "train", tmp_path / "nowhere", *flags)


def test_output_directory_in_the_way_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in error_of(
        capsys, "train", "shapes", *TINY, "--output-dir", tmp_path / "file" / "run"
    )


def test_dry_run_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ddpm("train", "shapes", *TINY, "--dry-run", "--class-conditional") == 0
    told = capsys.readouterr().out
    assert "images of 3×8×8, 6 classes" in told
    assert "run directory: runs/shapes" in told
    assert list(tmp_path.iterdir()) == []


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert ddpm("train", "--help-all") == 0
    text = capsys.readouterr().out
    wanted = [f.name for f in dataclasses.fields(TrainingConfig)] + [
        "channels",
        "image_size",
        "preset",
        "config",
    ]
    absent = {
        "Unet": {"channels", "conditions", "dims"},
        "GaussianDiffusion": {"model", "image_size", "channels"},
    }
    for cls, group in ((Unet, "model"), (GaussianDiffusion, "diffusion")):
        names = [
            n
            for n in inspect.signature(cls.__init__).parameters
            if n != "self" and n not in absent[cls.__name__]
        ]
        wanted += [f"{group}.{n}" for n in names]
    missing = [
        name for name in wanted if f"-{name.replace('_', '-')}" not in text
    ]  # --no-progress is --progress too
    assert missing == []


def test_grey_images_that_are_not_square(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ddpm("sample", plain, "-n", 2, "--weights", "model", "--format", "npz", *DRAW) == 0
    (path,) = plain.glob("samples/draw-*/samples.npz")
    assert np.load(path)["arr_0"].shape == (2, 8, 12, 1)
    assert "without an EMA. Ask for --weights model." in error_of(capsys, "sample", plain, *DRAW)
    flags = ("--weights", "model", "--class-label", "ring")
    assert "was trained without classes" in error_of(capsys, "sample", plain, *flags, *DRAW)
    assert len(list(plain.glob("samples/draw-*"))) == 1, "a failed command leaves no empty folder"


def draw(run: Path, out: Path, *args: object) -> np.ndarray:
    """Sample into `out` and return the images (n, h, w, c)."""
    assert ddpm("sample", run, "--format", "npz", "--output-dir", out, *DRAW, *args) == 0
    (path,) = out.glob("*samples.npz")
    return np.load(path)["arr_0"]


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for float32 rounding of another batch size."""
    return a.shape == b.shape and int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1


def test_formats(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    assert (
        ddpm("sample", run, "-n", 3, "--format", "all", "--output-dir", out, "--scale", 2, *DRAW)
        == 0
    )
    names = sorted(p.name for p in out.iterdir())
    assert names == [
        "000000.png",
        "000001.png",
        "000002.png",
        "denoising.gif",
        "grid.png",
        "samples.npz",
        "settings.yaml",
    ]
    arrays = np.load(out / "samples.npz")["arr_0"]
    assert (arrays.shape, arrays.dtype) == ((3, 8, 8, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(out / "000001.png")), arrays[1])
    assert Image.open(out / "grid.png").size == (2 * (2 * 10 + 2), 2 * (2 * 10 + 2))
    assert Image.open(out / "denoising.gif").n_frames >= 2
    kept = yaml.safe_load((out / "settings.yaml").read_text())
    assert (kept["num"], kept["num_steps"]) == (3, 2)
    assert (kept["sampler"], kept["spacing"]) == ("unipc", "mixed"), "what a default was that day"


@pytest.mark.parametrize("n", [1, 5, 7])
def test_exactly_as_many_images_as_asked_whatever_the_batch_size(
    run: Path, tmp_path: Path, n: int
) -> None:
    images = draw(run, tmp_path / "three", "-n", n, "--batch-size", 3)
    assert len(images) == n
    assert alike(images, draw(run, tmp_path / "one", "-n", n))
    assert (
        ddpm("sample", run, "-n", n, "--format", "png", "--output-dir", tmp_path / "png", *DRAW)
        == 0
    )
    assert len(list((tmp_path / "png").glob("*.png"))) == n


def test_images_are_named_by_seed_and_index(run: Path, tmp_path: Path) -> None:
    whole = draw(run, tmp_path / "whole", "-n", 8, "--seed", 3)
    assert np.array_equal(whole, draw(run, tmp_path / "again", "-n", 8, "--seed", 3))
    rest = draw(run, tmp_path / "rest", "-n", 5, "--seed", 3, "--first-index", 3)
    assert alike(rest, whole[3:])
    assert not alike(whole, draw(run, tmp_path / "other", "-n", 8, "--seed", 4))
    flags = ("-n", 2, "--first-index", 3, "--format", "png", "--output-dir", tmp_path / "png")
    assert ddpm("sample", run, *flags, *DRAW) == 0
    assert sorted(p.name for p in (tmp_path / "png").glob("*.png")) == ["000003.png", "000004.png"]


def test_nothing_is_overwritten(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    for _ in range(2):
        assert ddpm("sample", tmp_path / "run", "-n", 1, *DRAW) == 0
    made = sorted((tmp_path / "run" / "samples").glob("draw-*/grid.png"))
    assert [p.parent.name for p in made] == ["draw-0001", "draw-0002"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    message = error_of(capsys, "sample", run, "--output-dir", tmp_path / "mine", *DRAW)
    assert "mine is not empty, and nothing is overwritten. Choose another --output-dir" in message


def test_which_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latest = draw(run, tmp_path / "latest", "-n", 2)
    assert np.array_equal(latest, draw(run, tmp_path / "4", "-n", 2, "--checkpoint", 4))
    older = draw(run, tmp_path / "2", "-n", 2, "--checkpoint", 2)
    assert not np.array_equal(latest, older)
    assert np.array_equal(
        older, draw(run, tmp_path / "name", "-n", 2, "--checkpoint", "step-000000002")
    )
    assert np.array_equal(
        older, draw(run / "checkpoints" / "step-000000002", tmp_path / "path", "-n", 2)
    )
    flags = ("-n", 2, "--checkpoint", "all", "--format", "grid", "--output-dir", tmp_path / "all")
    assert ddpm("sample", run, *flags, *DRAW) == 0
    assert sorted(p.name for p in (tmp_path / "all").glob("*.png")) == [
        "step-000000002-grid.png",
        "step-000000004-grid.png",
    ]
    message = error_of(capsys, "sample", run, "--checkpoint", 3)
    assert (
        "has no checkpoint '3'. There are: step-000000002, step-000000004; or 'latest', or 'all'"
        in message
    )
    assert "does not exist. Give a run directory" in error_of(
        capsys, "sample", tmp_path / "nowhere"
    )
    assert f"{tmp_path} is no run directory. Give a run directory" in error_of(
        capsys, "sample", tmp_path
    )


def test_damaged_newest_checkpoint_is_passed_over_aloud(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    with (copy / "checkpoints" / "step-000000004" / "ema.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x99")
    assert alike(
        draw(copy, tmp_path / "a", "-n", 2), draw(run, tmp_path / "b", "-n", 2, "--checkpoint", 2)
    )
    (line,) = [r.getMessage() for r in caplog.records if "Passed over" in r.getMessage()]
    assert "step-000000004: ema.safetensors is damaged" in line
    assert "Taking step-000000002" in line
    assert "ema.safetensors is damaged" in error_of(capsys, "sample", copy, "--checkpoint", 4)


def test_which_weights(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    averaged = draw(run, tmp_path / "ema", "-n", 2)
    assert np.array_equal(averaged, draw(run, tmp_path / "first", "-n", 2, "--ema-decay", 0.5))
    assert not np.array_equal(
        averaged, draw(run, tmp_path / "model", "-n", 2, "--weights", "model")
    )
    assert "keeps no EMA of decay 0.7. It keeps: 0.5, 0.9" in error_of(
        capsys, "sample", run, "--ema-decay", 0.7
    )


def test_which_class(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ddpm_lib.training import load_run

    names = load_run(run).class_names
    by_name = draw(run, tmp_path / "name", "-n", 2, "--class-label", names[4])
    assert np.array_equal(by_name, draw(run, tmp_path / "number", "-n", 2, "--class-label", 4))
    assert not np.array_equal(by_name, draw(run, tmp_path / "other", "-n", 2, "--class-label", 1))
    assert alike(
        draw(run, tmp_path / "turn", "-n", 6)[4:5],
        draw(run, tmp_path / "4", "-n", 6, "--class-label", 4)[4:5],
    )
    wrong = error_of(capsys, "sample", run, "--class-label", names[0][:-1], "--device", "cpu")
    assert f"Unknown class '{names[0][:-1]}'. Did you mean '{names[0]}'?" in wrong
    assert "Unknown class '6'" in error_of(
        capsys, "sample", run, "--class-label", 6, "--device", "cpu"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num 0", "--num must be at least 1; got 0"),
        ("--batch-size 0", "--batch-size must be at least 1; got 0"),
        ("--first-index -1", "--first-index must be 0 or more; got -1"),
        ("--sampler dddim", "Unknown sampler 'dddim'. Did you mean 'ddim'?"),
        ("--sampler ddpm --eta 0.5", "'ddpm' has no option 'eta'"),
        ("--num-steps 21", "21"),
        ("--spacing trailin", "trailing"),
        (
            "--format gid",
            (
                "--format takes one of 'grid', 'png', 'npz', 'gif', 'all', 'npy', 'tiff', 'nifti';"
                " got 'gid'. Did you mean 'grid'?"
            ),
        ),
        ("--nmu 3", "--num"),
    ],
)
def test_wrong_sampling_flags(
    run: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    before = sorted(run.rglob("*"))
    assert message in error_of(
        capsys, "sample", run, "--device", "cpu", "--no-progress", *flags.split()
    )
    assert sorted(run.rglob("*")) == before


def test_prepare_and_train_on_what_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = clone(tmp_path / "clone"), tmp_path / "out"
    assert (
        ddpm("prepare", "sysu", photos, out, "--size", 8, "--val-fraction", 0.2, "--num-workers", 0)
        == 0
    )
    command = capsys.readouterr().out.splitlines()[-1].split()
    assert command[:2] == ["ddpm", "train"]
    assert sorted(p.name for p in out.iterdir()) == [
        "eval_data",
        "normalized_eval_data",
        "splits.json",
        "train_data",
    ]
    flags = ("--class-conditional", "--output-dir", tmp_path / "run", "--num-workers", 0)
    assert ddpm(*command[1:], *TINY, *flags) == 0
    capsys.readouterr()
    assert "nowhere" in error_of(
        capsys, "prepare", "sysu", tmp_path / "nowhere", tmp_path / "other"
    )
    said = error_of(capsys, "prepare", "cifar", photos, out)
    assert "Unknown dataset 'cifar'. Did you mean 'cifar10'? Choices: sysu, mnist" in said
    line = error_of(capsys, "prepare", "mnist", photos, out)
    assert "mnist is not written anew" in line
    assert f"ddpm prepare mnist --data-root {out}" in line
    assert "sysu takes two folders" in error_of(capsys, "prepare", "sysu", photos)


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning])
def test_warnings_for_users_are_a_sentence(monkeypatch, capsys, category) -> None:
    def main(args: list[str]) -> int:
        sys.stderr.write(warnings.formatwarning("too few", category, "file.py", 7))
        return 0

    before = warnings.formatwarning
    monkeypatch.setattr(train_command, "main", main)
    assert ddpm("train") == 0
    told = capsys.readouterr().err
    assert (told == "warning: too few\n") if category is UserWarning else "file.py:7" in told
    assert warnings.formatwarning is before


@pytest.mark.parametrize(
    ("flags", "first"),
    [
        (["--class-conditional"], "opening pics, as the network depends on its classes …"),
        (["--class-conditional", "--model.num-classes", "3"], "building the network …"),
        (["--no-class-conditional"], "building the network …"),
    ],
)
def test_estimate_speaks_before_it_opens_the_data(
    flags: list[str],
    first: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_image(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "pics" / "a" / "0.png")
    said = []

    def build(config: Any) -> Any:
        said.append(capsys.readouterr())
        raise ConfigError("that is enough")

    monkeypatch.setattr(train_command, "build", build)
    assert ddpm("estimate", "pics", *flags) == 2
    lines = said[0].err.splitlines()
    assert lines[0].startswith("Chosen for a CPU: the network tiny"), "what it estimates"
    assert lines[1] == f"ddpm estimate: {first}"
    assert said[0].out == ""


@pytest.mark.parametrize(
    ("flags", "numbers", "others"),
    [
        (["-n", 3, "--seed", 4], "seed 4, images 0 to 2", ("--seed 5", "--first-index 3")),
        (["-n", 1, "--first-index", 7], "seed 0, image 7", ("--seed 1", "--first-index 8")),
    ],
)
def test_sample_says_which_images_of_which_seed_these_are(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[Any],
    numbers: str,
    others: tuple[str, str],
) -> None:
    capsys.readouterr()
    assert ddpm("sample", run, *flags, *DRAW, "--output-dir", tmp_path / "s") == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line == (
        f"{numbers}: the same command draws the same. Others: {others[0]}, or the next ones:"
        f" {others[1]}."
    )
