"""Show what trained weights are worth on few images: train on many images of another kind, then on
a few of one's own, once from those weights and once from nothing, and compare the held-out losses.

    python examples/fine_tune.py --source path/to/many --data path/to/few --held-out path/to/others

Every run continues where it was cut off. The result is printed, and kept as result.json.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from ddpm_lib import GaussianDiffusion, Trainer, Unet
from ddpm_lib.cli import run_script
from ddpm_lib.data import open_dataset
from ddpm_lib.nn import preset_config
from ddpm_lib.runs.metrics_file import MetricsFile


@dataclass(kw_only=True)
class Options:
    source: str
    """Many images to learn from first."""
    data: str
    """Few images, which are the aim."""
    held_out: str
    """Others of that kind, to validate on."""
    output_dir: Path = Path("runs/fine-tune")
    """Holds all runs."""
    image_size: int = 32
    """Side of the images in pixels."""
    images: int = 300
    """How many of the few images to train on, the same for all seeds."""
    source_steps: int = 1500
    """Optimizer steps on the many images."""
    steps: int = 500
    """Optimizer steps on the few images."""
    batch_size: int = 16
    """Images per step on the few images; twice as many on the many."""
    val_every: int = 125
    """Steps between validations."""
    val_images: int = 200
    """Images of a validation."""
    seeds: int = 3
    """Repetitions, with other first weights, noise and order."""
    dim: int = 32
    """Base width of the network."""


def train(options: Options, name: str, data: object, seed: int, **settings: object) -> Path:
    """Train one run, or finish it; return its directory."""
    run = options.output_dir / name
    torch.manual_seed(seed)
    network = {**preset_config("tiny"), "dim": options.dim, "patch_size": 2}
    diffusion = GaussianDiffusion(
        Unet(**network), image_size=options.image_size, parametrization="x0", weighting="flat"
    )
    usual = {"learning_rate": 1e-3, "warmup_steps": 50, "lr_schedule": "cosine", "seed": seed}
    trainer = Trainer(
        diffusion,
        data,
        output_dir=str(run),
        sample_every=0,
        val_max_images=options.val_images,
        **{**usual, **settings},
    )
    trainer.train()
    return run


def losses(run: Path) -> dict[int, float]:
    """Return the held-out loss by images seen."""
    return {row["images"]: row["val_loss"] for row in MetricsFile(run).rows() if "val_loss" in row}


def main(arguments: list[str] | None = None) -> int:
    options = tyro.cli(Options, description=__doc__, args=arguments)
    size = {"image_size": options.image_size, "channels": 3}
    first = train(
        options,
        "source",
        options.source,
        0,
        max_steps=options.source_steps,
        batch_size=2 * options.batch_size,
        val_every=options.source_steps,
    )
    few = open_dataset(options.data, **size)
    chosen = torch.randperm(len(few), generator=torch.Generator().manual_seed(0))
    few = few.subset(chosen[: options.images].sort().values)
    settings = {
        "val_data": options.held_out,
        "val_every": options.val_every,
        "max_steps": options.steps,
        "batch_size": options.batch_size,
    }
    curves: dict[str, list[dict[int, float]]] = {"scratch": [], "source": []}
    for seed in range(1, options.seeds + 1):
        for kind in curves:
            start = {"init_from": str(first)} if kind == "source" else {}
            run = train(options, f"{kind}-{seed}", few, seed, **settings, **start)
            curves[kind].append(losses(run))
    report(curves, options.output_dir / "result.json")
    return 0


def report(curves: dict[str, list[dict[int, float]]], file: Path) -> None:
    """Print held-out losses by images seen, their means over the seeds and the standard errors."""
    print(f"{'images':>8}  {'from scratch':>18}  {'from the source':>18}  ratio")
    for images in sorted(curves["scratch"][0]):
        columns = [[curve[images] for curve in curves[kind]] for kind in ("scratch", "source")]
        means = [statistics.fmean(column) for column in columns]
        errors = [statistics.stdev(c) / math.sqrt(len(c)) if len(c) > 1 else 0.0 for c in columns]
        shown = [f"{mean:.5f} ± {error:.5f}" for mean, error in zip(means, errors)]
        print(f"{images:>8,}  {shown[0]:>18}  {shown[1]:>18}  {means[1] / means[0]:.3f}")
    file.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_script(main))  # wrong input ends in a line
