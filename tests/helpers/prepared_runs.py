"""Ten runs of which we know how they went, each trained in seconds on a CPU: nine faults planted as
they happen, and none.

    python tests/helpers/prepared_runs.py runs/prepared --seed 3 --only copying noise
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet
from ddpm_lib.data import ImageDataset, open_dataset

SIDE = 8


@dataclass(frozen=True)
class Prepared:
    """A run whose verdict is known.

    Attributes:
        kinds: The verdicts that are right.
        planted: What was done.
        data: Makes the training images from a seed.
        steps: How long it trains.
        classes: Whether the network learns the classes.
        model, process, options: What differs from the run that goes well.
    """

    kinds: tuple[str, ...]
    planted: str
    data: Callable[[int], ImageDataset]
    steps: int
    classes: bool = True
    model: dict[str, Any] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def shapes(n: int) -> Callable[[int], ImageDataset]:
    return lambda seed: Shapes(size=SIDE, n=n, seed=seed)


def textures(n: int) -> Callable[[int], ImageDataset]:
    """Smooth random fields: no two alike, nothing but their spectrum to learn."""

    def make(seed: int) -> ImageDataset:
        noise = np.random.default_rng(seed).standard_normal((n, SIDE, SIDE, 3))
        spectrum = 1.0 / (0.15 + np.hypot(*np.meshgrid(*[np.fft.fftfreq(SIDE)] * 2)))
        fields = np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) * spectrum[..., None], axes=(1, 2))
        fields = fields.real / fields.real.std()
        pixels = (128 + 50 * fields).clip(0, 255).astype(np.uint8)
        return open_dataset(pixels, image_size=SIDE)

    return make


def masks(n: int) -> Callable[[int], ImageDataset]:
    """Silhouettes saved as 0 and 1 instead of 0 and 255."""

    def make(seed: int) -> ImageDataset:
        images = Shapes(size=SIDE, n=n, seed=seed).batch(range(n))["image"].numpy()
        dark = (images.mean(1, keepdims=True) < 180).astype(np.uint8)
        return open_dataset(dark.repeat(3, 1), image_size=SIDE)

    return make


MANY = 3000
PREPARED = {
    "noise": Prepared(("noise",), "stopped after 16 steps", shapes(MANY), 16),
    "good": Prepared(("learning", "flat_rate", "flat"), "nothing", shapes(MANY), 500),
    "overfitting": Prepared(
        ("overfitting",),
        "100 textures, each seen hundreds of times",
        textures(100),
        500,
        classes=False,
        model={"dim": 64},
        options={"batch_size": 16},
    ),
    "copying": Prepared(
        ("copying",),
        "24 pictures, learned by heart",
        shapes(24),
        700,
        model={"dim": 64},
        options={"batch_size": 16},
    ),
    "unstable": Prepared(
        ("unstable",),
        "a learning rate a thousand times too high",
        shapes(MANY),
        200,
        process={"parametrization": "eps", "weighting": "simple"},
        options={"learning_rate": 0.5, "lr_schedule": "constant", "batch_size": 8},
    ),
    "colour_cast": Prepared(
        ("colour_cast",),
        "fewer levels with the β of 1,000: the last one is far from noise",
        shapes(MANY),
        500,
        process={
            "timesteps": 30,
            "schedule": "linear",
            "schedule_options": {"rescale": False},
        },
        options={"sample_count": 64},
    ),
    "dead_average": Prepared(
        ("dead_average",),
        "an average of 100,000 steps in a run of 500, without warm-up",
        shapes(MANY),
        500,
        options={"ema_decay": 0.99999, "ema_power": 10.0},
    ),
    "classes_unused": Prepared(
        ("classes_unused",), "--class-conditional forgotten", shapes(MANY), 500, classes=False
    ),
    "wrong_range": Prepared(
        ("wrong_range",), "masks of 0 and 1 as if they were 0 … 255", masks(MANY), 300, False
    ),
    "collapsed": Prepared(
        ("collapsed",),
        "so much weight decay that the network forgets its input",
        shapes(MANY),
        400,
        options={"weight_decay": 150.0, "lr_schedule": "constant", "learning_rate": 2e-4},
    ),
}


def train(name: str, run: Path, seed: int) -> None:
    """Train one of the runs."""
    what = PREPARED[name]
    data = what.data(seed)
    torch.manual_seed(seed)
    classes = data.num_classes if what.classes else None
    network = {
        "dim": 32,
        "dim_mults": (1,),
        "patch_size": 2,
        "blocks_per_level": 1,
        "attention_levels": (),
    }
    process = {"timesteps": 500, "parametrization": "x0", "weighting": "flat"}
    diffusion = GaussianDiffusion(
        Unet(num_classes=classes, **network | what.model),
        image_size=SIDE,
        **process | what.process,
    )
    options: dict[str, Any] = {
        "output_dir": str(run),
        "max_steps": what.steps,
        "seed": seed,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "lr_schedule": "cosine",
        "warmup_steps": min(20, what.steps // 4),
        "ema_decay": 0.99,
        "val_every": max(4, what.steps // 20),
        "val_fraction": 0.1,
        "val_max_images": 200,
        "log_every": max(2, what.steps // 40),
        "sample_every": max(4, what.steps // 5),
        "sample_count": 24,
        "sample_steps": 20,
        "save_every": what.steps,
        "progress": False,
        "device": "cpu",
        "mixed_precision": "no",
    }
    Trainer(diffusion, data, **options | what.options).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(PREPARED), default=list(PREPARED))
    given = parser.parse_args()
    for name in given.only:
        began = time.process_time()
        train(name, given.folder / f"{name}-{given.seed}", given.seed)
        print(f"{name}: {time.process_time() - began:.1f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
