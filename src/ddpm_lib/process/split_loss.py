"""The simple loss in two parts: what the host decides for a batch, and what the device computes of
it, which can be recorded once and replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lib.images import to_model_range
from ddpm_lib.nn import Unet
from ddpm_lib.process.conditions import Draws, for_training, hidden
from ddpm_lib.process.interface import TrainableProcess
from ddpm_lib.process.loss import (
    Noisy,
    by_uncertainty,
    level_table,
    levels_from,
    squared_error,
)
from ddpm_lib.time_sampling import drawn_levels

CONDITIONS = frozenset(("class_label", "augment"))
"""Conditions whose way to the network the host has no part in."""


class HostPart(NamedTuple):
    """What the host decides for a batch, all on the CPU.

    Attributes:
        t: The levels, (b,).
        table: What depends on them, see `level_table`, float64 (6, b).
        hidden: For whom each condition is hidden, booleans (b,) by name.
    """

    t: Tensor
    table: Tensor
    hidden: dict[str, Tensor]


@dataclass(frozen=True)
class DeviceBatch:
    """What the device computes a batch's losses of; all tensors are there.

    Attributes:
        images: uint8, or float in [0, 1], (b, c, *spatial).
        noise: ε, float32, their shape.
        table: As of `HostPart`, in the precision of the images in [-1, 1].
        cond: Conditions by name, (b, …).
        hidden: As of `HostPart`.
    """

    images: Tensor
    noise: Tensor
    table: Tensor
    cond: dict[str, Tensor]
    hidden: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        """Return all tensors in a fixed order."""
        named = [*sorted(self.cond.items()), *sorted(self.hidden.items())]
        return [self.images, self.noise, self.table, *(tensor for _, tensor in named)]


def why_not_split(process: TrainableProcess) -> str | None:
    """Say why the loss of a process cannot be cut in these parts; None where it can."""
    model = process.model
    if type(model) is not Unet:
        return (
            f"the network is {type(model).__name__}, and only Unet is known never to ask the host"
        )
    if model.gradient_checkpointing:
        return "gradient checkpointing sets random generators while it recomputes"
    if process.loss != "simple":
        return f"loss={process.loss!r} looks up on the CPU what depends on the levels"
    others = sorted(set(process.conditioners or {}) - CONDITIONS)
    if others:
        return f"the condition {others[0]!r} takes decisions on the CPU"
    if getattr(process.noising, "immiscible", False):
        return "immiscible noise is assigned on the CPU"
    return None


def host_part(
    process: TrainableProcess, n: int, uniform: Draws, drop: Mapping[str, Draws]
) -> HostPart:
    """Decide levels and hidden conditions of n images; arguments as of `GaussianDiffusion`."""
    u = torch.as_tensor(uniform)
    t, importance = drawn_levels(process.time_sampler, None, u, n, process.timesteps)
    table = level_table(process, t, importance)
    conditioners = process.conditioners or {}
    masks = {k: hidden(conditioners[k], k, drop, n) for k in sorted(drop) if k in conditioners}
    return HostPart(t, table, masks)


def device_part(process: TrainableProcess, batch: DeviceBatch) -> Tensor:
    """Compute the loss of each image, (b,): that of `GaussianDiffusion` in training mode."""
    x0 = to_model_range(batch.images)
    at = levels_from(batch.table, x0.ndim)
    eps, added = process.noising(x0, batch.noise.to(x0))
    noisy = Noisy(at.alpha * x0 + at.sigma * added, at.alpha, at.sigma, at.time)
    denoiser = process.denoiser
    conditioners = process.conditioners or {}
    cond = for_training(conditioners, batch.cond, x0)
    if cond is not None:
        for name, mask in batch.hidden.items():
            value = cond[name]
            null = conditioners[name].null_like(value)
            cond[name] = torch.where(mask.view(-1, *[1] * (value.ndim - 1)), null, value)
    output, _ = noisy.ask(denoiser, cond)
    total = squared_error(process, at, x0, eps, output)
    if process.uncertainty is not None:
        total = by_uncertainty(process.uncertainty, at, total)
    return at.importance * total
