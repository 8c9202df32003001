"""From the tensors of a checkpoint to an optimizer, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's per-parameter state as `<parameter>|<entry>` tensors."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{names[id(p)]}|{entry}": value if isinstance(value, Tensor) else torch.tensor(value)
        for p, entries in optimizer.state.items()
        for entry, value in entries.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    tensors: dict[str, Tensor],
    needs: Callable[[dict[str, Any]], Sequence[str]] | None = None,
) -> list[str]:
    """Restore what `optimizer_tensors` returned, on each parameter's device.

    The `step` counters stay where torch wants them.

    Args:
        optimizer: Of the same parameters.
        model: Names them.
        tensors: The state.
        needs: Returns which entries a parameter group keeps of each parameter; what has others, of
            another optimizer, begins afresh.

    Returns:
        The names of the parameters that begin afresh though there was a state for them.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, entry = full.rsplit("|", 1)
        by_parameter.setdefault(name, {})[entry] = tensor
    other: list[str] = []
    for group in optimizer.param_groups:
        for name in (names[id(p)] for p in group["params"]):
            kept = by_parameter.get(name)
            if kept and needs is not None and set(kept) != set(needs(group)):
                del by_parameter[name]
                other.append(name)
    structure = optimizer.state_dict()
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    structure["state"] = {
        i: {entry: _laid_out_like(v, p) for entry, v in by_parameter[names[id(p)]].items()}
        for i, p in enumerate(ordered)
        if names[id(p)] in by_parameter
    }
    optimizer.load_state_dict(structure)
    return other


def _laid_out_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    # Fused optimizers walk through memory: a moment in another layout than its weight would go to
    # the wrong elements.
    if tensor.shape != parameter.shape:
        return tensor
    kind, device = tensor.dtype, tensor.device
    empty = torch.empty_like(parameter, dtype=kind, device=device, requires_grad=False)
    return empty.copy_(tensor)
