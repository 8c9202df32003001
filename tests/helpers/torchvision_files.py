"""Files of torchvision's sets in their own formats, tiny and random."""

from __future__ import annotations

import hashlib
import json
import pickle  # noqa: TID251 - CIFAR's own format
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def _idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


def write_mnist(
    root: Path, n: int = 24, held_out: int = 6, folder: str = "MNIST", stem: str = "{split}"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write idx files as MNIST has them; returns images and labels by split."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    made = {}
    for split, short, count in (("train", "train", n), ("test", "t10k", held_out)):
        random = np.random.default_rng(count)
        images = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        name = stem.format(split=short if stem == "{split}" else split)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(_idx(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(_idx(labels))
        made[split] = images, labels
    return made


def write_cifar10(root: Path, monkeypatch: Any, n: int = 20) -> dict[str, np.ndarray]:
    """Write CIFAR-10's pickles, and let torchvision expect their digests instead of the real
    ones.
    """
    from torchvision import datasets

    folder = root / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)
    made: dict[str, np.ndarray] = {}

    def write(name: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    lists = {}
    for split, name in (("train", "data_batch_1"), ("test", "test_batch")):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (n, 3072)).astype(np.uint8)
        made[split] = pixels.reshape(n, 3, 32, 32)
        lists[split] = [write(name, {"data": pixels, "labels": [k % 10 for k in range(n)]})]
    classes = [f"class {k}" for k in range(10)]
    meta = write("batches.meta", {"label_names": classes})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists["train"])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists["test"])
    new = {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", new)
    return made


def write_food101(root: Path, per_class: int = 8) -> list[str]:
    """Write pictures and lists as Food-101 has them; returns the classes."""
    folder = root / "food-101"
    classes = ["apple_pie", "sushi"]
    for split in ("train", "test"):
        listed = {}
        for k, name in enumerate(classes):
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            listed[name] = [f"{name}/{split}{i}" for i in range(per_class)]
            for i, place in enumerate(listed[name]):
                picture = Image.new("RGB", (20, 16), (120 * k, 10 * i, 90))
                picture.save(folder / "images" / f"{place}.jpg", quality=95)
        (folder / "meta").mkdir(exist_ok=True)
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
    return classes
