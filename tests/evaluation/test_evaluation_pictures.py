"""Evaluation sees the pixels that training sees, whichever way a set of pictures is named; and only
pictures that are samples.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib import Shapes, evaluate, load_run, open_dataset
from ddpm_lib.cli import main
from ddpm_lib.data import BadImagesError
from ddpm_lib.evaluation.evaluation_options import EvaluationOptions
from ddpm_lib.evaluation.image_sets import as_pictures
from ddpm_lib.evaluation.pictures import open_pictures
from ddpm_lib.evaluation.run_images import RunImages
from ddpm_lib.training import ConfigError
from training_helpers import tiny_trainer

QUIET: dict[str, Any] = {"device": "cpu", "progress": False}
FD: dict[str, Any] = {"metrics": "fid", "features": "random64", **QUIET}


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_LIB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("DDPM_LIB_OFFLINE", "1")


def drawings(n: int, size: int = 8, seed: int = 0) -> list[Image.Image]:
    images = (
        Shapes(size=size, n=n, seed=seed).batch(np.arange(n))["image"].permute(0, 2, 3, 1).numpy()
    )
    return [Image.fromarray(image) for image in images]


def transparent(picture: Image.Image, i: int) -> Image.Image:
    picture = picture.convert("RGBA")
    ramp = np.linspace(0, 255, picture.width * picture.height).reshape(picture.size[::-1])
    picture.putalpha(Image.fromarray(np.roll(ramp, i).astype(np.uint8)))
    return picture


def save_turned(picture: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)


def save_palette(picture: Image.Image, path: Path) -> None:
    picture.convert("P").save(path, transparency=3)


def save_16bit(picture: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path)


KINDS: dict[str, tuple[str, Callable[[Image.Image, Path], None]]] = {
    "plain": (".png", lambda p, f: p.save(f)),
    "transparent": (".png", lambda p, f: transparent(p, len(f.stem)).save(f)),
    "grey and transparent": (".png", lambda p, f: transparent(p, 3).convert("LA").save(f)),
    "transparent palette": (".png", save_palette),
    "turned by EXIF": (".png", save_turned),
    "16 bits": (".png", save_16bit),
    "CMYK": (".jpg", lambda p, f: p.convert("CMYK").save(f)),
    "GIF": (".gif", lambda p, f: p.save(f)),
    "WEBP": (".webp", lambda p, f: p.save(f, lossless=True)),
    "sub-folders": (".png", lambda p, f: p.save(below(f))),
}


def below(file: Path) -> Path:
    folder = file.parent / ("even" if int(file.stem) % 2 == 0 else "odd")
    folder.mkdir(exist_ok=True)
    return folder / file.name


def write(kind: str, folder: Path, n: int = 12) -> Path:
    """Write pictures of a kind, with files beside them that are no pictures."""
    extension, save = KINDS[kind]
    folder.mkdir()
    for i, picture in enumerate(drawings(n)):
        save(picture, folder / f"{i:02d}{extension}")
    (folder / f"._00{extension}").write_bytes(b"\0\x05\x16\x07resource fork")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def pixels(data: Any, like: RunImages | None = None, **options: Any) -> torch.Tensor:
    images = open_pictures(data, None, EvaluationOptions(**QUIET, **options), like=like)
    return images.read(range(images.n))


class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Decoded pictures, as a torch dataset of somebody's own."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).numpy()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return {"image": Image.fromarray(self.images[i])}


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_files_are_the_same_pixels_whichever_way_they_come(
    kind: str, tmp_path: Path
) -> None:
    folder = write(kind, tmp_path / "pictures")
    expected = open_dataset(str(folder), image_size=8, labels="none").batch(np.arange(12))["image"]
    assert torch.equal(pixels(str(folder)), expected)
    assert torch.equal(pixels(folder, image_size=8), expected)
    # Objects: a dataset of ours, arrays both ways round, somebody's dataset.
    assert torch.equal(pixels(open_dataset(str(folder), image_size=8)), expected)
    assert torch.equal(pixels(expected), expected)
    assert torch.equal(pixels(expected.permute(0, 2, 3, 1).numpy()), expected)
    assert torch.equal(pixels(Pictures(expected)), expected)
    np.savez(tmp_path / "images.npz", arr_0=expected.permute(0, 2, 3, 1).numpy())
    assert torch.equal(pixels(str(tmp_path / "images.npz")), expected)


def test_tables_of_pictures_are_the_same_pixels(tmp_path: Path) -> None:
    import datasets

    folder = write("transparent", tmp_path / "pictures")
    expected = open_dataset(str(folder), image_size=8, labels="none").batch(np.arange(12))["image"]
    files = sorted(str(p) for p in folder.glob("[!.]*.png"))
    table = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    assert torch.equal(pixels(table), expected)
    cells = {"image": [{"bytes": Path(file).read_bytes(), "path": None} for file in files]}
    datasets.Dataset.from_dict(cells).to_parquet(str(tmp_path / "table.parquet"))
    assert torch.equal(pixels(str(tmp_path / "table.parquet")), expected)


def test_a_dataset_of_the_user_s_is_looked_at_in_another_process(tmp_path: Path) -> None:
    """It opens its file at the first item, as is usual: the parent must not, or its readers would
    share one offset.
    """
    import os

    class Late(Pictures):
        opened_by: int | None = None

        def __getitem__(self, i: int) -> dict[str, Any]:
            if i > 0:  # the first item shows what kind of dataset it is
                self.opened_by = os.getpid()
            return super().__getitem__(i)

    images = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in drawings(5, 12)])
    data = Late(images)
    from ddpm_lib.data.decode_spec import DecodeSpec
    from ddpm_lib.data.sizes import different_sizes
    from ddpm_lib.data.sources import find_source

    source = find_source(data, DecodeSpec((1, 1)), "none", None, None, None)
    assert [(s.width, s.height) for s in different_sizes(source)] == [(12, 12)]
    assert data.opened_by is None


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", ["transparent", "turned by EXIF", "GIF", "sub-folders"])
def test_a_run_s_own_images_and_their_folder_are_at_distance_zero(
    kind: str, tmp_path: Path
) -> None:
    folder = write(kind, tmp_path / "pictures")
    tiny_trainer(tmp_path / "run", data=str(folder), max_steps=1).train()
    own = RunImages(load_run(tmp_path / "run"))
    train = own.get("train")
    mine = as_pictures(train.batch(np.arange(len(train)))["image"])
    assert torch.equal(pixels(str(folder), like=own), mine)
    other = tmp_path / "decoded"
    other.mkdir()
    for i, image in enumerate(mine.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(other / f"{i:02d}.png")
    for options in ({}, {"image_size": 8}):
        found = evaluate(other, reference=folder, **options, **FD)
        assert found["fd_random64_pictures_12"] == pytest.approx(0.0, abs=1e-6)
    # The same images come under the same fingerprint, so that runs are compared with what they were
    # trained on.
    a = evaluate(tmp_path / "run", num=4, sample_steps=1, **FD)
    b = evaluate(tmp_path / "run", num=4, sample_steps=1, reference=str(folder), **FD)
    assert a.about["reference"]["fingerprint"] == b.about["reference"]["fingerprint"]
    assert a["fd_random64_train_4"] == b["fd_random64_pictures_4"]


def test_four_channels_are_laid_on_white_as_the_reader_lays_them() -> None:
    """Every value under every alpha, against Pillow's own compositing."""
    values, alphas = np.meshgrid(np.arange(256), np.arange(256))
    array = np.stack([values, values, values, alphas], -1).astype(np.uint8)
    white = Image.new("RGBA", (256, 256), (255, 255, 255, 255))
    expected = np.asarray(Image.alpha_composite(white, Image.fromarray(array)).convert("RGB"))
    ours = as_pictures(torch.from_numpy(array).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(ours, expected)


def test_another_background_is_an_option(tmp_path: Path) -> None:
    folder = write("transparent", tmp_path / "pictures")
    black = open_dataset(str(folder), image_size=8, background="black").batch(np.arange(12))[
        "image"
    ]
    assert torch.equal(pixels(str(folder), background="black"), black)
    assert not torch.equal(pixels(str(folder)), black)


def broken(folder: Path) -> Path:
    """Three good pictures, an empty file, a truncated one, and floats without a range."""
    folder.mkdir()
    for i, picture in enumerate(drawings(4, 16)):
        picture.save(folder / f"{i}.png")
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    (folder / "4.png").write_bytes(b"")
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(folder / "5.tif")
    return folder


@pytest.mark.parametrize("reader", ["training", "torch-fidelity"])
@pytest.mark.parametrize("role", ["samples", "reference", "held_out"])
def test_all_broken_pictures_are_named_at_once_and_can_be_left_out(
    reader: str, role: str, tmp_path: Path
) -> None:
    bad = broken(tmp_path / "bad")
    if reader == "torch-fidelity":  # PIL's conversion takes floats
        (bad / "5.tif").unlink()
    good = tmp_path / "good"
    good.mkdir()
    for i, picture in enumerate(drawings(5, 16, seed=1)):
        picture.save(good / f"{i}.png")
    sets = {"samples": good, "reference": good, "held_out": good} | {role: bad}
    asked = {
        "metrics": "fid,memorisation",
        "features": "random64",
        "reader": reader,
        "reference": str(sets["reference"]),
        "held_out": str(sets["held_out"]),
        **QUIET,
    }
    with pytest.raises(BadImagesError) as error:
        evaluate(sets["samples"], **asked)
    names = ["3.png", "4.png"] + (["5.tif"] if reader == "training" else [])
    assert [name for name, _ in error.value.bad] == names
    assert '"skip"' in str(error.value)
    assert "--on-bad-image skip" in str(error.value)
    found = evaluate(sets["samples"], on_bad_image="skip", **asked)
    assert found.about[role]["n"] == 3
    assert any("left out" in note or "skipped" in note for note in found.about["notes"])


def test_a_folder_without_a_usable_picture_says_why_of_each(tmp_path: Path) -> None:
    folder = tmp_path / "floats"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(folder / f"{i}.tif")
    with pytest.raises(BadImagesError) as error:
        evaluate(folder, reference=folder, **FD)
    assert len(error.value.bad) == 3
    assert "--value-range 0 1" in error.value.bad[0][1]  # which is a flag of this command too
    assert evaluate(folder, reference=folder, value_range=(0, 1), **FD).about["samples"]["n"] == 3


@pytest.mark.slow
def test_a_range_and_frames_serve_the_set_that_has_them(tmp_path: Path) -> None:
    """Samples of eight bits against a reference of twelve; stacks of pages on either side."""
    for name in ("deep", "stack", "samples"):
        (tmp_path / name).mkdir()
    pages = drawings(6)
    for i, picture in enumerate(pages):
        grey = np.asarray(picture.convert("L")).astype(np.uint16)
        Image.fromarray((grey.astype(np.uint32) * 4095 // 255).astype(np.uint16)).save(
            tmp_path / "deep" / f"{i}.png"
        )
        picture.convert("L").save(tmp_path / "samples" / f"{i}.png")
    pages[0].save(tmp_path / "stack" / "a.tif", save_all=True, append_images=pages[1:])
    found = evaluate(tmp_path / "samples", reference=tmp_path / "deep", value_range=(0, 4095), **FD)
    assert found["fd_random64_deep_6"] == pytest.approx(0.0, abs=1e-2)
    assert any("value_range was not applied" in note for note in found.about["notes"])
    eight = np.stack([np.asarray(p.convert("L")) for p in pages])
    floats = eight.astype(np.float32) * (4095 / 255)
    np.save(tmp_path / "deep.npy", floats)
    for samples, deep in (
        (eight, floats),
        (list(eight), list(floats)),
        (eight, tmp_path / "deep.npy"),
    ):
        found = evaluate(samples, deep, value_range=(0, 4095), **FD)
        assert found.scores[0].value == pytest.approx(0.0, abs=1e-2)
        assert sum("value_range was not applied" in note for note in found.about["notes"]) == 1
    stack = evaluate(
        np.stack([np.asarray(p) for p in pages]), reference=tmp_path / "stack", frames="all", **FD
    )
    assert stack["fd_random64_stack_6"] == pytest.approx(0.0, abs=1e-6)
    tiny_trainer(tmp_path / "run", data=str(tmp_path / "stack"), max_steps=1, frames="all").train()
    own = RunImages(load_run(tmp_path / "run"))
    assert len(pixels(str(tmp_path / "stack"), like=own)) == len(own.get("train")) == 6


def test_sizes_that_differ_are_named_with_a_size_that_works(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    drawings(1, 12)[0].save(folder / "a.png")
    drawings(1, 8)[0].save(folder / "deep" / "b.png")
    with pytest.raises(ConfigError, match=r"a.png is 12×12, deep/b.png 8×8.*--image-size 8\)"):
        evaluate(folder, reference=folder, **FD)
    assert evaluate(folder, reference=folder, image_size=8, **FD)[
        "fd_random64_mixed_2"
    ] == pytest.approx(0, abs=1e-6)


def test_images_that_are_all_alike_are_said_beside_the_number() -> None:
    blank = np.zeros((9, 8, 8, 3), dtype=np.uint8)
    other = np.stack([np.asarray(picture) for picture in drawings(9)])
    for samples, reference in ((blank, other), (other, blank)):
        found = evaluate(samples, reference, metrics="fid,kid", features="random64", **QUIET)
        rows = [s for s in found.scores if "/" not in s.name]
        assert all("all alike" in s.remark for s in rows)
        assert any("are the same to random64" in note for note in found.about["notes"])
    varied = evaluate(other, other[::-1].copy(), metrics="fid", features="random64", **QUIET)
    assert varied.scores[0].remark == ""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with grids of its training, and folders of samples in every format."""
    root = tmp_path_factory.mktemp("drawn")
    tiny_trainer(root / "run", max_steps=2, sample_every=1, save_every=1).train()
    for name in ("all", "grid", "png", "npz"):
        out = ["--format", name, "--output-dir", str(root / name)]
        with contextlib.redirect_stdout(io.StringIO()):
            assert (
                main(
                    [
                        "sample",
                        str(root / "run"),
                        "--num",
                        "5",
                        "--num-steps",
                        "2",
                        "--no-progress",
                        *out,
                    ]
                )
                == 0
            )
    return root


@pytest.mark.parametrize("way", ["all", "png", "npz"])
@pytest.mark.parametrize("size", [None, 8])
def test_overviews_beside_samples_are_no_samples(drawn: Path, way: str, size: int | None) -> None:
    reference = np.stack([np.asarray(picture) for picture in drawings(9)])
    found = evaluate(drawn / way, reference, image_size=size, **FD)
    assert found.about["samples"]["n"] == 5
    told = " ".join(found.about["notes"])
    assert ("grid.png" in told and "denoising.gif" in told) == (way == "all")
    singles = evaluate(drawn / "png", reference, **FD)
    assert found["fd_random64_given_5"] == singles["fd_random64_given_5"]


def test_overviews_are_left_out_of_references_and_of_sub_folders_too(
    drawn: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        shutil.copytree(drawn / "all", tmp_path / "classes" / name)
    found = evaluate(drawn / "png", reference=tmp_path / "classes", **FD)
    assert found.about["reference"]["n"] == 10
    by_run = evaluate(drawn / "run", reference=drawn / "all", num=4, sample_steps=1, **FD)
    assert by_run.about["reference"]["n"] == 5


@pytest.mark.parametrize("where", ["grid", "run/samples"])
def test_a_folder_of_overviews_alone_is_refused_with_a_command(drawn: Path, where: str) -> None:
    with pytest.raises(
        ConfigError, match=r"overviews of many samples.*ddpm sample RUN --format png"
    ):
        evaluate(drawn / where, reference=drawn / "png", **FD)


def test_a_picture_named_grid_among_other_people_s_pictures_counts(tmp_path: Path) -> None:
    for i, picture in enumerate(drawings(3)):
        picture.save(tmp_path / ("grid.png" if i == 0 else f"{i}.png"))
    assert evaluate(tmp_path, reference=tmp_path, **FD).about["samples"]["n"] == 3


@pytest.mark.parametrize("content", [None, "notes.txt", "photo.heic"])
def test_a_folder_that_is_nothing_is_never_a_place_to_train_into(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if content:
        (folder / content).write_text("x")
    assert (
        main(
            [
                "evaluate",
                str(folder),
                "--reference",
                str(folder),
                "--device",
                "cpu",
                "--no-progress",
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert ("neither a run" if content else "no run directory") in said
    assert "--output-dir" not in said
    assert "Train first" not in said
    assert list(folder.iterdir()) == ([folder / content] if content else [])


def test_the_folder_of_a_run_s_checkpoints_leads_to_the_run(drawn: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"holds checkpoints of a run. Give the run, .*run, or one of them, .*step-0+2",
    ):
        evaluate(drawn / "run" / "checkpoints", **FD)


@pytest.mark.parametrize("name", ["picture.png", "archive.zip"])
def test_files_that_are_no_set_say_what_they_are(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawings(1)[0].save(tmp_path / "picture.png")
    (tmp_path / "archive.zip").write_bytes(b"PK")
    assert (
        main(["evaluate", str(tmp_path / name), "--reference", str(tmp_path), "--device", "cpu"])
        == 2
    )
    said = capsys.readouterr().err
    assert "Pass the folder" in said or "damaged or no .zip archive" in said
    assert "ddpm train" not in said


def test_torch_fidelity_s_reader_differs_where_it_says(tmp_path: Path) -> None:
    folder = write("transparent", tmp_path / "pictures")
    save_turned(drawings(1)[0], folder / "turned.png")
    (folder / "deep").mkdir()
    drawings(1)[0].save(folder / "deep" / "x.png")
    files = sorted(p for p in folder.iterdir() if p.suffix == ".png" and not p.name.startswith("."))
    expected = torch.from_numpy(
        np.stack([np.array(Image.open(p).convert("RGB")) for p in files])
    ).permute(0, 3, 1, 2)
    assert torch.equal(pixels(str(folder), reader="torch-fidelity"), expected)
    ours = pixels(str(folder))
    assert len(ours) == len(expected) + 1
    assert not torch.equal(ours[:12], expected[:12])
    for wrong in ({"image_size": 8}, {"background": "black"}):
        with pytest.raises(ConfigError, match="neither resizes nor knows a background or a range"):
            evaluate(folder, reference=folder, reader="torch-fidelity", **wrong, **FD)
    array = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(ConfigError, match="reads folders of pictures, and none is evaluated"):
        evaluate(array, array, reader="torch-fidelity", **FD)


def test_options_of_sets_without_a_run_are_refused_with_one(drawn: Path) -> None:
    with pytest.raises(ConfigError, match="run's own size, 8×8"):
        evaluate(drawn / "run", image_size=16, **FD)
    for given in (
        {"background": "black"},
        {"value_range": (0, 1)},
        {"frames": "all"},
        {"max_pixels": 100},
    ):
        with pytest.raises(ConfigError, match=f"leave {next(iter(given))} "):
            evaluate(drawn / "run", **given, **FD)


def test_replaced_pictures_are_not_answered_from_memory(tmp_path: Path) -> None:
    """Of the same names and lengths: features that are remembered belong to the pixels, not to the
    files.
    """
    folder = tmp_path / "bitmaps"
    folder.mkdir()
    for i, picture in enumerate(drawings(6)):
        picture.save(folder / f"{i}.bmp")
    other = np.stack([np.asarray(picture) for picture in drawings(6, seed=4)])
    first = evaluate(other, reference=folder, **FD)["fd_random64_bitmaps_6"]
    for i, picture in enumerate(drawings(6, seed=9)):
        picture.save(folder / f"{i}.bmp")
    assert evaluate(other, reference=folder, **FD)["fd_random64_bitmaps_6"] != first


def test_jpeg_against_lossless_files_is_said(tmp_path: Path) -> None:
    for kind, end in (("jpg", "JPG"), ("png", "png"), ("mixed", "")):
        (tmp_path / kind).mkdir()
        for i, picture in enumerate(drawings(6)):
            picture.save(tmp_path / kind / f"{i}.{end or ('jpeg' if i < 3 else 'tif')}")

    def told(samples: Any, reference: Any, **more: Any) -> list[str]:
        found = evaluate(samples, reference=reference, **more, **FD)
        return [note for note in found.about["notes"] if "JPEG" in note]

    jpg, png, mixed = (str(tmp_path / kind) for kind in ("jpg", "png", "mixed"))
    for pair in ((jpg, png), (png, jpg)):
        for reader in ("training", "torch-fidelity"):
            words = ("samples", "png") if pair[0] == jpg else ("jpg", "samples")
            [note] = told(*pair, reader=reader)
            assert note.startswith(f"{words[0]} are JPEG files and {words[1]} are not: ")
    assert told(mixed, jpg)
    array = np.stack([np.asarray(picture) for picture in drawings(6)])
    np.save(tmp_path / "array.npy", array)
    for alike in ((jpg, jpg), (png, png), (str(tmp_path / "array.npy"), jpg), (array, png)):
        assert not told(*alike)


def test_a_file_of_images_has_no_model_to_score(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((4, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(
        ConfigError, match=r"scores a model, and there are only images\. Give a run"
    ):
        evaluate(tmp_path / "x.npz", metrics="nll", **QUIET)
