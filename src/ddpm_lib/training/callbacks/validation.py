"""The loss on held-out images beside that on training images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.core.device_copy import to_device
from ddpm_lib.core.spread import evenly
from ddpm_lib.time_sampling import spread_levels
from ddpm_lib.training.batches import batch_to_device
from ddpm_lib.training.callbacks.base import Callback, TrainingView

if TYPE_CHECKING:
    from torch import nn

    from ddpm_lib.data import ImageDataset


class Validation(Callback):
    """Loss of the averaged weights on held-out images and on as many training images, with the same
    noise every time.

    Levels are spread evenly over the images, noise and levels are functions of the image's index,
    so the curves are smooth and the gap between them is over-fitting, nothing else. Each rank takes
    its share.
    """

    def __init__(self, every: int, max_images: int, seed: int) -> None:
        self.every, self.max_images, self.seed = every, max_images, seed

    def on_step_end(self, trainer: TrainingView) -> None:
        """Validate when it is time."""
        if trainer.held_out is None or (
            trainer.step % self.every and trainer.step != trainer.config.max_steps
        ):
            return
        n = min(self.max_images, len(trainer.held_out))
        held_out = self.losses(trainer, trainer.held_out, n)
        train = self.losses(trainer, trainer.dataset, min(n, len(trainer.dataset)))
        error, gap_error = standard_errors(held_out, train, trainer.diffusion.timesteps)
        val, fixed = float(held_out.mean()), float(train.mean())
        trainer.log(
            {
                "val_loss": val,
                "val_loss_error": error,
                "train_fixed_loss": fixed,
                "val_gap": val - fixed,
                "val_gap_error": gap_error,
            }
        )

    def losses(self, trainer: TrainingView, dataset: ImageDataset, n: int) -> Tensor:
        """Return the losses (n,) of images spread over the dataset, on every rank, on the CPU."""
        spread = evenly(n, len(dataset))
        own = np.arange(n)[trainer.rank :: trainer.processes]
        found = torch.zeros(n, dtype=trainer.sum_dtype, device=trainer.device)
        network = trainer.averaged_network()
        size = max(trainer.plan.micro, 16)
        trainer.diffusion.eval()  # no dropout, no hidden labels
        try:
            for start in range(0, len(own), size):
                rows = own[start : start + size]
                values = self._losses(trainer, network, dataset, spread[rows], rows).to(found.dtype)
                found.index_copy_(0, to_device(torch.from_numpy(rows), trainer.device), values)
        finally:
            trainer.diffusion.train()
        return trainer.sum_over_ranks(found).cpu()

    def _losses(
        self,
        trainer: TrainingView,
        network: nn.Module,
        dataset: ImageDataset,
        indices: np.ndarray,
        rows: np.ndarray,
    ) -> Tensor:
        diffusion = trainer.diffusion
        batch = batch_to_device(dataset.batch(indices.tolist()), trainer.device)
        images = batch.pop("image")
        t = spread_levels(rows, diffusion.timesteps)
        shape = tuple(images.shape[1:])
        noise = torch.stack(
            [
                torch.randn(
                    shape, generator=keys.generator("cpu", int(row), self.seed, "validation")
                )
                for row in rows
            ]
        )
        cond = trainer.conditions(batch)
        with torch.inference_mode(), trainer.accelerator.autocast():
            return diffusion(
                images,
                cond,
                t=t,
                noise=to_device(noise, trainer.device),
                reduction="none",
                model=network,
            )


def standard_errors(held_out: Tensor, train: Tensor, timesteps: int) -> tuple[float, float]:
    """Return the standard errors of the mean held-out loss and of its difference to the training
    images' mean.

    Row i of both sets has the same level and the same noise. The levels are spread evenly, so how
    the loss depends on them is no error: what counts is how rows of neighbouring levels differ,
    Σ(l_{i+1} − l_i)² / (2(n−1)), the estimate for systematic samples (Wolter 2007, §8.2). In the
    difference of pairs what the noise does to both sides cancels as well.

    Args:
        held_out: Losses (n,).
        train: Losses (m,), m ≤ n.
        timesteps: T.

    Returns:
        Both errors; NaN where there is one row only.
    """

    def error(values: Tensor) -> float:
        n = len(values)
        if n < 2:
            return float("nan")
        order = torch.argsort(spread_levels(np.arange(n), timesteps), stable=True)
        steps = values.double()[order].diff()
        return float((steps.square().sum() / (2 * (n - 1)) / n).sqrt())

    if len(train) == len(held_out):
        return error(held_out), error(held_out - train)
    return error(held_out), float(np.hypot(error(held_out), error(train)))
