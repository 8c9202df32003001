"""Small images enlarged on the command line, and cascades of two runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from command_line import DRAW, TINY, ddpm, error_of
from ddpm_lib import GaussianDiffusion, Unet, load_run
from ddpm_lib.cli.low_res import read_small_images
from ddpm_lib.images import to_uint8
from ddpm_lib.process.cascade import Stage, sample_cascade


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A class-conditional base of 8×8 images, and a network that makes 16×16 of them."""
    out = tmp_path_factory.mktemp("cascade")
    flags = ["--learning-rate", "0.01", "--ema-decay", "0.5"]
    assert (
        ddpm("train", "shapes", *TINY, *flags, "--output-dir", out / "base", "--class-conditional")
        == 0
    )
    more = (
        "--model.low-res-factor",
        2,
        "--model.low-res-max-noise",
        0.3,
        "--no-class-conditional",
        "--image-size",
        16,
    )
    assert ddpm("train", "shapes", *TINY, *flags, *more, "--output-dir", out / "sr") == 0
    return out / "base", out / "sr"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three small pictures."""
    for i, name in enumerate(("cat.png", "dog.png", "eel.png")):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (tmp_path / "small").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "small" / name)
    return tmp_path / "small"


def test_enlarge_a_folder(runs: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--low-res", folder, "--low-res-noise", 0.1, *DRAW, "--format", "all", "--scale", 1)
    assert ddpm("sample", runs[1], *options, "--output-dir", out) == 0
    assert sorted(p.name for p in out.glob("0*.png")) == [
        "000000-cat.png",
        "000001-dog.png",
        "000002-eel.png",
    ]
    drawn = torch.from_numpy(np.load(out / "samples.npz")["arr_0"]).permute(0, 3, 1, 2)
    small = torch.stack(
        [torch.from_numpy(np.array(Image.open(p))) for p in sorted(folder.iterdir())]
    ).permute(0, 3, 1, 2)
    cond = {"low_res": small, "low_res_noise": 0.1}
    wanted = to_uint8(load_run(runs[1]).diffusion.sample(cond=cond, num_steps=2))
    assert torch.equal(drawn, wanted)
    # The grid has two tiles per image, the first of them the small image in squares.
    grid = np.array(Image.open(out / "grid.png"))
    assert grid.shape == (2 + 3 * 18, 2 + 2 * 18, 3)
    assert np.array_equal(grid[2:18:2, 2:18:2], small[0].permute(1, 2, 0).numpy())
    assert np.array_equal(grid[2:18, 20:36], drawn[0].permute(1, 2, 0).numpy())
    settings = yaml.safe_load((out / "settings.yaml").read_text())
    assert (settings["low_res"], settings["low_res_noise"]) == (str(folder), 0.1)


def test_several_samples_of_one_picture(
    runs: tuple[Path, Path], folder: Path, tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    options = ("--low-res", folder / "dog.png", *DRAW, "--format", "png")
    assert ddpm("sample", runs[1], *options, "-n", 4, "--output-dir", whole) == 0
    assert ddpm("sample", runs[1], *options, "-n", 2, "--first-index", 2, "--output-dir", part) == 0
    first, *_ = files = [np.array(Image.open(p)) for p in sorted(whole.glob("*.png"))]
    assert len(files) == 4
    assert not np.array_equal(first, files[1])
    for a, b in zip(files[2:], sorted(part.glob("*-dog.png")), strict=True):
        assert np.abs(a.astype(int) - np.array(Image.open(b)).astype(int)).max() <= 1


def test_cascade_of_two_runs(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """The command and Python draw the same images."""
    out = tmp_path / "out"
    options = (
        "--base",
        runs[0],
        "--base-num-steps",
        3,
        "--base-guidance-scale",
        2.0,
        "--class-label",
        "star",
    )
    assert (
        ddpm(
            "sample",
            runs[1],
            *options,
            *DRAW,
            "--format",
            "npz",
            "-n",
            3,
            "--seed",
            4,
            "--output-dir",
            out,
        )
        == 0
    )
    drawn = torch.from_numpy(np.load(out / "samples.npz")["arr_0"]).permute(0, 3, 1, 2)
    base, sr = (load_run(run) for run in runs)
    stages = [
        Stage(base.diffusion, num_steps=3, guidance_scale=2.0),
        Stage(sr.diffusion, num_steps=2),
    ]
    label = base.class_names.index("star")
    assert torch.equal(
        drawn, to_uint8(sample_cascade(stages, 3, cond={"class_label": label}, seed=4))
    )


def test_pictures_have_no_class_unless_one_is_named(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (
        "--model.low-res-factor",
        2,
        "--class-conditional",
        "--image-size",
        16,
        "--sample-guidance-scale",
        1,
    )
    more += (
        "--sample-every",
        0,
        "--val-every",
        0,
        "--learning-rate",
        0.05,
        "--warmup-steps",
        0,
        "--ema-decay",
        0.1,
    )
    draws = []
    for drop_prob in (0.1, 0.0):
        run = tmp_path / str(drop_prob)
        assert (
            ddpm(
                "train",
                "shapes",
                *TINY,
                *more,
                "--model.class-drop-prob",
                drop_prob,
                "--output-dir",
                run,
            )
            == 0
        )
    for label in ((), ("--class-label", "star")):
        out = tmp_path / f"out{len(draws)}"
        options = ("--low-res", folder, *DRAW, *label, "--format", "npz")
        assert ddpm("sample", tmp_path / "0.1", *options, "--output-dir", out) == 0
        draws.append(np.load(out / "samples.npz")["arr_0"])
    assert not np.array_equal(*draws)
    assert "Name it with --class-label" in error_of(
        capsys, "sample", tmp_path / "0.0", "--low-res", folder, *DRAW
    )


def test_wrong_wishes_are_refused(
    runs: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, sr = runs

    def error(*args: object) -> str:
        return error_of(capsys, "sample", *args, *DRAW)

    assert (
        "enlarges images of 8×8. Name them with --low-res FOLDER, or a run that draws them with"
        " --base" in error(sr)
    )
    assert "trained without --model.low-res-factor" in error(base, "--low-res", folder)
    assert "Give one of them" in error(sr, "--low-res", folder, "--base", base)
    for word, more in (
        ("edit", ()),
        ("inpaint", ("--mask", folder / "cat.png")),
        ("restore", ("--operator", "blur:1", "--simulate")),
    ):
        said = error_of(capsys, word, sr, folder / "cat.png", *more, *DRAW)
        assert "`ddpm sample --low-res` enlarges; in Python" in said
        assert f"diffusion.{word}(" in said
    assert "[0, 0.3]" in error(sr, "--low-res", folder, "--low-res-noise", 0.4)
    assert "does not exist" in error(sr, "--low-res", tmp_path / "nothing")
    assert "Stage 2" in error(sr, "--base", sr)
    assert "Name it with --base" in error(sr, "--low-res", folder, "--base-num-steps", 2)
    assert "trained without classes" in error(sr, "--low-res", folder, "--class-label", "star")
    Image.new("RGB", (9, 8)).save(folder / "wide.png")
    told = error(sr, "--low-res", folder)
    assert "wide.png: 9×8 pixels" in told
    assert "1 of 4 images" in told
    assert "enlarges pictures of 8×8 to 16×16" in told
    (folder / "wide.png").write_bytes(b"nothing")
    assert "wide.png" in error(sr, "--low-res", folder)


def test_grey_pictures_are_read(tmp_path: Path) -> None:
    """Without a warning: those that need no work are memory that cannot be written."""
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    network = Unet(dim=8, dim_mults=(1,), channels=1, low_res_factor=2)
    found = read_small_images(
        str(tmp_path / "grey.png"), GaussianDiffusion(network, image_size=8, timesteps=20)
    )
    assert np.array_equal(found.images[0, 0].numpy(), pixels)


def test_measured_values_are_not_read_from_pictures(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A grey value is no Hounsfield unit."""
    values = np.random.default_rng(0).normal(size=(40, 1, 16, 16)).astype(np.float32)
    np.save(tmp_path / "values.npy", 1000 * values)
    flags = ["--normalize", "affine", "--channels", 1, "--image-size", 16, "--sample-every", 0]
    more = (*TINY, *flags, "--model.low-res-factor", 2, "--output-dir", tmp_path / "run")
    assert ddpm("train", tmp_path / "values.npy", *more) == 0
    said = error_of(capsys, "sample", tmp_path / "run", "--low-res", folder, *DRAW)
    assert "measured values (1 × float32), and --low-res reads pictures" in said
