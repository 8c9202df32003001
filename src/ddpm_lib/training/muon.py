"""Muon for matrices and convolutions, AdamW for the rest (Jordan et al. 2024; Liu et al. 2025).

torch.optim.Muon takes matrices alone; most weights of a U-Net are convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.nn.kernels.orthogonal_steps import orthogonal_fits, orthogonal_step
from ddpm_lib.training.without_dynamo import WithoutDynamo

MUON_STATE, ADAM_STATE = ("momentum_buffer",), ("step", "exp_avg", "exp_avg_sq")
"""What a checkpoint keeps for each parameter."""

_NARROWEST = 16
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def takes_muon(model: nn.Module) -> list[str]:
    """Return the names of the parameters that Muon trains: weights of linear layers and
    convolutions with at least 16 inputs and 16 outputs.

    Those of fewer connect the network with pixels, and tables of embeddings have rows that are
    learned one at a time; orthogonal updates suit neither (Jordan et al. 2024).
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return [
        name
        for name, p in model.named_parameters()
        if p.ndim >= 2 and id(p) not in tables and min(p.shape[:2]) >= _NARROWEST
    ]


class Muon(WithoutDynamo, torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal, and AdamW for the parameters that are not to be.

    Of the momentum M of a weight (out, in·kernel) the update is −rate·0.2·√max(out, in·kernel)·UVᵀ
    with M = UΣVᵀ: all directions of a layer learn equally fast. The factor gives updates the root
    mean square that AdamW's have (Liu et al. 2025, §2.2), so that both share one rate. UVᵀ is
    found to some 30 % by five steps of a Newton–Schulz iteration (Jordan et al. 2024), in bfloat16
    on GPUs.

    A step whose `found_inf` is 1 changes nothing, which is decided on the device, as by torch's
    fused AdamW.

    Args:
        params: Groups of parameters; those with "muon": True are made orthogonal.
        lr: Learning rate.
        momentum: Of the Muon groups, with Nesterov's look ahead.
        betas: Adam's.
        eps: Adam's.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Sequence[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": 0.0,
            "muon": False,
            "fused": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the weights."""
        assert closure is None, "training evaluates the loss itself"
        for group in self.param_groups:
            if group["muon"]:
                self._orthogonal(group)
            else:
                self._adam(group)

    def _adam(self, group: dict[str, Any]) -> None:
        from torch.optim.adamw import adamw

        used = [p for p in group["params"] if p.grad is not None]
        for p in used:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        if not used:
            return
        states = [self.state[p] for p in used]
        beta1, beta2 = group["betas"]
        fused = used[0].device.type in ("cpu", "cuda")
        adamw(
            used,
            [p.grad for p in used],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            found_inf=self.found_inf if fused else None,
        )

    def _orthogonal(self, group: dict[str, Any]) -> None:
        if self._in_one_go(group):
            return
        rate, momentum = group["lr"], group["momentum"]
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            old = self._momentum(p)
            new = old.lerp(p.grad, 1.0 - momentum)
            ahead = p.grad.lerp(new, momentum).flatten(1)
            self.state[p]["momentum_buffer"] = self._unless_shut(new, old)
            by_shape.setdefault(tuple(ahead.shape), []).append((p, ahead))
        for (rows, columns), members in by_shape.items():
            updates = orthogonal(torch.stack([ahead for _, ahead in members]))
            scale = rate * 0.2 * math.sqrt(max(rows, columns))
            for (p, _), update in zip(members, updates):
                kept = p * (1.0 - rate * group["weight_decay"])
                p.copy_(self._unless_shut(kept - scale * update.view(p.shape).to(p.dtype), p))

    def _in_one_go(self, group: dict[str, Any]) -> bool:
        """Do it by the kernel for CPUs, if there is one for all of these weights."""
        used = [p for p in group["params"] if p.grad is not None]
        if not used or used[0].device.type != "cpu":
            return False
        grads, means = [p.grad for p in used], [self._momentum(p) for p in used]
        if not orthogonal_fits(used, grads, means):
            return False
        if self.found_inf is None or not bool(self.found_inf):
            options = {name: group[name] for name in ("lr", "momentum", "weight_decay")}
            orthogonal_step(used, grads, means, **options)
        return True

    def _momentum(self, p: Tensor) -> Tensor:
        """Return the momentum of a weight, which lies in memory as the weight does."""
        found = self.state[p].get("momentum_buffer")
        if found is None or found.stride() != p.stride():
            laid = torch.zeros_like(p)
            found = laid if found is None else laid.copy_(found)
            self.state[p]["momentum_buffer"] = found
        return found

    def _unless_shut(self, new: Tensor, old: Tensor) -> Tensor:
        return new if self.found_inf is None else torch.where(self.found_inf > 0, old, new)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return UVᵀ of each matrix UΣVᵀ (n, rows, columns), to some 30 %.

    X ← aX + (bXXᵀ + c(XXᵀ)²)X takes singular values in (0, 1] to about [0.7, 1.2] in five steps.
    All factors are polynomials of the first XXᵀ, so that they are multiplied among themselves, as
    squares of the shorter side, and touch X once: the matrix of a convolution is nine times as long
    as wide. √‖XXᵀ‖, by which X is divided, is nearer to the largest singular value than ‖X‖, so
    that the small ones begin higher.
    """
    low = torch.bfloat16 if matrices.is_cuda else torch.float32
    x = matrices.to(low)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    gram = (x @ x.mT).float()
    size = gram.norm(dim=(1, 2), keepdim=True) + 1e-14
    gram = gram / size
    a, b, c = _COEFFICIENTS
    product: Tensor | None = None
    for step in range(_ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else product @ factor
        if step < _ITERATIONS - 1:
            gram = gram @ factor @ factor
    assert product is not None
    x = (product / size.sqrt()).to(low) @ x
    return x.mT if tall else x
