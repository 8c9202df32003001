"""The gradient of normalisation by operations that autograd can differentiate again, for gradients
of gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib.nn.kernels.position_masks import drop_by_position


def by_formula(*grads: Tensor | None) -> bool:
    """Say whether a gradient is to come by torch's operations: where gradients of gradients are
    wanted (create_graph=True), or several at once, which are not memory (is_grads_batched=True).
    """
    if torch.is_grad_enabled():
        return True
    return not all(grad is None or torch._C._has_storage(grad) for grad in grads)


def differentiable_backward(
    grad: Tensor,
    x: Tensor,
    add: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    eps: float,
    act: bool,
    seed: int,
    dropout: float,
) -> tuple[Tensor | None, ...]:
    """Return what the kernels' gradient is, by operations that autograd can differentiate again."""
    inputs, again = [x, add, gamma, beta], torch.is_grad_enabled()
    needed = [v for v in inputs if v is not None and v.requires_grad]
    with torch.enable_grad():
        h = F.group_norm(x if add is None else x + add[..., None, None], groups, eps=eps)
        z = h * gamma[..., None, None] + beta[..., None, None]
        y = (F.silu(z) if act else z).to(x.dtype)
        if dropout:
            y = drop_by_position(y, seed, dropout)
    found = iter(torch.autograd.grad(y, needed, grad.to(y.dtype), create_graph=again))
    return (
        *(next(found) if v is not None and v.requires_grad else None for v in inputs),
        *(None,) * 5,
    )
