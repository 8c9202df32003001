"""Weights in the precision that autocast would cast them to at every call."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

_CAST = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def cast_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the convolutions and linear layers of a network, whose weights autocast casts."""
    return (part for part in model.modules() if isinstance(part, _CAST))


def lower_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Store the weights of convolutions and linear layers in `dtype`, in place, for use under
    autocast with that dtype.

    The outputs stay the same bit by bit; what is saved is casting all weights at every step of
    sampling, and half of their memory. Such a network cannot be trained: keep the float32 one.

    Args:
        model: The network; everything but those layers stays as it is.
        dtype: torch.bfloat16 or torch.float16.

    Returns:
        The same network.
    """
    for part in cast_layers(model):
        part.requires_grad_(False).to(dtype)
    return model


def lowered_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a network and lower the weights of the copy; see `lower_weights`."""
    return lower_weights(copy.deepcopy(model), dtype)
