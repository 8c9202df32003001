"""When a network begins to copy its training images, against how many there are.

    python benchmarks/memorisation_onset.py --images 24 48 96 192 --seeds 0 1 --output onset.json
    python benchmarks/memorisation_onset.py --set textures photos --photos path/to/images …

A small network is trained at a fixed batch and a constant rate on n pictures; at steps that grow by
a quarter it draws, and the share of copies among the samples is taken by the rule of Yoon et al.
2023 (`metrics.memorisation.copies`). The onset is the step at which that share first comes to a
quarter, by interpolation in the logarithm of the step. The line log(onset) = a + slope · log(n) is
fitted to all runs, with a 95 % interval of the slope by Student's t over the runs. A slope of 1 is
a constant number of passes over the data (arXiv 2505.17638, 2505.16959).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
from ddpm_lib import GaussianDiffusion, Shapes, Trainer, Unet, open_dataset
from ddpm_lib.data import ImageDataset
from ddpm_lib.images import to_uint8
from ddpm_lib.metrics.memorisation import copies
from ddpm_lib.training import Callback

SHARE = 0.25
"""The share of copies that counts as the onset."""
GROWTH = 1.25
"""By how much the step grows from one look to the next."""


def textures(n: int, side: int, seed: int) -> ImageDataset:
    """Smooth random fields: no two alike, nothing but their spectrum to learn."""
    noise = np.random.default_rng(seed).standard_normal((n, side, side, 3))
    spectrum = 1.0 / (0.15 + np.hypot(*np.meshgrid(*[np.fft.fftfreq(side)] * 2)))
    fields = np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) * spectrum[..., None], axes=(1, 2)).real
    pixels = (128 + 50 * fields / fields.std()).clip(0, 255).astype(np.uint8)
    return open_dataset(pixels, image_size=side)


def of_folder(folder: str, n: int, side: int, seed: int) -> ImageDataset:
    """Read n images of a folder, drawn with the seed."""
    whole = open_dataset(folder, image_size=side)
    if len(whole) < n:
        raise SystemExit(f"{folder} has {len(whole)} images, fewer than {n}.")
    chosen = np.random.default_rng(seed).permutation(len(whole))[:n]
    pixels = whole.batch(chosen.tolist())["image"].permute(0, 2, 3, 1).numpy()
    return open_dataset(pixels, image_size=side)


SETS = {
    "shapes": lambda n, side, seed: Shapes(size=side, n=n, seed=seed),
    "textures": textures,
    "photos": None,
}
"""What gives n pictures of a side by a seed; photos: of the folder that --photos names."""


class Looks(Callback):
    """Draw now and then, note the share of copies, and stop when it is high enough."""

    def __init__(self, first: int, samples: int, data: ImageDataset) -> None:
        self.next, self.samples, self.seen = float(first), samples, []
        self.train = data.batch(range(len(data)))["image"].float().flatten(1)

    def on_step_end(self, trainer: Any) -> None:
        """Look when it is time."""
        if trainer.step < self.next:
            return
        self.next *= GROWTH
        drawn = trainer.sample(self.samples, sampler="ddim", num_steps=20, seed=0, progress=False)
        share = float(copies(to_uint8(drawn).float().flatten(1), self.train).mean())
        self.seen.append((trainer.step, share))
        if share >= 0.5:
            trainer.stop("copies")


def onset(seen: list[tuple[int, float]]) -> float | None:
    """Return the step at which the share of copies first comes to `SHARE`; None if it never does.

    >>> round(onset([(100, 0.0), (200, 0.5)]), 1), onset([(100, 0.1)])
    (141.4, None)
    """
    for (a, low), (b, high) in pairwise(seen):
        if low < SHARE <= high:
            part = (SHARE - low) / (high - low)
            return math.exp((1 - part) * math.log(a) + part * math.log(b))
    return None


def slope(points: list[tuple[int, float]]) -> tuple[float, float, float]:
    """Return the slope of log(onset) against log(n), and its 95 % interval.

    >>> slope([(10, 100.0), (20, 200.0), (40, 400.0)])
    (1.0, 1.0, 1.0)
    """
    from scipy.stats import t

    x, y = (np.log(np.array(values, dtype=float)) for values in zip(*points))
    dx = x - x.mean()
    found = float((dx * y).sum() / (dx**2).sum())
    rest = y - y.mean() - found * dx
    error = math.sqrt(float((rest**2).sum()) / max(1, len(x) - 2) / float((dx**2).sum()))
    reach = float(t.ppf(0.975, max(1, len(x) - 2))) * error
    return round(found, 6), round(found - reach, 6), round(found + reach, 6)


def measure(kind: str, n: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train on n images until they are copied; return when that began."""
    make = SETS[kind] or partial(of_folder, args.photos)
    data = make(n, args.side, seed)
    torch.manual_seed(seed)
    network = Unet(
        dim=args.dim, dim_mults=(1,), patch_size=2, blocks_per_level=1, attention_levels=()
    )
    process = GaussianDiffusion(
        network, image_size=args.side, timesteps=500, parametrization="x0", weighting="flat"
    )
    first = max(20, args.first_passes * n // args.batch_size)
    looks, began = Looks(first, args.samples, data), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            process,
            data,
            callbacks=looks,
            output_dir=f"{folder}/run",
            max_steps=max(100, args.most_passes * n // args.batch_size),
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_schedule="constant",
            warmup_steps=20,
            ema_decay=(0.99,),
            seed=seed,
            val_every=0,
            sample_every=0,
            save_every=10**6,
            keep_early="no",
            keep_best=None,
            report=False,
            progress=False,
            device=args.device,
        )
        common.trained(trainer.train())
    parameters = sum(p.numel() for p in network.parameters())
    return {
        "set": kind,
        "images": n,
        "seed": seed,
        "parameters": parameters,
        "onset": onset(looks.seen),
        "looks": looks.seen,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def main() -> None:
    """Measure, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--set", nargs="+", choices=SETS, default=["shapes"])
    parser.add_argument("--photos", help="a folder of images, for the set photos")
    parser.add_argument("--images", type=int, nargs="+", default=[24, 48, 96, 192])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--first-passes", type=int, default=30)
    parser.add_argument("--most-passes", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if "photos" in args.set and args.photos is None:
        parser.error("the set photos needs --photos FOLDER")
    results: list[dict[str, Any]] = []
    slopes: dict[str, tuple[float, float, float]] = {}
    for kind in args.set:
        for n in args.images:
            for seed in args.seeds:
                found = measure(kind, n, seed, args)
                results.append(found)
                when = found["onset"]
                passes = "" if when is None else f"{when * args.batch_size / n:8.0f} passes"
                step = "never" if when is None else f"step {when:.0f}"
                print(f"{kind} n={n} seed={seed}: {step} {passes} ({found['cpu_seconds']} s)")
        points = [
            (r["images"], r["onset"])
            for r in results
            if r["set"] == kind and r["onset"] is not None
        ]
        if len({n for n, _ in points}) > 1:
            found, low, high = slopes[kind] = slope(points)
            print(f"{kind}: onset grows with n to the power {found:.2f} [{low:.2f}, {high:.2f}]")
    if args.output is not None:
        found = {"batch_size": args.batch_size, "slopes": slopes, "runs": results}
        args.output.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
