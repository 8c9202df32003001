"""Bad input, case by case: every answer names the thing, says what was got, and what to do."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddpm_lib import GaussianDiffusion, Shapes, TrainingConfig, Unet
from ddpm_lib.cli import main
from ddpm_lib.data import BadImagesError, open_dataset
from ddpm_lib.runs.checkpoint import list_checkpoints
from ddpm_lib.runtime.launch import explain_rendezvous_errors
from ddpm_lib.runtime.processes import Processes
from ddpm_lib.training import CheckpointError, ConfigError, load_run
from ddpm_lib.training.agreement import check_ranks_agree
from training_helpers import tiny_diffusion, tiny_trainer


def picture(mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return (
        Image.fromarray(values.squeeze(), mode)
        if mode != "P"
        else Image.fromarray(values[..., 0]).convert("P")
    )


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bad_crc() -> bytes:
    data = bytearray(encoded(picture(), "PNG"))
    at = data.index(b"IDAT") + 10
    data[at] ^= 0xFF
    return bytes(data)


def bomb() -> bytes:
    return encoded(Image.new("1", (9000, 9000)), "PNG")


GOOD = encoded(picture(), "PNG")
BAD_FILES: list[tuple[str, str, Callable[[], bytes], str]] = [
    ("zero bytes", "a.png", lambda: b"", r"a\.png: empty \(zero bytes\)"),
    (
        "truncated jpeg",
        "a.jpg",
        lambda: encoded(picture(size=(64, 64)), "JPEG")[:700],
        r"a\.jpg: .*truncated",
    ),
    ("truncated png", "a.png", lambda: encoded(picture(size=(64, 64)), "PNG")[:700], r"a\.png: .*"),
    ("png with a wrong checksum", "a.png", bad_crc, r"a\.png: .*"),
    ("text", "a.jpg", lambda: b"Not Found", r"a\.jpg: a text file, not a picture"),
    (
        "web page",
        "a.jpg",
        lambda: b"<!doctype html><p>login",
        r"a web page, not a picture \(a failed download\?\)",
    ),
    ("svg", "a.png", lambda: b"<svg xmlns='x'/>", r"an SVG drawing: render it to PNG"),
    ("pdf", "a.png", lambda: b"%PDF-1.7", r"a PDF document"),
    ("psd", "a.tif", lambda: b"8BPS\0\1", r"a Photoshop file: export it as PNG"),
    ("heic", "a.jpg", lambda: b"\0\0\0\x18ftypheic", r"HEIC.* not supported: convert it"),
    (
        "git-lfs pointer",
        "a.png",
        lambda: b"version https://git-lfs.github.com/spec/v1",
        r"run `git lfs pull`",
    ),
    ("zeros", "a.png", lambda: b"\0" * 500, r"only zero bytes \(an interrupted copy\?\)"),
    ("numpy", "a.png", lambda: b"\x93NUMPY\1\0", r"a numpy array, not a picture"),
    ("zip", "a.png", lambda: b"PK\3\4rest", r"a zip archive"),
    (
        "noise",
        "a.bmp",
        lambda: bytes(range(1, 250)),
        r"not a picture of a supported format \(JPEG, PNG",
    ),
    (
        "float tiff",
        "a.tif",
        lambda: encoded(Image.fromarray(np.ones((4, 4), "f4")), "TIFF"),
        r"floating-point pixels",
    ),
    (
        "nan tiff",
        "a.tif",
        lambda: encoded(Image.fromarray(np.full((4, 4), np.nan, "f4")), "TIFF"),
        r"floating-point",
    ),
    (
        "32-bit tiff",
        "a.tif",
        lambda: encoded(Image.fromarray(np.ones((4, 4), "i4")), "TIFF"),
        r"signed 32-bit pixels",
    ),
    (
        "bomb",
        "a.png",
        bomb,
        r"9000×9000 has more than 64,000,000 pixels; max_pixels \(--max-pixels\)",
    ),
]


@pytest.mark.parametrize(
    ("name", "make", "words"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES]
)
def test_a_bad_file_is_named_with_its_reason(
    tmp_path: Path, name: str, make: Callable[[], bytes], words: str
) -> None:
    (tmp_path / name).write_bytes(make())
    (tmp_path / "good.png").write_bytes(GOOD)
    with pytest.raises(BadImagesError, match=words) as caught:
        open_dataset(tmp_path, image_size=8)
    assert str(caught.value).startswith("1 of 2 images cannot be used:\n  ")
    assert str(caught.value).endswith('leave them out with on_bad_image="skip".')
    assert len(open_dataset(tmp_path, image_size=8, on_bad_image="skip")) == 1


def special(name: str, make: Callable[[Path], object], words: str) -> Any:
    return pytest.param(make, words, id=name)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        special(
            "dangling link",
            lambda p: (p / "x.png").symlink_to(p / "gone"),
            "a link to a file that does not exist",
        ),
        special(
            "link to itself",
            lambda p: (p / "x.png").symlink_to(p / "x.png"),
            "a link that leads to itself",
        ),
        special("named pipe", lambda p: os.mkfifo(p / "x.png"), "a named pipe, not a file"),
        special("device", lambda p: (p / "x.png").symlink_to("/dev/null"), "a device, not a file"),
    ],
)
def test_what_is_no_file_is_named(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    (tmp_path / "good.png").write_bytes(GOOD)
    make(tmp_path)
    with pytest.raises(BadImagesError, match=rf"1 of 2 .*\n  x\.png: {words}"):
        open_dataset(tmp_path, image_size=8)


def taken(name: str, make: Callable[[Path], object], words: str, **options: Any) -> Any:
    return pytest.param(make, words, options, id=name)


def save(path: Path, image: Image.Image, **options: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    image.save(path, **options)


def animated(path: Path) -> None:
    picture().save(path / "a.gif", save_all=True, append_images=[picture("L").convert("RGB")])


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(path / "a.jpg", exif=exif)


@pytest.mark.parametrize(
    ("make", "words", "options"),
    [
        taken(
            "cmyk",
            lambda p: save(p / "a.jpg", picture("CMYK")),
            "1 image in CMYK: converted to RGB",
        ),
        taken(
            "grey",
            lambda p: save(p / "a.png", picture("L")),
            "1 image in grey: the grey value repeated",
        ),
        taken("1 bit", lambda p: save(p / "a.png", picture("L").convert("1")), "1 image in grey"),
        taken(
            "16 bit",
            lambda p: Image.fromarray(np.full((16, 16), 40000, "u2")).save(p / "a.png"),
            "of 16 bits: scaled",
        ),
        taken(
            "alpha",
            lambda p: save(p / "a.png", picture("RGBA")),
            "with transparency: laid on the background",
        ),
        taken(
            "grey with alpha",
            lambda p: save(p / "a.png", picture("LA")),
            "with transparency: laid on the background",
        ),
        taken(
            "palette",
            lambda p: save(p / "a.png", picture("P"), transparency=picture("P").getpixel((0, 0))),
            "with transparency",
        ),
        taken("animated", animated, "1 image animated or multi-page: first frame taken"),
        taken("exif", rotated, "1 image turned as their EXIF orientation says"),
        taken(
            "colour as grey",
            lambda p: save(p / "a.png", picture()),
            "in colour: converted to grey",
            channels=1,
        ),
        taken(
            "1x1",
            lambda p: save(p / "a.png", Image.new("RGB", (1, 1))),
            "smaller than the image size: enlarged",
        ),
        taken(
            "mixed sizes",
            lambda p: (save(p / "a.png", picture()), save(p / "b.png", picture(size=(30, 9)))),
            "images differ in size: 16 … 30 pixels wide, 9 … 16 high",
        ),
        taken(
            "one image",
            lambda p: save(p / "a.png", picture()),
            "one image only: a model can do no more than memorise",
        ),
        taken(
            "foreign files beside",
            lambda p: (save(p / "a.png", picture()), (p / "b.heic").write_bytes(b"x")),
            r"left out 1 \.heic: not supported",
        ),
        taken(
            "loose among classes",
            lambda p: [save(p / d / "a.png", picture()) for d in ("x", "y", ".")],
            r"no labels: 1 of 3 images lie outside the 2 sub-folders",
        ),
        taken(
            "one class", lambda p: save(p / "x" / "a.png", picture()), "no labels: one class only"
        ),
    ],
)
def test_what_is_taken_in_a_certain_way_is_said(
    tmp_path: Path, make: Callable[[Path], object], words: str, options: dict
) -> None:
    make(tmp_path)
    lines: list[str] = []
    data = open_dataset(tmp_path, image_size=8, log=lines.append, **options)
    assert data.batch([0])["image"].shape[1:] == (options.get("channels", 3), 8, 8)
    assert any(words in line or re.search(words, line) for line in lines), lines


def folder(
    name: str, make: Callable[[Path], object], words: str, error: type = ValueError, **options: Any
) -> Any:
    return pytest.param(make, words, error, options, id=name)


def classes(path: Path, *names: str) -> Path:
    for name in names:
        save(path / name / "a.png", picture())
    return path


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path / "a.npz", **arrays)
    return path / "a.npz"


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


U8 = np.zeros((4, 8, 8, 3), np.uint8)


class Objects(torch.utils.data.Dataset):
    def __init__(self, item: Any, n: int = 4) -> None:
        self.item, self.n = item, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return self.item


@pytest.mark.parametrize(
    ("make", "words", "error", "options"),
    [
        folder(
            "missing", lambda p: p / "nowhere", r"'.*nowhere' does not exist", FileNotFoundError
        ),
        folder(
            "near miss",
            lambda p: ((p / "photos").mkdir(), p / "photo")[1],
            r"Did you mean '.*photos'",
            FileNotFoundError,
        ),
        folder(
            "far miss", lambda p: p / "a" / "b", r"The path exists only up to '", FileNotFoundError
        ),
        folder("empty", lambda p: p, r"holds no files", FileNotFoundError),
        folder(
            "only text",
            lambda p: write(p / "a.txt", b"x").parent,
            r"holds no pictures; found 1 × \.txt. Supported",
            FileNotFoundError,
        ),
        folder(
            "only heic",
            lambda p: write(p / "a.heic", b"x").parent,
            r"Convert HEIC and AVIF first",
            FileNotFoundError,
        ),
        folder(
            "one picture",
            lambda p: write(p / "a.png", GOOD),
            r"is one picture. Pass the folder that holds it",
        ),
        folder(
            "archive",
            lambda p: write(p / "a.zip", b"x"),
            r"a\.zip' is damaged or no \.zip archive .*Was it copied whole\?",
        ),
        folder(
            "tar",
            lambda p: write(p / "a.tar", b"x"),
            r"a\.tar' is damaged or no \.tar archive .*Was it copied whole\?",
        ),
        folder(
            "compressed tar",
            lambda p: write(p / "a.tar", b"\x1f\x8b\x08"),
            r"is compressed \(gzip\).*Decompress it \(gunzip\): a plain \.tar is read in place",
        ),
        folder(
            "7z",
            lambda p: write(p / "a.7z", b"x"),
            r"is an archive. Unpack it \(7z x .*\), and pass the folder",
        ),
        folder(
            "other file",
            lambda p: write(p / "a.csv", b"x"),
            r"is a table, but no pictures lie below its folder",
        ),
        folder(
            "splits for classes",
            lambda p: classes(p, "train", "test"),
            r"look like splits, not classes: test, train",
        ),
        folder(
            "unknown split",
            lambda p: classes(p, "train", "test"),
            r"no sub-folder for split 'val'. There are: test, train",
            split="val",
        ),
        folder(
            "split outside",
            lambda p: classes(p, "x", "y"),
            r"no sub-folder for split '\.\./",
            split="../x",
        ),
        folder(
            "prefix",
            lambda p: classes(p, "."),
            r'needs names like "cat_001.jpg"; 1 have no "_"',
            labels="prefix",
        ),
        folder(
            "labels insisted on",
            lambda p: classes(p, "x", "."),
            r"1 lie directly in .*Move them",
            labels="folder",
        ),
        folder(
            "only bad",
            lambda p: write(p / "a.png", b"").parent,
            r"None is left: mend what is said above",
            BadImagesError,
        ),
        folder(
            "not utf-8",
            lambda p: write(Path(os.fsdecode(os.fsencode(p) + b"/\xff.png")), b"").parent,
            r"\\xff\.png: empty",
            BadImagesError,
        ),
        folder(
            "newline in a name",
            lambda p: write(p / "a\n.png", b"").parent,
            r"a\\n\.png: empty",
            BadImagesError,
        ),
        folder(
            "floats in [0, 1]",
            lambda p: npz(p, x=U8 / 255),
            r"must be uint8 .*look like \[0, 1\]: save",
        ),
        folder(
            "floats in [-1, 1]",
            lambda p: npz(p, x=U8 - 1.0),
            r"must be uint8 .*look like \[-1, 1\]: save",
        ),
        folder("nan in an array", lambda p: npz(p, x=U8 * np.nan), r"holds NaN or infinite values"),
        folder(
            "int64",
            lambda p: npz(p, x=U8.astype(np.int64)),
            r"The values fit: save x\.astype\(numpy\.uint8\)",
        ),
        folder(
            "wide values",
            lambda p: npz(p, x=U8 + 1000.0),
            r"Values go from 1,000 to 1,000: .*value_range",
        ),
        folder(
            "nan in measured values",
            lambda p: npz(p, x=U8 * np.nan),
            r"192 of 192 values are NaN or infinite",
            BadImagesError,
            normalize="affine",
        ),
        folder(
            "channels of measured values",
            lambda p: npz(p, x=np.ones((4, 7, 8, 8))),
            r"has 7 or 8 channels \(first or last axis\), not 3: pass channels=7 \(--channels 7\)",
            BadImagesError,
            normalize="affine",
        ),
        folder(
            "kind of normalization",
            lambda p: npz(p, x=U8),
            r"Unknown normalize 'mean'. .*affine, quantile",
            normalize="mean",
        ),
        folder(
            "range of measured values",
            lambda p: npz(p, x=U8),
            r"value_range=\(0, 9\) does not fit measured values",
            normalize="affine",
            value_range=(0, 9),
        ),
        folder(
            "measured pictures of a hub",
            lambda p: {"images": U8},
            r"normalize is for measured values: arrays, .*got dict",
            normalize="affine",
        ),
        folder(
            "slices of pictures",
            lambda p: classes(p, "x", "y"),
            r"slice_axis=0 is for measured volumes: normalize=\"affine\"",
            slice_axis=0,
        ),
        folder(
            "patches of pictures",
            lambda p: classes(p, "x", "y"),
            r"fit=\"patch\" is for measured values",
            fit="patch",
        ),
        folder(
            "padded values",
            lambda p: npz(p, x=U8),
            r"fit=\"pad\" fills a border with a colour",
            normalize="affine",
            fit="pad",
        ),
        folder(
            "no array of images",
            lambda p: npz(p, other=U8),
            r"no array named arr_0, images or x. There are: other",
        ),
        folder(
            "wrong key",
            lambda p: npz(p, images=U8),
            r"no image column 'imges'. Did you mean 'images'",
            image_column="imges",
        ),
        folder(
            "too few labels",
            lambda p: npz(p, images=U8, labels=[1, 2]),
            r"2 labels",
            label_column="labels",
        ),
        folder(
            "objects",
            lambda p: npz(p, x=np.array([{}], object)),
            r"Python objects, which are never loaded",
        ),
        folder(
            "damaged npz",
            lambda p: write(p / "a.npz", npz(p, x=U8).read_bytes()[:99]),
            r"damaged or no numpy file",
        ),
        folder("no npz", lambda p: write(p / "a.npz", b"hello"), r"a\.npz"),
        folder("flat array", lambda p: np.zeros((4, 192), np.uint8), r"\(4, 192\)"),
        folder(
            "float items",
            lambda p: Objects({"image": torch.zeros(3, 8, 8)}),
            r"float32; images must be uint8.*ToTensor",
            TypeError,
        ),
        folder(
            "items of text",
            lambda p: Objects("x"),
            r"must be dicts, \(image, label\) tuples or images.*got str",
            TypeError,
        ),
        folder(
            "items without images",
            lambda p: Objects({"text": "x"}),
            r"no key named image. There are: text",
        ),
        folder("no items", lambda p: Objects(U8[0], 0), r"The dataset is empty"),
        folder("a number", lambda p: 3, r"data must be a path, .*got int", TypeError),
        folder(
            "no parquet",
            lambda p: write(p / "a.parquet", b"x"),
            r"a\.parquet is no readable parquet file",
        ),
        folder(
            "raw sysu",
            lambda p: (
                ((p / "cup" / "contours").mkdir(parents=True), classes(p, "cup/images"))[1].parent
                / p.name
            ),
            r"raw SYSU-Shape dataset.*prepare_sysu",
        ),
    ],
)
def test_data_that_cannot_be_used(
    tmp_path: Path, make: Callable[[Path], Any], words: str, error: type, options: dict
) -> None:
    with pytest.raises(error, match=words):
        open_dataset(make(tmp_path), image_size=8, **options)


def test_parquet_of_paths_only(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": ["a.png", "gone.png"]}), tmp_path / "a.parquet")
    (tmp_path / "a.png").write_bytes(GOOD)
    with pytest.raises(BadImagesError, match=r"its file 'gone\.png' is missing"):
        open_dataset(tmp_path / "a.parquet", image_size=8)


def test_nothing_of_a_relative_path_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as told:
        open_dataset("path/to/images", image_size=8)
    assert str(told.value).endswith(f"There is no 'path' in {str(tmp_path)!r}.")


def test_a_hub_name_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def away(name: str) -> None:
        raise ConnectionError("Couldn't reach the Hugging Face Hub")

    monkeypatch.setattr(datasets, "load_dataset", away)
    monkeypatch.setattr("ddpm_lib.data.hub.can_reach", lambda address: False)
    with pytest.raises(
        FileNotFoundError, match=r"^'beans' is no local path .*in the cache\. .*Check the path"
    ):
        open_dataset("beans", image_size=8)


def test_a_file_deleted_during_training(tmp_path: Path) -> None:
    """The error names it; a checkpoint is there, and with the file restored the run goes on."""
    for k in range(12):
        save(tmp_path / "images" / f"{k:02d}.png", picture())
    trainer = tiny_trainer(
        tmp_path / "run", data=str(tmp_path / "images"), cache="none", num_workers=0, save_every=1
    )
    trainer.prepare()
    shutil.move(tmp_path / "images" / "07.png", tmp_path / "away.png")
    with pytest.raises(BadImagesError, match=r"07\.png: missing\n.*Restore it"):
        trainer.train()
    shutil.move(tmp_path / "away.png", tmp_path / "images" / "07.png")
    again = tiny_trainer(
        tmp_path / "run", data=str(tmp_path / "images"), cache="none", num_workers=0
    )
    assert again.train().status == "finished"


def test_images_in_the_run_directory(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture())
    with pytest.raises(
        ConfigError, match=r"lies in the folder of the images.*Choose an output_dir outside"
    ):
        tiny_trainer(tmp_path / "run", data=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rat": 1}, r"'learning_rat' \(did you mean 'learning_rate'\?\). Known: "),
        ({"batch_size": "64"}, r"batch_size must be a whole number or 'auto'; got '64' \(str\)"),
        ({"batch_size": 6.5}, r"batch_size must be a whole number or 'auto'; got 6\.5"),
        ({"max_steps": True}, r"max_steps must be a whole number; got True"),
        ({"horizontal_flip": "no"}, r"horizontal_flip must be true or false; got 'no'"),
        ({"learning_rate": "1e-4"}, r"learning_rate must be a number or 'auto'; got '1e-4'"),
        ({"ema_decay": "long"}, r"ema_decay must be a list of numbers or 'auto'; got 'long'"),
        ({"max_steps": 0}, r"max_steps must be at least 1; got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be a positive finite number; got 0\.0"),
        (
            {"learning_rate": float("inf")},
            r"learning_rate must be a positive finite number; got inf",
        ),
        ({"weight_decay": -0.1}, r"weight_decay must be 0 or more; got -0\.1"),
        ({"adam_betas": (0.9, 1.0)}, r"adam_betas must lie in \[0, 1\); got 1\.0"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm must be a positive finite number"),
        ({"warmup_steps": -1}, r"warmup_steps must be at least 0"),
        (
            {"batch_size": 10, "accumulation_steps": 4},
            r"not divisible by accumulation_steps 4.*fit: 1, 2, 5, 10",
        ),
        ({"keep_last": 1}, r"keep_last must be at least 2; got 1"),
        (
            {"save_every": 1000, "keep_every": 1500},
            r"not a multiple of save_every 1000.*Set keep_every=2000",
        ),
        ({"val_data": "x", "val_every": 0}, r"val_data is given but val_every is 0"),
        (
            {"optimizer": "adan"},
            r"optimizer must be one of 'adamw', 'adam', 'muon'; got 'adan'. Did you mean 'adam'",
        ),
        ({"fit": "squash"}, r"fit must be one of 'crop', 'pad', 'stretch', 'patch'; got 'squash'"),
        (
            {"normalize": "affin"},
            r"normalize must be one of 'affine', 'quantile' or none; got 'affin'",
        ),
        ({"slice_axis": "z"}, r"slice_axis must be a whole number.*; got 'z'"),
        ({"on_bad_image": "skipp"}, r"Did you mean 'skip'"),
        (
            {"mixed_precision": "bf32"},
            r"mixed_precision must be one of 'auto', 'no', 'bf16', 'fp16'; got 'bf32'",
        ),
        (
            {"resume": "yes"},
            r"resume must be auto, never, a step such as 1200, or a checkpoint .*; got 'yes'",
        ),
        (
            {"process_timeout_minutes": 0},
            r"process_timeout_minutes must be a positive finite number",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_training_options(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainingConfig.from_options(options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timesteps": 1}, r"timesteps must be an integer ≥ 2, got 1"),
        ({"schedule": "cosin"}, r"Unknown schedule 'cosin'. Did you mean 'cosine'"),
        ({"schedule": "linear", "schedule_options": {"beta": 1}}, r"schedule"),
        ({"parametrization": "epsilon"}, r"Unknown parametrization 'epsilon'. .*eps"),
        (
            {"parametrization": "eps", "schedule_options": {"zero_terminal_snr": True}},
            r"pure noise .*Use parametrization='v'",
        ),
        (
            {"weighting": "min_snr", "weighting_options": {"gamma": -1.0}},
            r"needs gamma > 0, got -1",
        ),
        ({"variance": "learned"}, r"Unknown variance 'learned'. Did you mean 'learned_range'"),
        ({"variance": "learned_range"}, r"Build the network with out_channels=6"),
        ({"loss": "hybrid"}, r"a fixed one has nothing to train"),
        ({"time_sampler": "unifrom"}, r"Did you mean 'uniform'"),
        ({"clip": "statik"}, r"static"),
        ({"dynamic_threshold_ratio": 2.0}, r"dynamic_threshold_ratio must be in \(0, 1\], got 2"),
        ({"image_size": 0}, r"image_size must be one positive integer"),
        ({"channels": 1}, r"channels"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_process_options(options: dict, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        GaussianDiffusion(Unet(dim=8, dim_mults=(1, 2)), **{"image_size": 8, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 7}, r"dim must be even and at least 4 .*got 7. Use dim="),
        ({"dim_mults": ()}, r"dim_mults must list at least one multiple"),
        ({"heads": 3}, r"heads=3 does not divide the width .*Nearest values that fit"),
        ({"head_dim": 5}, r"head_dim=5 does not divide the width .*nearest values that fit"),
        ({"groups": 7}, r"groups=7 does not divide every width .*groups="),
        ({"attention_levels": (5,)}, r"so 5 is out of range. The nearest value that fits: 1"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\), got 1\.5"),
        ({"num_classes": 0}, r"num_classes must be at least"),
        ({"dims": 4}, r"dims must be 1 .*got 4"),
        ({"dim": "8"}, r"dim must be an integer, got '8' \(str\)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_network_options(options: dict, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        Unet(**{"dim": 8, "dim_mults": (1, 2), **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 51}, r"51.*50|50.*51"),
        ({"num_steps": 0}, r"num_steps"),
        ({"sampler": "dmp"}, r"Unknown sampler 'dmp'"),
        ({"spacing": "trailin"}, r"Did you mean 'trailing'"),
        ({"guidance_scale": 2.0}, r"guidance|condition"),
        ({"sampler": "ddim", "eta": 2.0}, r"eta must be in \[0, 1\], got 2"),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0"),
        ({"cond": {"class_label": torch.zeros(1, dtype=torch.long)}}, r"class_label"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_sampling_options(options: dict, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        tiny_diffusion(dim=4, dim_mults=(1,)).sample(1, **options)


def test_image_size_that_cannot_be_halved(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"9×9 must be divisible by 2 .*nearest sizes that fit: 8×8 or 10×10"
    ):
        tiny_trainer(tmp_path, GaussianDiffusion(Unet(dim=8, dim_mults=(1, 2)), image_size=9))


def test_class_conditional_without_labels(tmp_path: Path) -> None:
    data = Objects({"image": torch.zeros(3, 8, 8, dtype=torch.uint8)})
    with pytest.raises(
        ConfigError, match=r"conditional on 3 classes but the data has no labels. Sort the images"
    ):
        tiny_trainer(tmp_path, tiny_diffusion(num_classes=3), data).train()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_sise: 3", r"'batch_sise' \(did you mean 'batch_size'\?\)"),
        ("model: {dimm: 3}", r"group model.*'dimm' \(did you mean 'dim'\?\)"),
        ("batch_size: no", r"batch_size .*must be a whole number or 'auto'; got False"),
        ("- 1\n- 2", r"must hold `option: value` lines; got list"),
        ("a: [1", r"is not valid YAML"),
        ("!!python/object/apply:os.system ['touch ran']", r"is not valid YAML"),
        ("seed: !!python/name:os.system", r"is not valid YAML"),
        ("", r"must hold `option: value` lines; got NoneType"),
        ("preset: smal", r"Unknown preset 'smal'. Did you mean 'small'"),
    ],
)
def test_config_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    assert main(["train", "--config", "c.yaml", "--print-config"]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert re.search(words, err), err
    assert "c.yaml" in err or "preset" in err
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    tiny_trainer(run, tiny_diffusion(dim=4, dim_mults=(1,)), max_steps=1).train()
    return run


def newest(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1]


def poison_weights(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = newest(run) / "ema.safetensors"
    tensors = load_file(file)
    tensors[next(iter(tensors))][...] = float("nan")
    save_file(tensors, file)
    rehash(run)


def rehash(run: Path) -> None:
    import hashlib

    manifest = json.loads((newest(run) / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (newest(run) / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (newest(run) / "manifest.json").write_text(json.dumps(manifest))


def edit_state(run: Path, **changes: Any) -> None:
    file = newest(run) / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    rehash(run)


def header_bomb(run: Path) -> None:
    (newest(run) / "ema.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    rehash(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            lambda r: shutil.rmtree(r), r"does not exist. Give a run directory", id="missing"
        ),
        pytest.param(
            lambda r: shutil.rmtree(r / "checkpoints"),
            r"holds no checkpoints: they were removed",
            id="empty",
        ),
        pytest.param(
            lambda r: (newest(r) / "manifest.json").unlink(),
            r"manifest\.json is missing, so it was never completed",
            id="unfinished",
        ),
        pytest.param(
            lambda r: (newest(r) / "manifest.json").write_text("{"),
            r"manifest\.json cannot be read",
            id="manifest",
        ),
        pytest.param(
            lambda r: os.truncate(newest(r) / "ema.safetensors", 100),
            r"ema\.safetensors has 100 bytes instead of",
            id="truncated",
        ),
        pytest.param(
            lambda r: (newest(r) / "model.safetensors").unlink(),
            r"model\.safetensors is missing",
            id="file missing",
        ),
        pytest.param(
            poison_weights, r"holds NaN or infinite weights .*Choose an older checkpoint", id="nan"
        ),
        pytest.param(
            lambda r: edit_state(r, ema_decay=[]),
            r'was trained without an EMA. Ask for weights="model"',
            id="no ema",
        ),
        pytest.param(
            lambda r: edit_state(r, model={"class": "Net", "config": None}),
            r"weights of a Net, which is not registered here",
            id="own net",
        ),
        pytest.param(header_bomb, r"(?i)header", id="header bomb"),
    ],
)
def test_runs_that_cannot_be_loaded(
    trained: Path, tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises((CheckpointError, ConfigError), match=words):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.pt", r"a pickle, which can run code and is never loaded. Give a run directory"),
        ("model.ckpt", r"a pickle, which can run code and is never loaded"),
        ("weights.safetensors", r"is a file. Give a run directory"),
        ("x/model_index.json", r"a pipeline of diffusers"),
        ("x/random_states_0.pkl", r"a state saved by accelerate"),
        ("x/.metadata", r"a distributed checkpoint of torch"),
    ],
)
def test_what_other_libraries_save_is_recognised_by_name(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(CheckpointError, match=words):
        load_run(tmp_path / name.split("/")[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"model": {"dim": 8}},
            (
                r"(?s)other settings:\n  model\.config\.dim: 4 in the checkpoint, 8"
                r" now.*output_dir, such as .*run-2"
            ),
        ),
        (
            {"model": {"num_classes": 6}},
            r"model\.config\.num_classes: None in the checkpoint, 6 now",
        ),
        ({"batch_size": 12}, r"(?s)batch_size: 6 in the checkpoint, 12 now.*override=True"),
        ({"seed": 3}, r"seed: 0 in the checkpoint, 3 now"),
        ({"data": Shapes(size=8, n=41)}, r"data: 40 training images in the checkpoint, 41 now"),
        (
            {"resume": "never"},
            (
                r"holds step-000000001 already. Choose another output_dir, such as .*run-2, or"
                r" resume=\"auto\""
            ),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_runs_that_cannot_be_continued_so(
    trained: Path, tmp_path: Path, change: dict, words: str
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    change = dict(change)
    diffusion = tiny_diffusion(**{"dim": 4, "dim_mults": (1,), **change.pop("model", {})})
    with pytest.raises(ConfigError, match=words):
        tiny_trainer(tmp_path / "run", diffusion, **change).train()


def test_run_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(
        ConfigError, match=r"run is a file. output_dir names a folder; choose another output_dir"
    ):
        tiny_trainer(tmp_path / "run").train()


def test_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        words = rf"meet at 127\.0\.0\.1:{port}, but that port is in use. Set MASTER_PORT"
        with pytest.raises(ConfigError, match=words), explain_rendezvous_errors():
            torch.distributed.TCPStore("127.0.0.1", port, 1, is_master=True, use_libuv=True)


def test_processes_started_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.ranks = Processes(0, 2)
    other = {
        "options": trainer.config.to_dict() | {"seed": 1},
        "diffusion": trainer.diffusion.config,
    }
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [own[0], own[0] | other])
    with pytest.raises(
        ConfigError,
        match=r"not started alike:\n  options\.seed: 0 on process 0, 1 on process 1\nStart all",
    ):
        check_ranks_agree(trainer.config, trainer.diffusion, trainer.ranks)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [own[0], own[0]])
    check_ranks_agree(trainer.config, trainer.diffusion, trainer.ranks)


def test_missing_optional_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else real(name, *a)
    )
    with pytest.raises(
        ConfigError,
        match=r"The tracker 'wandb' needs its package. Install it with: pip install wandb",
    ):
        tiny_trainer(tmp_path, trackers=("wandb",)).train()


def test_closed_output_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Closed())
    assert (
        tiny_trainer(tmp_path, tiny_diffusion(dim=4, dim_mults=(1,)), max_steps=1).train().status
        == "finished"
    )


def test_too_few_open_files_are_raised_to_what_is_allowed() -> None:
    import resource

    from ddpm_lib.data.workers import allow_open_files

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_yaml_numbers_are_read_as_everybody_means_them() -> None:
    from ddpm_lib.cli.options import _Loader

    assert yaml.load("a: 1e-4", Loader=_Loader) == {"a": 1e-4}
