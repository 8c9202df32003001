"""`ddpm edit`, `ddpm inpaint`, and the options of samplers, spacings and guidance in `ddpm
sample`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from command_line import DRAW, ddpm, error_of, train
from ddpm_lib import Shapes, load_run
from ddpm_lib.cli import options
from ddpm_lib.images import save_image, to_uint8
from ddpm_lib.training import ConfigError

FAST = ["--device", "cpu", "--no-progress", "--mixed-precision", "no"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("redraw") / "run"
    assert train(out, "--class-conditional", "--learning-rate", "0.01") == 0
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of the model's size, and masks of the same names."""
    place = tmp_path_factory.mktemp("pictures")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    for i, item in enumerate(Shapes(size=8, n=3).batch(range(3))["image"]):
        save_image(item, place / "in" / f"{'abc'[i]}.png")
        (place / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask if i else mask.T.copy()).save(place / "masks" / f"{'abc'[i]}.png")
    return place


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_options_of_samplers_spacings_and_guidance(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--sampler",
        "unipc",
        "--sampler-options",
        "order=3",
        "corrector=false",
        "--spacing",
        "karras",
    ]
    flags += [
        "--spacing-options",
        "rho=5",
        "--guidance-scale",
        "2",
        "--guidance-interval",
        "0.1",
        "0.9",
    ]
    flags += ["--guidance-rescale", "0.7", "--num-steps", "4", "-n", "3", "--format", "npz", *FAST]
    assert ddpm("sample", run, *flags, "--output-dir", tmp_path / "a") == 0
    drawn = np.load(tmp_path / "a" / "samples.npz")["arr_0"]
    expected = load_run(run).diffusion.sample(
        3,
        sampler="unipc",
        sampler_options={"order": 3, "corrector": False},
        spacing="karras",
        spacing_options={"rho": 5},
        guidance_scale=2.0,
        guidance_interval=(0.1, 0.9),
        guidance_rescale=0.7,
        num_steps=4,
        cond={"class_label": [0, 1, 2]},
    )
    assert (
        np.abs(drawn.astype(int) - to_uint8(expected).permute(0, 2, 3, 1).numpy().astype(int)).max()
        <= 1
    )
    kept = yaml.safe_load((tmp_path / "a" / "settings.yaml").read_text())
    assert kept["sampler_options"] == ["order=3", "corrector=false"]
    assert kept["guidance_interval"] == [0.1, 0.9]
    for wrong, message in [
        (["--sampler", "unipc", "--sampler-options", "ordr=3"], "Did you mean 'order'"),
        (["--sampler-options", "order"], "takes name=value pairs"),
        (["--sampler-options", "eta=0", "eta=1"], "takes name=value pairs with different names"),
        (["--spacing", "karras", "--spacing-options", "roh=5"], "Did you mean 'rho'"),
        (["--guidance-interval", "0.9", "0.1"], "guidance_interval must be"),
        (["--guidance-rescale", "2"], "guidance_rescale must be"),
    ]:
        assert message in error_of(capsys, "sample", run, *wrong, *DRAW)


def test_key_values() -> None:
    pairs = options.key_values(["rho=5", "sigma-max=1e2", "fractional=true", "solver=heun"], "--x")
    assert pairs == {"rho": 5, "sigma_max": 100.0, "fractional": True, "solver": "heun"}
    with pytest.raises(ConfigError, match="--x takes name=value pairs"):
        options.key_values(["=3"], "--x")
    with pytest.raises(ConfigError, match="is not a number, a word"):
        options.key_values(["a=[1"], "--x")


@pytest.mark.parametrize("command", [["edit"], ["inpaint", "--mask", "mask.png"]])
def test_guidance_by_no_class_names_the_flag(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """Their pictures have no class unless one is named: they would come out unguided."""
    name, *flags = command
    told = error_of(capsys, name, run, folder / "in", *flags, "--guidance-scale", "3", *FAST)
    assert "--guidance-scale strengthens a condition that is given, and none is" in told
    assert "--class-label, or leave --guidance-scale out" in told


def test_edit(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    flags = [
        "--fraction",
        "0.6",
        "--num-steps",
        "5",
        "--variants",
        "2",
        "--class-label",
        "star",
        *FAST,
    ]
    assert ddpm("edit", run, folder / "in", *flags, "--output-dir", tmp_path / "e") == 0
    assert f"6 images -> {tmp_path}/e/images/*.png" in capsys.readouterr().out
    names = sorted(p.name for p in (tmp_path / "e" / "images").iterdir())
    assert names == ["a-1.png", "a-2.png", "b-1.png", "b-2.png", "c-1.png", "c-2.png"]
    assert pixels(tmp_path / "e" / "grid.png").shape == (
        3 * 10 * 16 + 2 * 16,
        3 * 10 * 16 + 2 * 16,
        3,
    )
    images = Shapes(size=8, n=3).batch(range(3))["image"].repeat_interleave(2, 0)
    d = load_run(run).diffusion
    label = load_run(run).class_names.index("star")
    expected = (
        to_uint8(d.edit(images, 0.6, num_steps=5, cond={"class_label": label}))
        .permute(0, 2, 3, 1)
        .numpy()
    )
    for name, image in zip(names, expected, strict=True):
        assert (
            np.abs(pixels(tmp_path / "e" / "images" / name).astype(int) - image.astype(int)).max()
            <= 1
        )
    # One file, with the defaults, into the run.
    assert ddpm("edit", run, folder / "in" / "b.png", *FAST) == 0
    made = next((run / "samples").glob("edit-0001"))
    assert sorted(p.name for p in made.iterdir()) == ["grid.png", "images", "settings.yaml"]


def test_inpaint(run: Path, folder: Path, tmp_path: Path) -> None:
    flags = ["--num-steps", "6", "--jump-length", "2", "--num-resamples", "2", *FAST]
    assert (
        ddpm(
            "inpaint",
            run,
            folder / "in",
            "--mask",
            folder / "masks",
            *flags,
            "--output-dir",
            tmp_path / "i",
        )
        == 0
    )
    for name in "abc":
        before, after = (
            pixels(folder / "in" / f"{name}.png"),
            pixels(tmp_path / "i" / "images" / f"{name}.png"),
        )
        known = np.asarray(Image.open(folder / "masks" / f"{name}.png")) < 128
        assert np.array_equal(before[known], after[known])
        assert not np.array_equal(before, after)
    # One mask for all, of the model's size for a picture of another; and the default number of
    # steps.
    Image.fromarray(pixels(folder / "in" / "a.png")).resize((20, 16)).save(tmp_path / "large.png")
    mask = folder / "masks" / "b.png"
    flags = ["--num-resamples", "1", "--variants", "2", *FAST, "--output-dir", tmp_path / "j"]
    assert ddpm("inpaint", run, tmp_path / "large.png", "--mask", mask, *flags) == 0
    assert sorted(p.name for p in (tmp_path / "j" / "images").iterdir()) == [
        "large-1.png",
        "large-2.png",
    ]
    a, b = (pixels(tmp_path / "j" / "images" / f"large-{k}.png") for k in (1, 2))
    assert np.array_equal(a[:, :4], b[:, :4])
    assert not np.array_equal(a[:, 4:], b[:, 4:])


def test_what_cannot_be_redrawn(
    run: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "broken.png").write_bytes(b"<html>")
    Image.new("L", (5, 5)).save(tmp_path / "small.png")
    Image.new("L", (8, 8), 120).save(tmp_path / "grey.png")
    Image.new("L", (8, 8), 0).save(tmp_path / "black.png")
    (tmp_path / "two").mkdir()
    for suffix in ("png", "jpg"):
        Image.new("L", (8, 8)).save(tmp_path / "two" / f"x.{suffix}")
    (tmp_path / "one").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "one" / "a.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    pictures, masks = folder / "in", folder / "masks"
    for args, message in [
        (("edit", run, tmp_path / "nothing"), "does not exist"),
        (("edit", run, pictures, "--class-label", "-1"), "-1 is no class"),
        (("inpaint", run, pictures, "--mask", tmp_path / "grey.png"), "no black and white picture"),
        (("inpaint", run, pictures, "--mask", tmp_path / "black.png"), "nothing to paint"),
        (("edit", run, tmp_path / "none"), "holds no pictures"),
        (("edit", run, tmp_path / "two"), "Two pictures in"),
        (("edit", run, tmp_path / "broken.png"), "broken.png cannot be used: a web page"),
        (("edit", run, pictures, "--fraction", "0"), "fraction must be in (0, 1]"),
        (("edit", run, pictures, "--variants", "0"), "--variants must be at least 1"),
        (("edit", run, pictures, "--class-label", "stra"), "Did you mean 'star'"),
        (("edit", run, pictures, "--output-dir", tmp_path / "full"), "is not empty"),
        (
            ("inpaint", run, pictures, "--mask", tmp_path / "small.png"),
            "The mask of a has 5×5 pixels, the picture 8×8",
        ),
        (
            ("inpaint", run, pictures, "--mask", tmp_path / "one"),
            "holds no mask named like the picture b",
        ),
        (("inpaint", run, pictures, "--mask", masks, "--sampler", "unipc"), "single-step sampler"),
        (
            ("inpaint", run, pictures, "--mask", masks, "--jump-length", "30"),
            "does not fit into 20 steps",
        ),
    ]:
        assert message in error_of(capsys, *args, *FAST)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "runs as one process" in error_of(capsys, "edit", run, pictures, *FAST)
