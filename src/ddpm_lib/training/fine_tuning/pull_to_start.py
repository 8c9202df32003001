"""L2-SP: a pull of the weights back to those that training began with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.spelling import option


class PullToStart:
    """The penalty λ/2·‖θ − θ₀‖², θ₀ being the weights at the first step (Li et al. 2018, "Explicit
    inductive bias for transfer learning with convolutional networks", eq. 2).

    It is part of what is differentiated, λ·(θ − θ₀) in the gradient, and no part of the loss that
    is logged. Weights that are not trained do not count; those that were added to the network
    are pulled to what they were added as.

    Args:
        model: The network as it begins, on its device.
        strength: λ, at least 0.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        self.strength = strength
        self._trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self._start = {k: p.detach().clone() for k, p in self._trained.items()}

    def begin(self) -> None:
        """Let the weights be pulled to what they are now."""
        for name, parameter in self._trained.items():
            self._start[name].copy_(parameter.detach())

    def penalty(self) -> Tensor:
        """Return λ/2·‖θ − θ₀‖², a scalar to differentiate."""
        parts = [(p - self._start[k]).square().sum() for k, p in self._trained.items()]
        return 0.5 * self.strength * torch.stack(parts).sum()

    def tensors(self) -> dict[str, Tensor]:
        """Return θ₀ by the names of the network's parameters."""
        return dict(self._start)

    def load_tensors(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Take over θ₀ from a checkpoint.

        Args:
            tensors: What `tensors` returned; entries of weights that are frozen now are left out.
            where: The checkpoint, for the message.

        Raises:
            CheckpointError: If it lacks a weight that is trained now.
        """
        lacking = [name for name in self._start if name not in tensors]
        if lacking:
            raise CheckpointError(
                f"{where} does not say what {lacking[0]} began as ({len(lacking)} weights like it),"
                f" because they were frozen. Keep them frozen, or set {option('pull_to_start', 0)}."
            )
        for name, start in self._start.items():
            start.copy_(tensors[name])
