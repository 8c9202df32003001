"""Fixed images of a run, for the samples of networks whose conditions are made of images, such as super-resolution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.images import to_model_range, to_uint8
from ddpm_lib.nn import LowRes
from ddpm_lib.process.conditions import find_conditioner

if TYPE_CHECKING:
    from ddpm_lib.training.trainer import Trainer


def low_res_of(trainer: Trainer) -> LowRes | None:
    """Return the network's condition "low_res", None if it has none."""
    return find_conditioner(trainer.diffusion.conditioners, LowRes)


def example_images(trainer: Trainer, n: int) -> dict[str, Tensor]:
    """Return n images, with their labels, spread over the held-out set, or over the training set where nothing is held out."""
    dataset = trainer.held_out if trainer.held_out is not None else trainer.dataset
    return dataset.batch((np.arange(n) * len(dataset) // n).tolist())


def example_conditions(trainer: Trainer, n: int) -> dict[str, Tensor] | None:
    """Return the conditions made of n fixed images, None for a network that needs no image.

    Every rank reads the same images.
    """
    low_res = low_res_of(trainer)
    if low_res is None:
        return None
    batch = example_images(trainer, n)
    image = batch.pop("image")
    return {low_res.name: low_res.derive(to_model_range(image)), **(trainer.conditions(batch) or {})}


def beside_examples(trainer: Trainer, samples: Tensor) -> tuple[Tensor, int | None]:
    """Put each sample between its small image, enlarged without smoothing, and the image that was made of.

    Args:
        trainer: The run.
        samples: Images (n, c, h, w) drawn under `example_conditions(trainer, n)`.

    Returns:
        Tiles (3n, c, h, w), uint8, and how many stand in a row; for networks that need no image the samples and None.
    """
    low_res = low_res_of(trainer)
    if low_res is None:
        return samples, None
    truth = example_images(trainer, len(samples))["image"]
    small = low_res.derive(to_model_range(truth))
    for axis in range(2, small.ndim):
        small = small.repeat_interleave(low_res.factor, axis)
    tiles = torch.stack([to_uint8(small), to_uint8(samples).cpu(), to_uint8(truth)], 1).flatten(0, 1)
    return tiles, 3 * max(1, round(math.sqrt(len(tiles)) / 3))
