"""One forward pass of training, every random number of which is named by (seed, step, row)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.process.loss import Losses
from ddpm_lib.training.augmentation import AUGMENT_DRAWS, augment
from ddpm_lib.training.batches import batch_to_device, flip_rows
from ddpm_lib.training.conditions_of_data import flipped
from ddpm_lib.training.randomness import StepRandomness

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion


class PassInputs(NamedTuple):
    """What a forward pass is a function of, beside the weights.

    Attributes:
        images: On the device, flipped and augmented.
        cond: The network's conditions, on the device; None for none.
        uniform: Numbers that name the levels, float64 (b,) on the CPU.
        noise: ε, on the device.
        drop: Numbers that decide whose conditions are hidden, by condition.
    """

    images: Tensor
    cond: dict[str, Tensor] | None
    uniform: Tensor
    noise: Tensor
    drop: dict[str, Any]


@dataclass(frozen=True)
class ForwardPass:
    """From images to losses: a function of the weights, the images and (step, slot, rows) alone.

    Args:
        diffusion: The process.
        randomness: Names the random numbers.
        device: Where it computes.
        horizontal_flip: Whether to mirror half of the images.
        augment: Probability of each transformation that the network is told of.
        max_steps: Steps of the whole training, for a loss that changes on the way.
    """

    diffusion: GaussianDiffusion
    randomness: StepRandomness
    device: torch.device
    horizontal_flip: bool = False
    augment: float = 0.0
    max_steps: int = 1

    def __call__(
        self, network: Callable[..., Any], batch: dict[str, Any], rows: range, step: int, slot: int
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses of some rows of a step's global batch.

        Args:
            network: The process, possibly wrapped, or a function that calls it.
            batch: The images of these rows, with their labels, on the CPU.
            rows: Rows of the global batch.
            step: Optimizer steps done before this one.
            slot: Images used by all processes before this step.

        Returns:
            The losses (b,) on the device, and the levels t (b,) on the CPU.
        """
        given = self.inputs(batch, rows, step, slot)
        # NumPy: DDP would move CPU tensors to the GPU, and reading them back there would wait.
        named: dict[str, Any] = {"uniform": given.uniform.numpy(), "noise": given.noise}
        named["drop"] = given.drop
        if self.diffusion.pairs is not None:
            named["progress"] = min(1.0, step / self.max_steps)
        losses: Losses = network(given.images, given.cond, **named, reduction="losses")
        return losses.per_image, losses.t

    def inputs(self, batch: dict[str, Any], rows: range, step: int, slot: int) -> PassInputs:
        """Return what a forward pass is a function of beside the weights, and seed dropout.

        Args:
            batch: As for the call.
            rows: As for the call.
            step: As for the call.
            slot: As for the call.
        """
        diffusion, randomness = self.diffusion, self.randomness
        batch = batch_to_device(batch, self.device)
        images = batch.pop("image")
        cond = conditions_of(diffusion, batch)
        if self.horizontal_flip:
            flip = randomness.uniform("flip", slot, rows) < 0.5
            images = flip_rows(images, flip)
            cond = flipped(cond, diffusion.conditioners, flip)
        if self.augment:
            numbered = [f"augment {k}" for k in range(AUGMENT_DRAWS)]
            draws = torch.stack([randomness.uniform(what, slot, rows) for what in numbered], 1)
            images, done = augment(images, draws, self.augment)
            cond = {**(cond or {}), "augment": done}
        uniform = randomness.uniform("t", slot, rows)
        noise = randomness.noise(step, rows, tuple(images.shape[1:]), self.device)
        droppable = [(k, c) for k, c in (diffusion.conditioners or {}).items() if c.drop_prob > 0]
        # What guidance contrasts drops together.
        purposes = {k: "drop" if c.guided else k for k, c in droppable}
        drop = {k: randomness.uniform(what, slot, rows).numpy() for k, what in purposes.items()}
        for k, conditioner in data_conditions(diffusion.conditioners).items():
            if k in drop:  # together with the others, or by itself
                alone = randomness.uniform(k, slot, rows).numpy()
                drop[k] = conditioner.drops(drop[k], alone)
        randomness.seed_dropout(step, rows, self.device)
        return PassInputs(images, cond, uniform, noise, drop)


def conditions_of(diffusion: GaussianDiffusion, batch: dict[str, Any]) -> dict[str, Tensor] | None:
    """Pick the fields of a batch that the network is conditioned on; None where there are none."""
    names = diffusion.conditioners or {}
    return {name: batch[name] for name in names if name in batch} or None
