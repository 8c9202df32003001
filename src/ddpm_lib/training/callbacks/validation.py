"""The loss on held-out images beside that on training images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.core.device_copy import to_device
from ddpm_lib.core.spread import evenly
from ddpm_lib.runs.names import AVERAGE_LOSS
from ddpm_lib.time_sampling import spread_levels
from ddpm_lib.training.adjusted_gap import (
    FEWEST_PAIRS,
    SPECTRUM_IMAGES,
    LinearDenoiser,
    adjusted_gap,
    mean_error,
)
from ddpm_lib.training.batches import batch_to_device
from ddpm_lib.training.callbacks.base import Callback, TrainingView

if TYPE_CHECKING:
    from torch import nn

    from ddpm_lib.data import ImageDataset

MODEL_IMAGES = 128
"""Held-out images on which the trained weights are compared with their average."""


class Validation(Callback):
    """Loss of the averaged weights on held-out images and on as many training images, with the same
    noise every time.

    Levels are spread evenly over the images, noise and levels are functions of the image's index,
    so the curves are smooth. `val_gap` is the difference between the two; `val_gap_start` is the
    part of it that the sets differ by anyway, as a linear denoiser finds it, which cannot remember
    (`training/adjusted_gap.py`); `val_gap_adjusted` is the rest: over-fitting, nothing else. Each
    rank takes its share.
    """

    def __init__(self, max_images: int, seed: int) -> None:
        self.max_images, self.seed = max_images, seed
        self._reference: Tensor | None = None

    def on_train_start(self, trainer: TrainingView) -> None:
        """Forget what was measured of other sets."""
        self._reference = None

    def on_step_end(self, trainer: TrainingView) -> None:
        """Validate when it is time."""
        if trainer.held_out is None or not trainer.config.due(trainer.step, "val_every"):
            return
        n = min(self.max_images, len(trainer.held_out))
        averages = {}
        if trainer.step == trainer.config.max_steps and trainer.chooses_average:
            averages = self._choose_average(trainer, n)
        held_out = self.losses(trainer, trainer.held_out, n)
        train = self.losses(trainer, trainer.dataset.steady(), min(n, len(trainer.dataset)))
        error, gap_error = standard_errors(held_out, train, trainer.diffusion.timesteps)
        val, fixed = float(held_out.mean()), float(train.mean())
        trainer.log(
            {
                "val_loss": val,
                "val_loss_error": error,
                "train_fixed_loss": fixed,
                "val_gap": val - fixed,
                "val_gap_error": gap_error,
                **self._adjusted(trainer, held_out, train),
                **self._of_model(trainer, held_out),
                **averages,
            }
        )

    def _choose_average(self, trainer: TrainingView, n: int) -> dict[str, float]:
        """Use, from here on, the average with the lowest loss on all held-out images of a
        validation; return the losses by the names of their columns.
        """
        assert trainer.held_out is not None
        losses = {
            decay: float(self.losses(trainer, trainer.held_out, n, network).mean())
            for decay, network in trainer.averaged_networks().items()
        }
        if all(math.isfinite(loss) for loss in losses.values()):
            trainer.use_average(min(losses, key=lambda decay: losses[decay]))
        return {f"{AVERAGE_LOSS}{decay}": loss for decay, loss in losses.items()}

    def losses(
        self,
        trainer: TrainingView,
        dataset: ImageDataset,
        n: int,
        network: nn.Module | None = None,
        rows: np.ndarray | None = None,
    ) -> Tensor:
        """Return losses of images spread over the dataset, on every rank, on the CPU.

        Args:
            trainer: The run.
            dataset: One of its sets.
            n: Number of images.
            network: Whose loss; default: the averaged one's.
            rows: Which of the n; default: all.

        Returns:
            Losses (n,), 0 where `rows` leaves one out.
        """
        network = trainer.averaged_network() if network is None else network
        trainer.diffusion.eval()  # no dropout, no hidden labels
        try:
            return self._shared(
                trainer,
                n,
                rows,
                lambda own: self._losses(trainer, network, dataset, evenly(n, len(dataset)), own),
            )
        finally:
            trainer.diffusion.train()

    def _shared(
        self,
        trainer: TrainingView,
        n: int,
        rows: np.ndarray | None,
        measure: Callable[[np.ndarray], Tensor],
    ) -> Tensor:
        """Measure rows of 0 … n − 1, each rank its share; return all (n,) on every rank, on the
        CPU.
        """
        own = (np.arange(n) if rows is None else rows)[trainer.rank :: trainer.processes]
        found = torch.zeros(n, dtype=trainer.sum_dtype, device=trainer.device)
        size = max(trainer.plan.micro, 16)
        for start in range(0, len(own), size):
            part = own[start : start + size]
            values = measure(part).to(found)
            found.index_copy_(0, to_device(torch.from_numpy(part), trainer.device), values)
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
        batch = batch_to_device(dataset.batch(indices[rows].tolist()), trainer.device)
        images = batch.pop("image")
        noise = self._noise(rows, images)
        cond = trainer.conditions(batch)
        with torch.inference_mode(), trainer.accelerator.autocast():
            return diffusion(
                images,
                cond,
                t=spread_levels(rows, diffusion.timesteps),
                noise=to_device(noise, trainer.device),
                reduction="none",
                model=network,
            )

    def _noise(self, rows: np.ndarray, images: Tensor) -> Tensor:
        """Return the noise of some rows, the shape of their images, on the CPU."""
        shape = tuple(images.shape[1:])
        return torch.stack(
            [
                torch.randn(
                    shape, generator=keys.generator("cpu", int(row), self.seed, "validation")
                )
                for row in rows
            ]
        )

    def _adjusted(self, trainer: TrainingView, held_out: Tensor, train: Tensor) -> dict[str, float]:
        """Return the gap without what the sets differ by, where that can be told."""
        n, timesteps = len(held_out), trainer.diffusion.timesteps
        if len(train) != n or n < FEWEST_PAIRS:
            return {}
        if self._reference is None:
            self._reference = self._of_linear_denoiser(trainer, n)
        found = adjusted_gap(held_out, train, self._reference, timesteps)
        if found is None:
            return {}
        return {
            "val_gap_start": found.offset,
            "val_gap_adjusted": found.gap,
            "val_gap_adjusted_error": found.error,
        }

    def _of_linear_denoiser(self, trainer: TrainingView, n: int) -> Tensor:
        """Return held-out minus training errors of the linear denoiser, row by row (n,): a function
        of the two sets, measured once.
        """
        assert trainer.held_out is not None
        data, process = trainer.dataset.steady(), trainer.diffusion
        known = evenly(min(SPECTRUM_IMAGES, len(data)), len(data))
        denoiser = LinearDenoiser.of(data.batch(known.tolist())["image"])

        def errors(dataset: ImageDataset, rows: np.ndarray) -> Tensor:
            images = dataset.batch(evenly(n, len(dataset))[rows].tolist())["image"]
            t = spread_levels(rows, process.timesteps)
            return denoiser.errors(process, images, t, self._noise(rows, images))

        held_out, train = (
            self._shared(trainer, n, None, functools.partial(errors, dataset))
            for dataset in (trainer.held_out, data)
        )
        return held_out - train

    def _of_model(self, trainer: TrainingView, averaged: Tensor) -> dict[str, float]:
        """Return the held-out loss of the trained weights themselves, where `val_loss` is that of
        their average: its difference to that, from at most `MODEL_IMAGES` of the images.
        """
        assert trainer.held_out is not None
        network, n = trainer.diffusion.model, len(averaged)
        if trainer.averaged_network() is network:
            return {}
        rows = evenly(min(n, MODEL_IMAGES), n)
        own = self.losses(trainer, trainer.held_out, n, network, rows)
        moved = (own - averaged)[torch.from_numpy(rows)]
        return {"val_loss_model": float(averaged.mean() + moved.mean())}


def standard_errors(held_out: Tensor, train: Tensor, timesteps: int) -> tuple[float, float]:
    """Return the standard errors of the mean held-out loss and of its difference to the training
    images' mean.

    Row i of both sets has the same level and the same noise, so that in the difference of pairs
    what the noise does to both sides cancels; see `mean_error`.

    Args:
        held_out: Losses (n,).
        train: Losses (m,), m ≤ n.
        timesteps: T.

    Returns:
        Both errors; NaN where there is one row only.
    """
    error, other = (mean_error(values, timesteps) for values in (held_out, train))
    if len(train) == len(held_out):
        return error, mean_error(held_out - train, timesteps)
    return error, float(np.hypot(error, other))
