"""Train the 35.7 M network of Ho et al. 2020 on CIFAR-10.

    python examples/train_cifar10.py --data-root path/to/datasets --download
    accelerate launch examples/train_cifar10.py --data-root path/to/datasets --compile

A GPU is advisable: on a laptop CPU take --preset tiny.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
import tyro

from ddpm_lib import GaussianDiffusion, Trainer, Unet
from ddpm_lib.cli import run_script


@dataclass(kw_only=True)
class Options:
    data: str = "cifar10"
    """CIFAR-10 by torchvision; or a folder of parquet files, or a name on the hub."""
    split: str | None = "train"
    """Which part of the data to train on; None for data without parts."""
    data_root: str | None = None
    """Where torchvision's files lie; default: $DDPM_LIB_DATA, else the library's cache."""
    download: bool = False
    """Let torchvision download what is missing there."""
    output_dir: str = "runs/cifar10"
    """Run directory; the same command continues a run that was cut off."""
    preset: str = "cifar10"
    """Network: cifar10, small or tiny."""
    class_conditional: bool = False
    """Learn the ten classes."""
    batch_size: int = 128
    """Images per step over all processes."""
    max_steps: int = 200_000
    """Optimizer steps (Ho et al. train 800,000)."""
    max_hours: float | None = None
    """Stop with a checkpoint after this many hours."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    num_workers: int | None = None
    """Processes that decode images (the set fits in RAM, so they are needed once)."""
    val_fraction: float = 0.02
    """Share of the images held out."""
    sample_every: int = 5000
    """Steps between sample grids."""
    save_every: int = 5000
    """Steps between checkpoints."""
    compile: bool = False
    """Compile the network."""
    seed: int = 0
    """Names all random numbers."""


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    torch.manual_seed(options.seed)
    model = Unet.preset(options.preset, num_classes=10 if options.class_conditional else None)
    diffusion = GaussianDiffusion(model, image_size=32)
    trainer = Trainer(
        diffusion,
        options.data,
        split=options.split,
        data_root=options.data_root,
        download=options.download,
        output_dir=options.output_dir,
        batch_size=options.batch_size,
        max_steps=options.max_steps,
        max_hours=options.max_hours,
        learning_rate=options.learning_rate,
        lr_schedule="constant",
        warmup_steps=min(5000, options.max_steps // 10),
        ema_decay=0.9999,
        horizontal_flip=True,
        num_workers=options.num_workers,
        val_fraction=options.val_fraction,
        val_every=2500,
        sample_every=options.sample_every,
        sample_count=64,
        save_every=options.save_every,
        compile=options.compile,
        seed=options.seed,
    )
    result = trainer.train()
    trainer.close()
    return result.exit_code


if __name__ == "__main__":
    sys.exit(run_script(main))  # wrong input ends in a line
