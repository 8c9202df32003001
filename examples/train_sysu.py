"""Train on the SYSU-Shape dataset: airplanes, bicycles, boats, cars and motorbikes, cut out on
white.

    python examples/train_sysu.py --data path/to/sysu-shape-dataset
    accelerate launch examples/train_sysu.py --data path/to/sysu-shape-dataset
    torchrun --nproc_per_node 2 examples/train_sysu.py --data path/to/sysu-shape-dataset

The dataset is prepared once, next to the run. The same command continues a run that was cut off.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from ddpm_lib import GaussianDiffusion, Trainer, Unet
from ddpm_lib.cli import run_script
from ddpm_lib.data import prepare_sysu
from ddpm_lib.training import process_state


@dataclass(kw_only=True)
class Options:
    data: Path
    """The dataset's folder, with one sub-folder per class."""
    output_dir: Path = Path("runs/sysu")
    """Run directory; the prepared images go beside it, to DIR-<mode>-<size>."""
    image_size: int = 64
    """Side of the images in pixels."""
    mode: Literal["masked", "fit", "stretch"] = "masked"
    """Object on white, crop around the object, or the whole photo squashed."""
    class_conditional: bool = False
    """Learn the five classes (sampling can then ask for one)."""
    num_workers: int | None = None
    """Processes that decode images (the set fits in RAM, so they are needed once)."""
    resume: Literal["auto", "never"] = "auto"
    """Continue the run in output_dir, or refuse to."""
    dim: int = 64
    """Base width of the network; 32 suits two CPU cores."""
    dim_mults: tuple[int, ...] = (1, 2, 2, 2)
    """Width of each level as a multiple of dim."""
    blocks_per_level: int = 2
    """Residual blocks per level."""
    patch_size: int = 1
    """2 makes the network four times cheaper: worth it on a CPU, with parametrization x0 and
    weighting flat.
    """
    parametrization: Literal["v", "x0", "eps"] = "v"
    """What the network predicts."""
    weighting: Literal["min_snr", "flat", "simple", "snr_plus_one"] = "min_snr"
    """Weight of the noise levels in the loss."""
    batch_size: int = 32
    """Images per step over all processes."""
    accumulation_steps: int = 1
    """Micro-batches per step."""
    max_steps: int = 20_000
    """Optimizer steps."""
    max_hours: float | None = None
    """Stop with a checkpoint after this many hours."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    ema_decay: float = 0.9995
    """Decay of the weight average."""
    save_every: int = 1000
    """Steps between checkpoints."""
    sample_every: int = 1000
    """Steps between sample grids."""
    guidance_scale: float = 1.5
    """Classifier-free guidance of the grids of a class-conditional network."""
    val_every: int = 500
    """Steps between validations on normalized_eval_data."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Names all random numbers."""


def main() -> int:
    options = tyro.cli(Options, description=__doc__)
    run = options.output_dir
    prepared = run.with_name(f"{run.name}-{options.mode}-{options.image_size}")
    with process_state().main_process_first():
        prepare_sysu(
            options.data,
            prepared,
            size=options.image_size,
            mode=options.mode,
            num_workers=options.num_workers,
        )

    torch.manual_seed(options.seed)
    model = Unet(
        dim=options.dim,
        dim_mults=options.dim_mults,
        patch_size=options.patch_size,
        blocks_per_level=options.blocks_per_level,
        attention_levels=(len(options.dim_mults) - 1,),
        dropout=0.1,
        num_classes=5 if options.class_conditional else None,
    )
    diffusion = GaussianDiffusion(
        model,
        image_size=options.image_size,
        parametrization=options.parametrization,
        weighting=options.weighting,
    )
    trainer = Trainer(
        diffusion,
        prepared / "train_data",
        val_data=str(prepared / "normalized_eval_data"),
        val_labels="prefix",
        output_dir=str(options.output_dir),
        resume=options.resume,
        num_workers=options.num_workers,
        batch_size=options.batch_size,
        accumulation_steps=options.accumulation_steps,
        max_steps=options.max_steps,
        max_hours=options.max_hours,
        learning_rate=options.learning_rate,
        ema_decay=(options.ema_decay,),
        horizontal_flip=True,
        save_every=options.save_every,
        sample_every=options.sample_every,
        sample_count=25,
        sample_guidance_scale=options.guidance_scale if options.class_conditional else 1.0,
        val_every=options.val_every,
        log_every=options.log_every,
        seed=options.seed,
    )
    result = trainer.train()
    trainer.close()
    return result.exit_code


if __name__ == "__main__":
    sys.exit(run_script(main))  # wrong input ends in a line
