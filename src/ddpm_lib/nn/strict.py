"""From tensors of a file to a network: every name and shape must fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import CheckpointError

_TOLD = 5
"""Differences that a message lists of each kind."""


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights strictly, listing the first differences where they do not fit.

    Raises:
        CheckpointError: If names, shapes or kinds differ.
    """
    check_weights(model, tensors, where)
    model.load_state_dict(dict(tensors))


def check_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Compare the names, shapes and kinds of a network's weights with those of a file.

    Args:
        model: The network, which may lie on the meta device.
        tensors: The weights of the file by name.
        where: The file or the checkpoint, for the message.

    Raises:
        CheckpointError: Listing the first differences: what is missing, unexpected and of another
            shape or kind.
    """
    own = dict(model.state_dict())
    missing = [f"missing in the file: {k}" for k in own if k not in tensors]
    extra = [f"not in the model: {k}" for k in tensors if k not in own]
    both = [(k, tensors[k], own[k]) for k in own if k in tensors]
    shapes = [
        f"{k}: {tuple(there.shape)} in the file, {tuple(here.shape)} in the model"
        for k, there, here in both
        if there.shape != here.shape
    ]
    kinds = [
        f"{k}: {there.dtype} in the file, {here.dtype} in the model"
        for k, there, here in both
        if there.shape == here.shape and _kind(there) != _kind(here)
    ]
    if missing or extra or shapes or kinds:
        lines = []
        for some in (missing, extra, shapes, kinds):
            lines += some[:_TOLD]
            lines += [f"… and {len(some) - _TOLD} more such"] if len(some) > _TOLD else []
        told = "\n  ".join(lines)
        raise CheckpointError(f"The weights in {where} are of another network:\n  {told}")


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def check_finite(tensors: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Refuse weights that are not finite.

    Args:
        tensors: The weights by name.
        where: Where they are from, for the message.
        remedy: What to do instead.

    Raises:
        CheckpointError: Naming the first.
    """
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise CheckpointError(
            f"{where} holds NaN or infinite weights ({len(broken)} of {len(tensors)} tensors, the"
            f" first is {broken[0]}). {remedy}"
        )


def take_precision(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Convert a network to the precision of weights that are to be loaded into it.

    Where they all have one, all of the network is converted, as `model.to(torch.bfloat16)` does;
    else tensor by tensor.
    """
    found = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(found) == 1:
        model.to(found.pop())
        return
    with torch.no_grad():
        for name, own in [*model.named_parameters(), *model.named_buffers()]:
            there = tensors.get(name)
            if there is not None and there.dtype != own.dtype:
                own.data = own.data.to(there.dtype)
