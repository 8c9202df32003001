"""Weights in the precision that autocast would cast them to at every call."""

from __future__ import annotations

import copy

import torch
from torch import nn

_CAST = {
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
}
_KNOWN = ("torch.nn.", "ddpm_lib.")
"""Packages whose modules neither leave autocast nor read a weight of a layer but by calling it."""


def cast_layers(model: nn.Module) -> list[nn.Module]:
    """Return the convolutions and linear layers of a network whose weights autocast casts, and
    which nothing else reads.

    Those are none where a part of the network is neither torch's nor the library's: other code may
    compute in float32 on the way, or with a weight itself. Layers that compute their weight
    (normalised, standardised) or share it with another kind of layer keep it in float32.
    """
    parts = list(model.modules())
    if not all(type(part).__module__.startswith(_KNOWN) for part in parts):
        return []
    found = [part for part in parts if _is_cast_alone(part)]
    chosen = {id(part) for part in found}
    others = (part for part in parts if id(part) not in chosen)
    shared = {id(p) for part in others for p in part._parameters.values() if p is not None}
    return [part for part in found if not any(id(p) in shared for p in part.parameters())]


def _is_cast_alone(part: nn.Module) -> bool:
    plain = type(part) in _CAST and part._parameters.keys() <= {"weight", "bias"}
    single = all(p.dtype == torch.float32 for p in part.parameters())  # it leaves float64 as it is
    return plain and single and not part._forward_pre_hooks and "forward" not in part.__dict__


def lower_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Store the weights of convolutions and linear layers in `dtype`, in place, for use under
    autocast with that dtype; see `cast_layers` for which.

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
