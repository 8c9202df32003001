"""Which levels to train on: maps from uniform numbers, so that whoever owns the randomness draws them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddpm_lib.registry import Registry


class TimeSampler:
    """Maps uniform numbers to levels t = 1 … T. This base class is the uniform distribution.

    A sampler that learns from the losses overrides `update`, `state_dict` and `load_state_dict`; the ones here have
    no state.
    """

    def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """Return levels and importance weights.

        Args:
            u: Uniform numbers in [0, 1), shape (b,), float64 on the CPU.
            timesteps: T.

        Returns:
            t in 1 … T, int64 on the CPU, shape (b,); and weights 1/(T·p(t)), shape (b,), or None where all are 1.
        """
        # A u just below 1 can round up in the product.
        return (u.double() * timesteps).long().clamp_(0, timesteps - 1) + 1, None

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the losses (b,) that were seen at levels t (b,)."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no state, got {', '.join(state)}. Use the sampler that was saved."
            )


class Uniform(TimeSampler):
    """Every level is equally likely."""


class Stratified(TimeSampler):
    """One random shift of an even grid per batch: each batch covers all noise levels (Kingma et al. 2021, app. I.1).

    Every single t is still uniform, at every position of the batch; only the variance of the batch's loss is smaller.
    """

    def __call__(self, u: Tensor, timesteps: int) -> tuple[Tensor, Tensor | None]:
        """Return floor(T·((u_0 + i/b) mod 1)) + 1 for i = 0 … b−1; only the first number is used."""
        grid = torch.arange(len(u), dtype=torch.float64) / max(len(u), 1)
        return super().__call__((u[:1].double() + grid) % 1.0, timesteps)


TIME_SAMPLERS: Registry[type[TimeSampler]] = Registry("time sampler", {"uniform": Uniform, "stratified": Stratified})
