"""`ddpm restore`: pictures that were measured, whole ones that are measured first, and what cannot
be restored.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from command_line import ddpm, error_of, train
from ddpm_lib import Shapes, load_run
from ddpm_lib.cli.inpaint import read_masks
from ddpm_lib.cli.redraw import read_pictures
from ddpm_lib.images import save_image, to_uint8
from ddpm_lib.process.operators import Mask, make_operator

FAST = ["--device", "cpu", "--no-progress", "--mixed-precision", "no", "--num-steps", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("restored") / "run"
    assert train(out, "--class-conditional", "--learning-rate", "0.01") == 0
    return out


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return Shapes(size=8, n=3).batch(range(3))["image"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, truth: torch.Tensor) -> Path:
    """Whole pictures, blurred ones, small ones, grey ones, and masks, three of each."""
    place = tmp_path_factory.mktemp("pictures")
    hidden = np.zeros((8, 8), np.uint8)
    hidden[2:6, 2:6] = 255
    unit = truth.float() / 255
    for kind, operator in (("blurred", "blur:1"), ("small", "downsampling:2"), ("grey", "grey")):
        for name, image in zip("abc", make_operator(operator).apply(unit)):
            save_image(image, place / kind / f"{name}.png")
    for k, (name, image) in enumerate(zip("abc", truth)):
        save_image(image, place / "whole" / f"{name}.png")
        (place / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.roll(hidden, k, 0)).save(place / "masks" / f"{name}.png")
    return place


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def as_saved(path: Path) -> torch.Tensor:
    array = torch.from_numpy(np.array(Image.open(path)))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def close(path: Path, image: torch.Tensor) -> None:
    expected = to_uint8(image).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pixels(path) - expected).max() <= 1


def test_one_mask_at_home_is_that_of_all_pictures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind `mask:` no shell replaces the ~."""
    shutil.copy(folder / "masks" / "a.png", tmp_path / "hole.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = read_pictures(str(folder / "whole"), (8, 8), 3)
    masks = read_masks("~/hole.png", found)
    assert torch.equal(masks, read_masks(str(tmp_path / "hole.png"), found))
    assert len(masks) == 3


def test_what_was_measured(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command draws what `restore` does, of several pictures and of folders."""
    capsys.readouterr()
    out = tmp_path / "r"
    pictures = [folder / "blurred" / "a.png", folder / "blurred" / "c.png"]
    flags = ["--operator", "blur:1", "--variants", "2", "--class-label", "star", "--seed", "3"]
    more = ["--method", "pigdm", "--method-options", "data_std=0.4", "--strength", "0.8"]
    more += ["--guidance-scale", "2", "--noise-std", "0.02"]
    assert ddpm("restore", run, *flags, *pictures, *more, *FAST, "--output-dir", out) == 0
    told = capsys.readouterr().out
    assert f"4 images -> {out}/images/*.png" in told
    assert "differ from the pictures by 0." in told
    assert "(noise: 0.0200)" in told
    assert "PSNR" not in told
    loaded = load_run(run)
    y = torch.stack([torch.from_numpy(pixels(p)).permute(2, 0, 1) for p in pictures]).byte()
    expected = loaded.diffusion.restore(
        y.repeat_interleave(2, 0),
        "blur:1",
        noise_std=0.02,
        method="pigdm",
        method_options={"data_std": 0.4},
        strength=0.8,
        num_steps=4,
        seed=3,
        cond={"class_label": loaded.class_names.index("star")},
        guidance_scale=2.0,
    )
    names = ["a-1.png", "a-2.png", "c-1.png", "c-2.png"]
    assert sorted(p.name for p in (out / "images").iterdir()) == names
    for name, image in zip(names, expected):
        close(out / "images" / name, image)
    # What was measured and two results in a row.
    assert pixels(out / "grid.png").shape == (2 * 10 * 16 + 2 * 16, 3 * 10 * 16 + 2 * 16, 3)
    kept = yaml.safe_load((out / "settings.yaml").read_text())
    assert kept["operator"] == "blur:1"
    assert kept["images"] == [str(p) for p in pictures]


def test_small_and_grey_pictures(run: Path, folder: Path, tmp_path: Path) -> None:
    d = load_run(run).diffusion
    for kind, operator in (("small", "downsampling:2"), ("grey", "grey")):
        out = tmp_path / kind
        flags = ["--operator", operator, *FAST, "--output-dir", out]
        assert ddpm("restore", run, folder / kind, *flags) == 0
        y = torch.stack([as_saved(p) for p in sorted((folder / kind).iterdir())])
        for name, image in zip("abc", d.restore(y, operator, num_steps=4)):
            close(out / "images" / f"{name}.png", image)
        assert pixels(out / "grid.png").shape == (3 * 160 + 32, 2 * 160 + 32, 3)


def test_simulated(
    run: Path,
    folder: Path,
    truth: torch.Tensor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Masks of pictures, behind a blur and with noise; the truth stands in the grid."""
    capsys.readouterr()
    operator = f"blur:0.7+mask:{folder / 'masks'}+noise:0.05"
    flags = ["--operator", operator, "--simulate", "--variants", "2", *FAST]
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        assert ddpm("restore", run, folder / "whole", *flags, "--output-dir", out) == 0
    told = capsys.readouterr().out
    assert "(noise: 0.0500)" in told
    assert "PSNR to the truth" in told
    assert "of the pictures as measured" in told
    for name in ("a-1", "b-2"):
        same = [pixels(out / "images" / f"{name}.png") for out in outs]
        assert np.array_equal(*same)
    grid = pixels(outs[0] / "grid.png")
    for row, image in enumerate(truth):
        tile = grid[32 + 160 * row :: 16][:8, 32 + 3 * 160 :: 16][:, :8]
        assert np.array_equal(tile, image.permute(1, 2, 0).numpy())
    # Pictures of any size are cropped and resized first, and a model's own mask goes with them.
    Image.fromarray(pixels(folder / "whole" / "a.png").astype(np.uint8)).resize((20, 16)).save(
        tmp_path / "large.png"
    )
    mask = folder / "masks" / "b.png"
    flags = ["--operator", f"mask:{mask}", "--simulate", *FAST, "--output-dir", tmp_path / "k"]
    assert ddpm("restore", run, tmp_path / "large.png", *flags) == 0
    # In Python: the same masks.
    hidden = torch.stack([as_saved(p) for p in sorted((folder / "masks").iterdir())]) > 127
    found = load_run(run).diffusion.restore(truth, Mask(hidden), num_steps=4)
    out = tmp_path / "m"
    flags = ["--operator", f"mask:{folder / 'masks'}", *FAST, "--output-dir", out]
    assert ddpm("restore", run, folder / "whole", *flags) == 0
    for name, image in zip("abc", found):
        close(out / "images" / f"{name}.png", image)


def test_without_a_place_it_goes_into_the_run(run: Path, folder: Path) -> None:
    flags = ["--operator", "noise:0.1", "--method", "ddnm", *FAST]
    assert ddpm("restore", run, folder / "whole" / "a.png", *flags) == 0
    made = next((run / "samples").glob("restore-0001"))
    assert sorted(p.name for p in made.iterdir()) == ["grid.png", "images", "settings.yaml"]


def test_what_cannot_be_restored(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clear = Image.new("RGBA", (8, 8), (9, 200, 9, 128))
    clear.save(tmp_path / "clear.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    whole, blurred = folder / "whole", folder / "blurred"
    blur = ("--operator", "blur:1")
    for args, message in [
        ((run, whole), "--operator is missing"),
        ((run, *blur), "IMAGES is missing"),
        (blur, "RUN is missing"),
        ((run, whole / "z.png", *blur), "does not exist"),
        ((run, blurred / "a.png", whole / "a.png", *blur), "Two pictures in"),
        ((run, whole, "--operator", "blurr:1"), "Did you mean 'blur'"),
        ((run, whole, "--operator", "blur"), "takes a number, its std, as in blur:2"),
        ((run, whole, "--operator", "downsampling:3"), "divisible by 3"),
        ((run, whole, "--operator", "downsampling:2"), "a has 8×8 pixels"),
        ((run, whole, "--operator", "downsampling:2"), "makes pictures of 4×4"),
        ((run, folder / "small", *blur), "or give whole pictures with --simulate"),
        ((run, folder / "grey", *blur), "--operator blur:1+grey"),
        ((run, tmp_path / "clear.png", *blur), "--operator mask:FILE"),
        ((run, whole, "--operator", "mask"), "as in mask:hole.png"),
        ((run, whole, "--operator", "mask:hole.png"), "'hole.png' does not exist"),
        ((run, whole, "--operator", f"mask:{folder / 'small' / 'a.png'}"), "mask of a has 4×4"),
        ((run, whole, "--operator", "noise:0.1", "--noise-std", "0.1"), "--noise-std 0.1"),
        ((run, whole, *blur, "--noise-std", "-1"), "--noise-std takes a standard deviation"),
        ((run, whole, *blur, "--strength", "-1"), "--strength must be at least 0"),
        ((run, whole, *blur, "--method", "dsp"), "Did you mean 'dps'"),
        ((run, whole, *blur, "--method-options", "data_sd=1"), "Did you mean 'data_std'"),
        ((run, whole, *blur, "--variants", "0"), "--variants must be at least 1"),
        ((run, whole, *blur, "--class-label", "stra"), "Did you mean 'star'"),
        ((run, whole, *blur, "--guidance-scale", "3"), "strengthens a condition that is given"),
        ((run, whole, *blur, "--output-dir", tmp_path / "full"), "is not empty"),
        ((run, whole, *blur, "--sampler", "unpic"), "Did you mean 'unipc'"),
        ((run, whole, *blur, "--steps", "3"), "--num-steps"),
        ((run, whole, "--operator", "blur:2,noise:1"), "joined by +"),
        ((run, whole, "--mask", "m.png"), "--operator mask:FILE"),
    ]:
        assert message in error_of(capsys, "restore", *args, *FAST), args
