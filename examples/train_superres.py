"""Train a super-resolution network on the SYSU-Shape dataset, 16×16 → 64×64 by default, and show
what it does to held-out images.

    python examples/train_superres.py --data path/to/sysu-shape-dataset
    torchrun --nproc_per_node 2 examples/train_superres.py --data path/to/sysu-shape-dataset

The small images are made of the training images on the way, so that any folder of images would do.
The same command continues a run that was cut off. At its end it writes `compare.png` into the run
directory: small image, bicubic, one sample, the mean of eight samples, truth; and says how far each
is from the truth.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib import GaussianDiffusion, Trainer, Unet
from ddpm_lib.cli import run_script
from ddpm_lib.data import open_dataset, prepare_sysu
from ddpm_lib.images import save_grid, shrink
from ddpm_lib.training import process_state


@dataclass(kw_only=True)
class Options:
    data: Path
    """The dataset's folder, with one sub-folder per class."""
    output_dir: Path = Path("runs/superres")
    """Run directory; the prepared images go beside it, to DIR-masked-<size>."""
    image_size: int = 64
    """Side of the large images in pixels."""
    factor: int = 4
    """How many times smaller the small images are."""
    max_noise: float = 0.3
    """Largest level of the noise put on the small images in training."""
    dim: int = 64
    """Base width of the network; 32 suits two CPU cores."""
    dim_mults: tuple[int, ...] = (1, 2, 2)
    """Width of each level as a multiple of dim."""
    patch_size: int = 1
    """2 makes the network four times cheaper: worth it on a CPU."""
    blocks_per_level: int = 2
    """Residual blocks per level."""
    parametrization: Literal["v", "x0", "eps"] = "x0"
    """What the network predicts; with patches, x0 learns soonest."""
    batch_size: int = 32
    """Images per step over all processes."""
    max_steps: int = 20_000
    """Optimizer steps."""
    max_hours: float | None = None
    """Stop with a checkpoint after this many hours."""
    learning_rate: float = 1e-3
    """Peak learning rate; it falls to zero along a cosine."""
    ema_decay: float = 0.999
    """Decay of the weight average."""
    sample_every: int = 1000
    """Steps between grids of small image, sample and truth."""
    sample_steps: int = 50
    """Steps of the samples."""
    compared: int = 10
    """Held-out images in compare.png."""
    seed: int = 0
    """Names all random numbers."""


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    run = options.output_dir
    prepared = run.with_name(f"{run.name}-masked-{options.image_size}")
    with process_state().main_process_first():
        prepare_sysu(options.data, prepared, size=options.image_size, mode="masked")
    torch.manual_seed(options.seed)
    model = Unet(
        dim=options.dim,
        dim_mults=options.dim_mults,
        patch_size=options.patch_size,
        blocks_per_level=options.blocks_per_level,
        attention_levels=(len(options.dim_mults) - 1,),
        low_res_factor=options.factor,
        low_res_max_noise=options.max_noise,
    )
    diffusion = GaussianDiffusion(
        model,
        image_size=options.image_size,
        parametrization=options.parametrization,
        weighting="flat",
    )
    trainer = Trainer(
        diffusion,
        prepared / "train_data",
        val_data=str(prepared / "normalized_eval_data"),
        val_labels="prefix",
        output_dir=str(options.output_dir),
        batch_size=options.batch_size,
        max_steps=options.max_steps,
        max_hours=options.max_hours,
        learning_rate=options.learning_rate,
        lr_schedule="cosine",
        warmup_steps=min(500, options.max_steps // 10),
        ema_decay=(options.ema_decay,),
        horizontal_flip=True,
        save_every=options.sample_every,
        sample_every=options.sample_every,
        sample_count=options.compared,
        sample_steps=options.sample_steps,
        val_every=max(1, options.sample_every // 2),
        val_max_images=128,
        seed=options.seed,
    )
    result = trainer.train()
    if result.status == "finished":
        truth = held_out(prepared / "normalized_eval_data", options)
        tiles, lines = compare(trainer, truth, options)
        if trainer.is_main:
            save_grid(tiles, options.output_dir / "compare.png", columns=5, scale=2)
            print("\n".join(lines))
    trainer.close()
    return result.exit_code


def held_out(folder: Path, options: Options) -> Tensor:
    """Held-out images spread over the classes, (n, 3, h, w) in [0, 1]."""
    dataset = open_dataset(str(folder), image_size=options.image_size)
    rows = [i * len(dataset) // options.compared for i in range(options.compared)]
    return dataset.batch(rows)["image"] / 255


def compare(
    trainer: Trainer, truth: Tensor, options: Options, repeats: int = 8
) -> tuple[Tensor, list[str]]:
    """Draw eight samples of each image; return the tiles of the picture and a table of what is near
    the truth.
    """
    small = shrink(truth, options.factor).clamp(0, 1)
    drawn = trainer.sample(
        repeats * len(truth),
        cond={"low_res": small.repeat(repeats, 1, 1, 1)},
        sampler="ddim",
        num_steps=options.sample_steps,
        batch_size=32,
        seed=options.seed,
    ).cpu()
    samples = drawn.unflatten(0, (repeats, len(truth)))
    bicubic = F.interpolate(small, truth.shape[-2:], mode="bicubic").clamp(0, 1)
    nearest = F.interpolate(small, truth.shape[-2:], mode="nearest")
    columns = {"bicubic": bicubic, "one sample": samples[0], "mean of 8": samples.mean(0)}
    lines = [f"{'':12s} PSNR / dB   edges   small image"]
    for name, images in columns.items():
        edges = gradient_energy(images) / gradient_energy(truth)
        again = psnr(shrink(images, options.factor).clamp(0, 1), small)
        lines.append(f"{name:12s} {psnr(images, truth):9.2f} {edges:7.2f} {again:9.2f} dB")
    lines.append(
        "edges: gradient energy relative to the truth; small image: PSNR of the result made small"
        " again."
    )
    return torch.stack([nearest, *columns.values(), truth], 1).flatten(0, 1), lines


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over images of 10·log10(1/MSE), in dB."""
    return float((-10 * torch.log10((a - b).square().flatten(1).mean(1))).mean())


def gradient_energy(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels: what blur takes away."""
    return images.diff(dim=-1).square().mean() + images.diff(dim=-2).square().mean()


if __name__ == "__main__":
    sys.exit(run_script(main))  # wrong input ends in a line
