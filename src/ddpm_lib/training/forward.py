"""One forward pass of training, every random number of which is named by (seed, step, row)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ddpm_lib.process.loss import Losses
from ddpm_lib.training.augmentation import AUGMENT_DRAWS, augment
from ddpm_lib.training.batches import batch_to_device, flip_rows

if TYPE_CHECKING:
    from ddpm_lib.training.trainer import Trainer


def forward_rows(trainer: Trainer, network: nn.Module, batch: dict[str, Any], rows: range) -> tuple[Tensor, Tensor]:
    """Compute the losses of some rows of the present step's global batch.

    Args:
        trainer: Says the step, the images seen and the random numbers.
        network: The process, possibly wrapped.
        batch: The images of these rows, with their labels, on the CPU.
        rows: Rows of the global batch.

    Returns:
        The losses (b,) on the device, and the levels t (b,) on the CPU.
    """
    config, diffusion, randomness, slot = trainer.config, trainer.diffusion, trainer.randomness, trainer.images_seen
    batch = batch_to_device(batch, trainer.device)
    images = batch.pop("image")
    if config.horizontal_flip:
        images = flip_rows(images, randomness.uniform("flip", slot, rows) < 0.5)
    cond = trainer.conditions(batch)
    if config.augment:
        draws = torch.stack([randomness.uniform(f"augment {k}", slot, rows) for k in range(AUGMENT_DRAWS)], 1)
        images, done = augment(images, draws, config.augment)
        cond = {**(cond or {}), "augment": done}
    uniform = randomness.uniform("t", slot, rows)
    noise = randomness.noise(trainer.step, rows, tuple(images.shape[1:]), trainer.device)
    droppable = [(k, c) for k, c in (diffusion.conditioners or {}).items() if c.drop_prob > 0]
    # What guidance contrasts drops together.
    drop = {k: randomness.uniform("drop" if c.guided else k, slot, rows).numpy() for k, c in droppable}
    randomness.seed_dropout(trainer.step, rows)
    # NumPy, because DDP would move CPU tensors to the GPU, and reading them back there would wait for it.
    losses: Losses = network(images, cond, uniform=uniform.numpy(), noise=noise, drop=drop, reduction="losses")
    return losses.per_image, losses.t
