"""Conditions of the data on the command line: trained, continued, drawn, swept, read back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from command_line import DRAW, TINY, ddpm, error_of
from ddpm_lib import GaussianDiffusion, Unet, load_run
from ddpm_lib.cli.class_labels import condition
from ddpm_lib.cli.condition_flags import read_sweep
from ddpm_lib.evaluation import evaluate
from ddpm_lib.images import to_uint8
from ddpm_lib.metrics import condition_readers

WORDS = (
    "--condition",
    "size=:size",
    "--condition",
    "colour=:colour,drop=0.3",
    "--condition",
    "mask=:mask",
    "--no-class-conditional",
    "--sample-guidance-scale",
    1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("conditions") / "run"
    assert ddpm("train", "shapes", *TINY, *WORDS, "--output-dir", where) == 0
    return where


def pixels(folder: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(folder / "samples.npz")["arr_0"])


def draw(run: Path, out: Path, *flags: object) -> torch.Tensor:
    how = [*DRAW, "--format", "npz", "--weights", "model"]
    assert ddpm("sample", run, *how, *flags, "--output-dir", out) == 0
    return pixels(out)


def test_the_same_command_continues(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = load_run(run).diffusion.model.config["conditions"]
    assert table["colour"]["drop_prob"] == 0.3
    steps = load_run(run).step
    assert ddpm("train", "--config", run / "config.yaml", "--max-steps", steps + 1) == 0
    assert load_run(run).step == steps + 1
    assert load_run(run).diffusion.model.config["conditions"] == table
    capsys.readouterr()
    other = ("--condition", "size=:size", "--output-dir", run, "--max-steps", steps + 2)
    said = error_of(capsys, "train", "shapes", *TINY, *other)
    assert "was trained with the conditions size, colour, mask; now size" in said


def test_images_follow_what_is_said(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 2, np.uint8)).save(tmp_path / "m.png")
    plain = draw(run, tmp_path / "a", "--num", 2)
    told = ["--cond", "size=0.7", "--cond", "colour=red", "--cond", f"mask={tmp_path / 'm.png'}"]
    same = draw(run, tmp_path / "b", "--num", 2, *told)
    loaded = load_run(run, weights="model").diffusion
    cond = {"size": 0.7, "colour": "red", "mask": torch.full((8, 8), 2)}
    images = to_uint8(loaded.sample(2, cond=cond, num_steps=2, progress=False))
    assert torch.equal(images.permute(0, 2, 3, 1), same)
    assert not torch.equal(plain, same)
    again = draw(run, tmp_path / "c", "--num", 2, *told, "--cond-guidance", "colour=2")
    assert not torch.equal(again, same)
    none = draw(run, tmp_path / "d", "--num", 2, "--cond", "size=none")
    assert torch.equal(none, plain)


def test_a_sweep_changes_one_thing_from_column_to_column(run: Path, tmp_path: Path) -> None:
    swept = draw(run, tmp_path / "a", "--sweep", "size=0.5,0.6,0.7", "--num", 6)
    alone = draw(run, tmp_path / "b", "--cond", "size=0.6", "--num", 1, "--seed", 1)
    assert torch.equal(swept[4], alone[0])  # row 1, column 1
    assert not torch.equal(swept[3], swept[4])
    assert ddpm("sample", run, *DRAW, "--sweep", "colour", "--output-dir", tmp_path / "c") == 0
    settings = yaml.safe_load((tmp_path / "c" / "settings.yaml").read_text())
    assert settings["sweep"] == "colour"
    assert settings["columns"] == 8
    later = ["--sweep", "size=0.5,0.6,0.7", "--num", 2, "--first-index", 4]
    assert torch.equal(draw(run, tmp_path / "e", *later), swept[4:])
    many = ["--sweep", "size=0.5,0.6,0.7", "--num", 37, "--format", "gif"]  # a GIF shows 36
    assert ddpm("sample", run, *DRAW, *many, "--output-dir", tmp_path / "d") == 0
    assert list((tmp_path / "d").glob("*.gif"))


def test_rows_of_a_sweep_enlarge_one_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else columns would differ by their small pictures, which would not be those of the masks."""
    flags = ("--model.low-res-factor", 2, "--image-size", 16, "--output-dir", tmp_path / "sr")
    assert ddpm("train", "shapes", *TINY, *WORDS, *flags) == 0
    for folder, size, values in (("small", 8, (90, 200)), ("masks", 16, (0, 1))):
        (tmp_path / folder).mkdir()
        for name, value in zip("ab", values):
            picture = np.full((size, size, 3)[: 3 - (folder == "masks")], value, np.uint8)
            Image.fromarray(picture).save(tmp_path / folder / f"{name}.png")
    sweep = ["--sweep", "size=0.5,0.6,0.7"]
    small = ["--low-res", tmp_path / "small", "--cond", f"mask={tmp_path / 'masks'}"]
    capsys.readouterr()
    swept = draw(tmp_path / "sr", tmp_path / "a", *sweep, *small)
    assert len(swept) == 6
    assert "Others: --seed 2, or the next ones: --first-index 6" in capsys.readouterr().out
    one = ["--low-res", tmp_path / "small" / "b.png", "--cond", f"mask={tmp_path}/masks/b.png"]
    alone = draw(tmp_path / "sr", tmp_path / "b", *one, "--cond", "size=0.6", "--seed", 1)
    assert torch.equal(swept[4], alone[0])  # row 1, column 1
    base = [*sweep, "--base", run, "--num", 6]
    cascade = draw(tmp_path / "sr", tmp_path / "c", *base)
    later = draw(tmp_path / "sr", tmp_path / "d", *base[:-1], 2, "--first-index", 4)
    assert torch.equal(cascade[4:], later)
    same = draw(tmp_path / "sr", tmp_path / "e", "--sweep", "size=0.6,0.6", *base[2:-1], 4)
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[2], same[3])
    assert not torch.equal(same[0], same[2])


def test_conditions_are_read_back(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condition_readers.Reader.__init__, "__defaults__", (0, 5))
    found = evaluate(run, metrics="adherence", num=16, sample_steps=2, sampler="ddim")
    names = [score.name for score in found.scores]
    assert names == [
        f"adherence_{name}{part}"
        for name in ("size", "colour", "mask")
        for part in ("", "/real", "/chance")
    ]
    assert all(np.isfinite(score.value) for score in found.scores)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cond", "sise=0.5"), "Did you mean 'size'"),
        (("--cond", "size"), "is written NAME=VALUE"),
        (("--cond", "size=large"), "'size' (number) takes a number; got 'large'"),
        (("--cond", "size=nan"), "takes a number; got 'nan'"),
        (("--cond", "colour=rod"), "Did you mean 'red'"),
        (("--cond", "size=0.5", "--cond", "size=0.6"), "--cond size is given twice"),
        (("--cond", "mask=nowhere.png"), "nowhere.png"),
        (("--cond", "mask={wide}"), "16×8 pixels, the images have the proportions of 8×8"),
        (("--cond", "mask={rgb}"), "in colour (RGB), a mask has one number per pixel"),
        (("--cond", "mask={high}"), "has the class 9; they go from 0 to 6"),
        (("--cond", "class_label=1"), "--class-label"),
        (("--sweep", "mask"), "goes through numbers, angles, labels, tags and texts"),
        (("--sweep", "size", "--cond", "size=0.5"), "--cond and --sweep both name 'size'"),
        (("--sweep", "size=a..b"), "takes a number; got 'a'"),
        (("--sweep", "size=,"), "--sweep size=, names no value. Write A,B,C"),
        (("--cond-guidance", "size=2"), "Guidance by 'size' strengthens its value"),
        (("--cond-guidance", "size=much", "--cond", "size=1"), "takes a number; got 'much'"),
        (
            ("--cond-guidance", "size=2", "--guidance-scale", "2", "--cond", "size=1"),
            "Give one of them",
        ),
    ],
)
def test_bad_words_are_named(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    Image.new("L", (16, 8)).save(tmp_path / "wide.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "rgb.png")
    Image.new("L", (8, 8), 9).save(tmp_path / "high.png")
    files = {name: tmp_path / f"{name}.png" for name in ("wide", "rgb", "high")}
    words = [flag.format(**files) if "{" in flag else flag for flag in flags]
    assert message in error_of(capsys, "sample", run, *DRAW, *words)


def test_bad_training_words_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in {
        "hue=:hue": "Unknown fact of the built-in shapes 'hue'",
        "size=nowhere.csv:size": "nowhere.csv",
        "size": "is written NAME=SOURCE",
    }.items():
        said = error_of(
            capsys, "train", "shapes", *TINY, "--condition", words, "--output-dir", tmp_path / "r"
        )
        assert message in said
        assert not (tmp_path / "r" / "checkpoints").exists()


def test_networks_without_conditions_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ddpm("train", "shapes", *TINY, "--output-dir", tmp_path / "run") == 0
    capsys.readouterr()
    said = error_of(capsys, "sample", tmp_path / "run", *DRAW, "--cond", "size=0.5")
    assert "was trained without conditions of the data (--condition)" in said
    said = error_of(capsys, "evaluate", tmp_path / "run", "--metrics", "adherence")
    assert "this network takes none" in said


def test_rows_of_a_sweep_keep_their_class() -> None:
    """Else a column would differ from the next by its class too."""
    diffusion = GaussianDiffusion(Unet(dim=8, dim_mults=(1,), num_classes=3), image_size=8)
    loaded: Any = SimpleNamespace(diffusion=diffusion, class_names=None)
    flags = SimpleNamespace(base=None, low_res=None, class_label=None, first_index=4)
    swept = condition(loaded, flags, 8, columns=4)["class_label"]
    assert swept.tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert condition(loaded, flags, 4)["class_label"].tolist() == [1, 2, 0, 1]


def test_a_sweep_goes_through_numbers_that_are_near_to_each_other() -> None:
    """Days counted since long ago differ in their seventh digit; two dots may be in a name."""
    day = {"kind": "number", "mean": 2459005.0, "std": 3.0, "low": 2459000.0, "high": 2459010.0}
    style = {"kind": "label", "names": ["a..b", "c"]}
    model = Unet(dim=8, dim_mults=(1,), conditions={"day": day, "style": style})
    diffusion = GaussianDiffusion(model, image_size=8)
    for written in ("day", "day=2459000..2459010"):
        swept: Any = read_sweep(diffusion, written)
        assert np.allclose(swept.values, np.linspace(2459000, 2459010, 8), atol=0.2)
        assert [float(word) for word in swept.words] == pytest.approx(swept.values.tolist())
    named: Any = read_sweep(diffusion, "style=a..b,c")
    assert named.words == ("a..b", "c")
