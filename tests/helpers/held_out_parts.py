"""Training and held-out pictures of the same names, with a condition of every kind of source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm_lib import Trainer, open_dataset
from ddpm_lib.nn import register_text_encoder
from training_helpers import tiny_diffusion, tiny_trainer

N = 12
TABLES: dict[str, dict[str, Any]] = {
    "age": {"kind": "number"},
    "mask": {"kind": "mask", "classes": 4},
    "sketch": {"kind": "image", "channels": 1},
    "text": {"kind": "text", "size": 2, "encoder": "lengths"},
    "spot": {"kind": "vector", "size": 3},
}


def images(folder: Path, seed: int, n: int = N) -> Path:
    """Write pictures `00.png` and following: others for another seed, of the same names."""
    of = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for k in range(n):
        pixels = of.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:02d}.png")
    return folder


def parts(tmp_path: Path) -> Path:
    """Training and held-out pictures of the same names, and what comes with each."""
    register_text_encoder("lengths", lambda texts: [[len(t), t.count("a")] for t in texts])
    of = np.random.default_rng(7)
    for part, seed in (("train", 1), ("val", 2)):
        images(tmp_path / part, seed)
        for kind, high in (("masks", 4), ("sketches", 256)):
            (tmp_path / kind / part).mkdir(parents=True)
            for k in range(N):
                pixels = of.integers(0, high, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / kind / part / f"{k:02d}.png")
        ages = of.integers(9, 90, N)
        np.save(tmp_path / f"{part}.npy", of.normal(size=(N, 3)))
        rows = [f"{k:02d}.png,{ages[k]},{'ab' * int(ages[k])}" for k in range(N)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["file_name,age,text", *rows]))
    both = [
        f"{part}/{line}"
        for part in ("train", "val")
        for line in (tmp_path / f"{part}.csv").read_text().splitlines()[1:]
    ]
    (tmp_path / "both.csv").write_text("\n".join(["file_name,age,text", *both]))
    return tmp_path


SOURCES = {
    "age": ("train.csv:age", "val.csv:age"),
    "mask": ("masks/train", "masks/val"),
    "sketch": ("sketches/train,channels=1,kind=image", "sketches/val"),
    "text": ("train.csv:text,encoder=lengths", "val.csv:text"),
    "spot": ("train.npy", "val.npy"),
}
"""By condition: where those of the training images are, and those of the held-out ones."""


def trainer(place: Path, name: str, words: str, **options: Any) -> Trainer:
    settings: dict[str, Any] = {"val_data": str(place / "val"), "val_every": 2, "num_workers": 0}
    return tiny_trainer(
        place / "run",
        tiny_diffusion(conditions={name: TABLES[name]}),
        str(place / "train"),
        condition=(f"{name}={place / words}",),
        **settings | options,
    )


def values_of(data: Any, name: str) -> np.ndarray:
    return data.conditions[name].get(np.arange(len(data))).numpy()


def alone(place: Path, part: str, name: str) -> np.ndarray:
    """Return the values of a part by itself, in the order of its names."""
    words = SOURCES[name][part == "val"]
    more = {"sketch": ",channels=1,kind=image", "text": ",encoder=lengths"}.get(name, "")
    words += more if part == "val" else ""
    opened = open_dataset(place / part, image_size=8, conditions=f"{name}={place / words}")
    return values_of(opened, name)
