"""What autoguidance changes: distance, precision and recall by partner and scale.

    python benchmarks/autoguidance.py runs/mine --data shapes --partners 57 225 model

Samples of the default of the library, all from the same noise and for the classes in turn, against
images: Fréchet distances in the VGG-16 trunk (`hedvgg256`, `hedvgg512`) and in pixels averaged to
8×8, precision and recall in `hedvgg256`. Numbers of `--repeats` seeds are averaged; ± is 1.96
standard errors of the difference to no guidance.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib import Shapes, load_run
from ddpm_lib.data import open_dataset
from ddpm_lib.images import to_uint8
from ddpm_lib.metrics import (
    frechet_of_features,
    make_extractor,
    manifolds,
    statistics_of,
    to_rgb,
)
from ddpm_lib.process.conditions import class_count
from ddpm_lib.runs.guiding import load_partner

COLUMNS = ("stage 3", "stage 5", "8×8", "precision", "recall")


def main() -> None:
    """Draw, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run directory or a checkpoint")
    parser.add_argument("--data", required=True, help="images, as for ddpm train")
    parser.add_argument("--partners", nargs="+", default=["model"], help="as for --guide-by")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.5, 2.5])
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--num-steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3, help="seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_run(options.run)
    process = loaded.diffusion
    size = process.image_size[0]
    shapes = options.data == "shapes"
    data = Shapes(size=size, n=2000) if shapes else open_dataset(options.data, image_size=size)
    network = make_extractor("hedvgg", ["256", "512"], "cpu")

    def features(pictures: Tensor) -> dict[str, Tensor]:
        parts = [network(part) for part in to_rgb(pictures).split(100)]
        found = {k: torch.cat([part[k] for part in parts]) for k in ("256", "512")}
        return {**found, "8x8": F.adaptive_avg_pool2d(pictures.float() / 255, 8).flatten(1)}

    reference = features(data.batch(list(range(min(len(data), 1500))))["image"])
    gaussians = {name: statistics_of(values) for name, values in reference.items()}
    classes = class_count(process.conditioners)
    cond = {"class_label": torch.arange(options.num) % classes} if classes else None

    def measure(seed: int, **how: Any) -> list[float]:
        drawn = process.sample(
            options.num, cond=cond, seed=seed, batch_size=50, num_steps=options.num_steps, **how
        )
        own = features(to_uint8(drawn))
        far = [frechet_of_features(own[k], gaussians[k])[0] for k in ("256", "512", "8x8")]
        ball = manifolds(own["256"], reference["256"])
        return [*far, float(ball.precision.mean()), float(ball.recall.mean())]

    seeds = range(1, options.repeats + 1)
    plain = [measure(seed) for seed in seeds]
    print(f"\n{'partner':<10}{'scale':>6}" + "".join(f"{name:>18}" for name in COLUMNS))
    print(f"{'none':<10}{1:>6}" + "".join(f"{_mean(plain, k):>18.3f}" for k in range(5)))
    for name in options.partners:
        partner = load_partner(loaded, name).diffusion
        for scale in options.scales:
            found = [measure(seed, guide_by=partner, guide_scale=scale) for seed in seeds]
            cells = "".join(f"{_cell(found, plain, k):>18}" for k in range(5))
            print(f"{name:<10}{scale:>6g}{cells}", flush=True)


def _mean(rows: list[list[float]], column: int) -> float:
    return statistics.mean(row[column] for row in rows)


def _cell(found: list[list[float]], plain: list[list[float]], column: int) -> str:
    if len(found) < 2:
        return f"{_mean(found, column):.3f}"
    changes = [a[column] - b[column] for a, b in zip(found, plain, strict=True)]
    error = 1.96 * statistics.stdev(changes) / len(changes) ** 0.5
    return f"{_mean(found, column):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
