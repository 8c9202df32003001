"""Whether features rank what everybody can rank: held-out images before damaged ones, little damage
before much, the same classes before others.

    python benchmarks/feature_ranking.py --data cifar10/train.parquet --image-column img --num 500

Half of the classes are the reference; other images of the same classes are the held-out ones. Each
kind of damage is done to the held-out images in growing strength, so that its rows must rise from
"held-out". All sets have the same number of images, so that the bias of Fréchet distances is the
same in all rows.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib.data import open_dataset
from ddpm_lib.metrics import (
    FEATURES,
    frechet_of_features,
    make_extractor,
    mmd2,
    statistics_of,
    to_rgb,
)
from ddpm_lib.metrics.kernel import kernel_influence

Damage = Callable[[Tensor], Tensor]


def jpeg(quality: int) -> Damage:
    """Through a JPEG file of this quality."""

    def damage(images: Tensor) -> Tensor:
        done = []
        for image in images.permute(0, 2, 3, 1).numpy():
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=quality)
            done.append(np.asarray(Image.open(file)))
        return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2)

    return damage


def blur(share: float) -> Damage:
    """Gaussian blur with this standard deviation, in parts of the side."""

    def damage(images: Tensor) -> Tensor:
        sigma = share * min(images.shape[-2:])
        reach = max(1, int(4 * sigma))
        at = torch.arange(-reach, reach + 1.0)
        kernel = torch.exp(-0.5 * (at / sigma) ** 2)
        kernel = (kernel / kernel.sum()).expand(3, 1, -1)
        x = F.pad(images.float(), [reach] * 4, mode="reflect" if reach < 16 else "replicate")
        x = F.conv2d(x, kernel.unsqueeze(2), groups=3)
        return _rounded(F.conv2d(x, kernel.unsqueeze(3), groups=3))

    return damage


def noise(sigma: float) -> Damage:
    """White noise with this standard deviation, in parts of the range."""

    def damage(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(images.shape, generator=generator)
        return _rounded(images.float() + 255 * sigma * z)

    return damage


def crop(share: float) -> Damage:
    """The middle, of this share of the side, enlarged to the whole."""

    def damage(images: Tensor) -> Tensor:
        h, w = images.shape[-2:]
        a, b = round(h * (1 - share) / 2), round(w * (1 - share) / 2)
        middle = images[..., a : h - a, b : w - b].float()
        return _rounded(F.interpolate(middle, (h, w), mode="bicubic", align_corners=False))

    return damage


def _rounded(x: Tensor) -> Tensor:
    return x.clamp(0, 255).round().to(torch.uint8)


KINDS: dict[str, dict[str, Damage]] = {
    "jpeg": {f"jpeg {q}": jpeg(q) for q in (75, 30, 10)},
    "blur": {f"blur {s:g}": blur(s) for s in (0.02, 0.04, 0.08)},
    "noise": {f"noise {s:g}": noise(s) for s in (0.03, 0.08, 0.25)},
    "crop": {f"crop {s:g}": crop(s) for s in (0.8, 0.6, 0.4)},
}
"""Kinds of damage, each from little to much."""


def main() -> None:
    """Print the table, and what is out of order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="images with labels, as for ddpm train")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--image-column")
    parser.add_argument("--num", type=int, default=500, help="images of each set")
    names = [name for name in FEATURES if name.startswith("hedvgg")]
    parser.add_argument("--features", nargs="+", default=[*names, "random64"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    dataset = open_dataset(
        options.data, image_size=options.image_size, image_column=options.image_column
    )
    sets = sets_of_images(dataset, options.num)
    layers: dict[str, list[str]] = {}
    for name in options.features:
        layers.setdefault(FEATURES[name][0], []).append(FEATURES[name][1])
    found = {}
    for extractor, wanted in layers.items():
        network = make_extractor(extractor, wanted, "cpu")
        for word, images in sets.items():
            parts = [network(to_rgb(part)) for part in images.split(100)]
            for layer in wanted:
                found[extractor, layer, word] = torch.cat([part[layer] for part in parts])
    tables = {}
    for name in options.features:
        own = {word: found[(*FEATURES[name], word)] for word in sets}
        tables[name] = table_of(own.pop("reference"), own)
    show(tables)
    if options.output:
        options.output.write_text(json.dumps({"num": options.num, "tables": tables}, indent=1))


def table_of(reference: Tensor, others: dict[str, Tensor]) -> dict[str, tuple[float, float, float]]:
    """Return Fréchet distance, kernel distance and its standard error by set."""
    gaussian, rows = statistics_of(reference), {}
    for word, features in others.items():
        kernel, spread = mmd2(features, reference), kernel_influence(features, reference)
        error = float(spread.std()) / len(features) ** 0.5
        rows[word] = (frechet_of_features(features, gaussian)[0], kernel, error)
    return rows


def sets_of_images(dataset: object, num: int) -> dict[str, Tensor]:
    """Return the reference, held-out and damaged images, and those of other classes."""
    labels = np.asarray(dataset.labels)  # type: ignore[attr-defined]
    classes = np.unique(labels)
    rng = np.random.default_rng(0)
    own = np.isin(labels, classes[: len(classes) // 2])
    mine, others = (rng.permutation(np.flatnonzero(x)) for x in (own, ~own))
    if len(mine) < 2 * num or len(others) < num:
        raise SystemExit(f"--num {num} is too many: {len(mine)} and {len(others)} images.")

    def take(rows: np.ndarray) -> Tensor:
        return to_rgb(dataset.batch(np.sort(rows))["image"])  # type: ignore[attr-defined]

    held_out = take(mine[num : 2 * num])
    sets = {"reference": take(mine[:num]), "held-out": held_out}
    for kind in KINDS.values():
        sets |= {word: damage(held_out) for word, damage in kind.items()}
    return {**sets, "other classes": take(others[:num])}


def show(tables: dict[str, dict[str, tuple[float, float, float]]]) -> None:
    """Print distances as multiples of the held-out images' Fréchet distance, and the kernel
    distances with their errors.
    """
    names = list(tables)
    print(f"{'':<15}" + "".join(f"{name + ' Fréchet':>20}{'kernel ± s.e.':>24}" for name in names))
    for word in tables[names[0]]:
        cells = ""
        for name in names:
            fd, kd, error = tables[name][word]
            cells += f"{fd:>12.4g} ({fd / tables[name]['held-out'][0]:.2f}×)".rjust(20)
            cells += f"{kd:.3g} ± {error:.1g}".rjust(24)
        print(f"{word:<15}{cells}")
    for name in names:
        wrong = out_of_order(tables[name])
        print(f"{name}: {'every step in the right order' if not wrong else '; '.join(wrong)}")


def out_of_order(rows: dict[str, tuple[float, float, float]]) -> list[str]:
    """Name the steps that do not rise, by Fréchet or by kernel distance."""
    chains = [["held-out", *kind] for kind in KINDS.values()] + [["held-out", "other classes"]]
    wrong = []
    for chain in chains:
        for less, more in pairwise(chain):
            for column, measure in ((0, "Fréchet"), (1, "kernel")):
                if rows[less][column] >= rows[more][column]:
                    wrong.append(f"{measure}: {less} is not before {more}")
    return wrong


if __name__ == "__main__":
    main()
