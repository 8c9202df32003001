"""Adam on a CPU that reads and writes every number once, clipping included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.nn.kernels.weights import adam_step, gradient_norm, one_pass_fits


class OnePassAdam(torch.optim.Adam):
    """torch's fused Adam and AdamW, with the same state, whose `measure` and `step` are a pass over
    memory each.

    Clipping by torch multiplies all gradients in memory; here the factor is applied while Adam
    reads them. Where the kernels do not fit (no compiler, other types or layouts of weights)
    torch's own operations do the same. A step whose `found_inf` is 1 changes nothing, as there.
    """

    found_inf: Tensor | None = None
    _scale = 1.0

    def measure(self, most: float) -> Tensor:
        """Return the norm of all gradients; the next step takes them shortened to `most`."""
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        there = [grad for grad in grads if grad is not None]
        if there and one_pass_fits(there):
            norm = gradient_norm(there)
        else:
            norm = float(torch.nn.utils.get_total_norm(there))
        self._scale = min(1.0, most / (norm + 1e-6)) if norm == norm else norm
        return torch.tensor(norm)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the weights by their gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, self._scale = self._scale, 1.0
        if self.found_inf is not None and bool(self.found_inf):
            return loss
        groups = [(group, *self._listed(group)) for group in self.param_groups]
        if all(one_pass_fits(*lists[:4]) for _, *lists in groups):
            for group, weights, grads, means, squares, steps in groups:
                self._pass(group, (weights, grads, means, squares), steps, scale)
        else:
            for p in (p for group in self.param_groups for p in group["params"]):
                if p.grad is not None:
                    p.grad.mul_(scale)
            super().step()
        return loss

    def _listed(self, group: dict[str, Any]) -> tuple[list[Tensor], ...]:
        """Return weights, gradients, moments and counters of a group, made where missing."""
        lists: tuple[list[Tensor], ...] = ([], [], [], [], [], [])
        self._init_group(group, *lists)
        weights, grads, means, squares, _, steps = lists
        return weights, grads, means, squares, steps

    def _pass(
        self,
        group: dict[str, Any],
        lists: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]],
        steps: list[Tensor],
        scale: float,
    ) -> None:
        if not steps:
            return
        torch._foreach_add_(steps, 1)
        adam_step(
            *lists,
            torch.stack(steps).tolist(),
            scale=scale,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=group["decoupled_weight_decay"],
        )
