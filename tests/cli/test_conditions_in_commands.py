"""Every command and method that draws takes every kind of condition, and refuses the same."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import ddpm, error_of
from ddpm_lib import Shapes, load_run
from ddpm_lib.cli.demo_page import command_of
from ddpm_lib.images import save_image, to_uint8
from ddpm_lib.runs.drawing import SIDE, Artist, Wish
from ddpm_lib.runs.loading import find_checkpoints
from every_condition import COMMANDS, FAST, KINDS, MASK, SKETCH, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("every_kind") / "run")


@pytest.fixture(scope="module")
def needy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never without its conditions."""
    return train(tmp_path_factory.mktemp("needy") / "run", drop=0.0, names=("size", "mask"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture to redraw, what to paint, conditions that are pictures, and bad ones."""
    place = tmp_path_factory.mktemp("files")
    save_image(Shapes(size=8, n=1)[0]["image"], place / "picture.png")
    Image.fromarray(MASK.numpy().astype(np.uint8)).save(place / "mask.png")
    Image.fromarray(SKETCH[0].numpy()).save(place / "sketch.png")
    Image.fromarray(np.tile(np.uint8([0, 255]), (8, 4))).save(place / "hole.png")
    Image.new("L", (16, 8)).save(place / "wide.png")
    Image.new("RGB", (8, 8)).save(place / "rgb.png")
    Image.new("L", (8, 8), 9).save(place / "high.png")
    np.save(place / "short.npy", np.zeros(2))
    (place / "broken.png").write_bytes(b"no picture")
    return place


def words_of(command: str, run: Path, files: Path) -> list[object]:
    """Words of a command that draws two images of a picture."""
    how: dict[str, list[object]] = {
        "sample": ["--num", 2, "--format", "png", "--sampler", "ddim"],
        "edit": [files / "picture.png", "--variants", 2],
        "inpaint": [files / "picture.png", "--mask", files / "hole.png", "--num-resamples", 1],
        "restore": [files / "picture.png", "--operator", "blur:1", "--variants", 2],
    }
    how["inpaint"] += ["--variants", 2]
    return [command, run, *how[command], *FAST]


def drawn(command: str, run: Path, files: Path, out: Path, *more: object) -> np.ndarray:
    assert ddpm(*words_of(command, run, files), *more, "--output-dir", out) == 0
    found = sorted((out if command == "sample" else out / "images").glob("*.png"))
    assert len(found) == 2
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in found]).astype(int)


def in_python(command: str, run: Path, files: Path, cond: Any, **more: Any) -> np.ndarray:
    diffusion = load_run(run, weights="model").diffusion
    with Image.open(files / "picture.png") as opened:
        picture = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
    images = picture[None].repeat(2, 1, 1, 1)
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[:, 1::2] = True
    how = {"cond": cond, "num_steps": 2, "progress": False, **more}
    made: dict[str, Callable[[], torch.Tensor]] = {
        "sample": lambda: diffusion.sample(2, sampler="ddim", **how),
        "edit": lambda: diffusion.edit(images, **how),
        "inpaint": lambda: diffusion.inpaint(images, hole, num_resamples=1, **how),
        "restore": lambda: diffusion.restore(images.float() / 255, "blur:1", **how),
    }
    return to_uint8(made[command]()).permute(0, 2, 3, 1).numpy().astype(int)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_draws_by_every_kind(
    command: str, kind: str, run: Path, files: Path, tmp_path: Path
) -> None:
    """With the condition the command draws what Python draws with it, and something else than
    without; `none` is without.
    """
    word, value = KINDS[kind]
    same = ["--class-label", "ring"]
    told = drawn(
        command, run, files, tmp_path / "a", *same, "--cond", f"{kind}={word.format(files=files)}"
    )
    plain = drawn(command, run, files, tmp_path / "b", *same, "--cond", f"{kind}=none")
    assert np.abs(told - plain).max() > 1
    expected = in_python(command, run, files, {"class_label": "ring", kind: value})
    assert np.abs(told - expected).max() <= 1
    assert np.abs(plain - in_python(command, run, files, {"class_label": "ring"})).max() <= 1


@pytest.mark.parametrize("command", COMMANDS)
def test_conditions_and_guidance_compose(
    command: str, run: Path, files: Path, tmp_path: Path
) -> None:
    """Classes, all kinds at once, guidance by all of them and by single ones."""
    told = [word for k, (w, _) in KINDS.items() for word in ("--cond", f"{k}={w}")]
    told = [word.format(files=files) for word in told]
    cond = {"class_label": "ring", **{name: value for name, (_, value) in KINDS.items()}}
    ring = ["--class-label", "ring"]
    whole = drawn(command, run, files, tmp_path / "a", *ring, *told, "--guidance-scale", 2)
    expected = in_python(command, run, files, cond, guidance_scale=2.0)
    assert np.abs(whole - expected).max() <= 1
    parts = ["--cond-guidance", "size=3", "--cond-guidance", "mask=2"]
    single = drawn(command, run, files, tmp_path / "b", *ring, *told, *parts)
    expected = in_python(command, run, files, cond, guidance_scale={"size": 3.0, "mask": 2.0})
    assert np.abs(single - expected).max() <= 1
    assert np.abs(single - whole).max() > 1


BAD = [
    (("--cond", "sise=0.5"), "Did you mean 'size'"),
    (("--cond", "size"), "is written NAME=VALUE"),
    (("--cond", "size=large"), "'size' (number) takes a number; got 'large'"),
    (("--cond", "size=nan"), "takes a number; got 'nan'"),
    (("--cond", "turn=inf"), "'turn' (angle) takes a number; got 'inf'"),
    (("--cond", "spot=1,2"), "takes 3 finite numbers, A,B,C or a .npy file; got 2"),
    (("--cond", "spot={files}/short.npy"), "takes 3 finite numbers, A,B,C or a .npy file; got 2"),
    (("--cond", "spot={files}/none.npy"), "none.npy' does not exist"),
    (("--cond", "colour=rod"), "Did you mean 'red'"),
    (("--cond", "colour=99"), "99"),
    (("--cond", "marks=a|z"), "Unknown tag of 'marks' 'z'"),
    (("--cond", "mask=nowhere.png"), "nowhere.png"),
    (("--cond", "mask=nowhere"), "does not exist. "),
    (("--cond", "mask={files}/wide.png"), "16×8 pixels, the images have the proportions of 8×8"),
    (("--cond", "mask={files}/rgb.png"), "in colour (RGB), a mask has one number per pixel"),
    (("--cond", "mask={files}/high.png"), "has the class 9; they go from 0 to 1"),
    (("--cond", "mask={files}/broken.png"), "not a picture of a supported format"),
    (("--cond", "sketch={files}/wide.png"), "16×8 pixels, the images have the proportions of 8×8"),
    (("--cond", "sketch={files}/broken.png"), "--cond sketch: "),
    (("--cond", "caption={files}/short.npy"), "takes 6 finite numbers"),
    (("--cond", "size=0.5", "--cond", "size=0.6"), "--cond size is given twice"),
    (("--cond", "class_label=1"), "--class-label"),
    (("--cond-guidance", "size=2"), "Guidance by 'size' strengthens its value"),
    (("--cond-guidance", "sise=2"), "Did you mean 'size'"),
    (("--cond", "size=1", "--cond-guidance", "size=much"), "takes a number; got 'much'"),
    (("--cond", "size=1", "--cond-guidance", "size=2", "--guidance-scale", 2), "Give one of them"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
@pytest.mark.parametrize("command", COMMANDS)
def test_bad_words_are_named_by_every_command(
    command: str,
    flags: tuple[str, ...],
    message: str,
    run: Path,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(flag).format(files=files) for flag in flags]
    out = ["--output-dir", tmp_path / "out"]
    assert message in error_of(capsys, *words_of(command, run, files), *words, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_guidance_by_nothing_says_how_conditions_are_given(
    command: str, run: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(capsys, *words_of(command, run, files), "--guidance-scale", 2)
    assert "--class-label" in said
    assert "--cond size=…" in said
    assert "cond={" not in said


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_left_out_is_asked_for(
    command: str, needy: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(capsys, *words_of(command, needy, files), "--cond", "size=0.5")
    assert "needs the condition 'mask'" in said
    assert "Give --cond mask=…" in said
    said = error_of(capsys, *words_of(command, needy, files), "--cond", "mask=none")
    assert "the network knows no absence of 'mask'" in said


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_takes_every_kind(kind: str, run: Path) -> None:
    """One entry counts for all images; one per image is the image's own; none is the null."""
    diffusion = load_run(run, weights="model").diffusion
    images = Shapes(size=8, n=2).batch(range(2))["image"]
    how: dict[str, Any] = {"num_steps": 2, "progress": False}
    x_T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    value = KINDS[kind][1]
    one = value[None] if isinstance(value, torch.Tensor) else [value]
    pairs = {
        "edit": lambda cond: diffusion.edit(images, cond=cond, **how),
        "inpaint": lambda cond: diffusion.inpaint(
            images, torch.ones(8, 8), num_resamples=1, cond=cond, **how
        ),
        "restore": lambda cond: diffusion.restore(
            images.float() / 255, "noise:0.5", cond=cond, **how
        ),
        "interpolate": lambda cond: diffusion.interpolate(images, images.flip(0), cond=cond, **how),
        "encode": lambda cond: diffusion.encode(images, cond=cond, **how),
        "decode": lambda cond: diffusion.decode(x_T, cond=cond, **how),
    }
    for name, method in pairs.items():
        told, plain = method({kind: value}), method(None)
        assert not torch.equal(told, plain), name
        many = one.repeat(2, *[1] * (one.ndim - 1)) if isinstance(one, torch.Tensor) else one * 2
        assert torch.equal(method({kind: many}), told), name


def test_methods_name_guidance_by_conditions_that_are_not_given(run: Path) -> None:
    diffusion = load_run(run, weights="model").diffusion
    images = Shapes(size=8, n=2).batch(range(2))["image"]
    with pytest.raises(ValueError, match="Guidance by 'size' strengthens its value"):
        diffusion.edit(images, num_steps=2, guidance_scale={"size": 2.0})
    with pytest.raises(ValueError, match="Did you mean 'size'"):
        diffusion.inpaint(images, torch.ones(8, 8), guidance_scale={"sise": 2.0})
    with pytest.raises(ValueError, match="'size'"):
        diffusion.restore(images.float() / 255, "noise:0.1", guidance_scale={"size": 2.0})


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_demo_draws_by_conditions(
    kind: str, run: Path, files: Path, tmp_path: Path
) -> None:
    """Its pictures are those of the command that it shows."""
    word = KINDS[kind][0].format(files=files)
    artist = Artist(find_checkpoints(run)[-1], torch.device("cpu"), "no")
    wish = Wish(weights="model", num=2, steps=2, class_name="ring", guidance=1.5)
    told = dataclasses.replace(wish, cond={kind: word})
    pictures = artist.draw(told)
    assert not np.array_equal(pictures, artist.draw(wish))
    words = shlex.split(command_of(str(run), "latest", told))
    out = ["--format", "npz", "--output-dir", tmp_path / "out", "--mixed-precision", "no"]
    assert ddpm(*words[1:], *out, "--device", "cpu", "--no-progress") == 0
    scale = SIDE // 8
    assert np.array_equal(
        pictures[:, ::scale, ::scale], np.load(tmp_path / "out" / "samples.npz")["arr_0"]
    )
