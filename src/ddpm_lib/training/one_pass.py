"""Adam on a CPU that reads and writes every number once, clipping included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm_lib.nn.kernels.weight_passes import adam_step, gradient_norm, one_pass_fits
from ddpm_lib.training.without_dynamo import WithoutDynamo


class _Lists(NamedTuple):
    weights: list[Tensor]
    grads: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]


class KeptAdam(WithoutDynamo, torch.optim.Adam):
    """torch's Adam and AdamW with the same state, which looks for the moments once, not at every
    step: of some hundred weights that is a millisecond in which a GPU waits.
    """

    def _init_group(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        grads: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        largest: list[Tensor],
        steps: list[Tensor],
    ) -> bool:
        known: dict[int, _Lists] = self.__dict__.setdefault("_known", {})
        kept, now = known.get(id(group)), [p.grad for p in group["params"]]
        if kept is None or not self._still(kept, group) or any(grad is None for grad in now):
            lists = (weights, grads, means, squares, largest, steps)
            result = super()._init_group(group, *lists)
            if len(weights) == len(now) > 0 and not group["amsgrad"] and not result:
                known[id(group)] = _Lists(*map(list, (weights, (), means, squares, steps)))
            return bool(result)
        weights += kept.weights
        grads += now
        means += kept.means
        squares += kept.squares
        steps += kept.steps
        return False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, and let go of the moments that it replaces."""
        self.__dict__.pop("_known", None)
        super().load_state_dict(state_dict)

    def _still(self, kept: _Lists, group: dict[str, Any]) -> bool:
        """Say whether lists are those of a group: loading a state makes other moments."""
        params = group["params"]
        alike = len(params) == len(kept.weights) and params[0] is kept.weights[0]
        return alike and self.state[params[0]].get("exp_avg") is kept.means[0]


class OnePassAdam(KeptAdam):
    """torch's fused Adam and AdamW, with the same state, whose `measure` and `step` are a pass over
    memory each.

    Clipping by torch multiplies all gradients in memory; here the factor is applied while Adam
    reads them. Where the kernels do not fit (no compiler, other types or layouts of weights)
    torch's own operations do the same. A step whose `found_inf` is 1 changes nothing, as there.
    """

    found_inf: Tensor | None = None
    narrowed: Mapping[int, Tensor] = MappingProxyType({})
    """Copies of weights in bfloat16 by the weights' id, which the kernel writes too."""
    has_narrowed = False
    """Whether they are what the weights are after the last step."""
    _scale = 1.0

    def measure(self, most: float) -> Tensor:
        """Return the norm of all gradients; the next step takes them shortened to `most`."""
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        there = [grad for grad in grads if grad is not None]
        if there and one_pass_fits(grads=there):
            norm = gradient_norm(there)
        else:
            norm = float(torch.nn.utils.get_total_norm(there))
        self._scale = min(1.0, most / (norm + 1e-6)) if norm == norm else norm
        return torch.tensor(norm)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the weights by their gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, self._scale = self._scale, 1.0
        self.has_narrowed = False
        if self.found_inf is not None and bool(self.found_inf):
            return loss
        found = [self._listed(group) for group in self.param_groups]
        if all(one_pass_fits(x.weights, x.means, x.squares, grads=x.grads) for x in found):
            for group, lists in zip(self.param_groups, found):
                self._pass(group, lists, scale)
            self.has_narrowed = True
        else:
            for p in (p for group in self.param_groups for p in group["params"]):
                if p.grad is not None:
                    grad, p.grad_dtype = p.grad, None
                    p.grad = grad.to(p.dtype).mul_(scale)
            super().step()
        return loss

    def _listed(self, group: dict[str, Any]) -> _Lists:
        """Return weights, gradients, moments and counters of a group, made where missing."""
        weights, grads, means, squares, steps = lists = _Lists([], [], [], [], [])
        self._init_group(group, weights, grads, means, squares, [], steps)
        return lists

    def _pass(self, group: dict[str, Any], lists: _Lists, scale: float) -> None:
        if not lists.steps:
            return
        torch._foreach_add_(lists.steps, 1)
        adam_step(
            *lists[:4],
            torch.stack(lists.steps).tolist(),
            scale=scale,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=group["decoupled_weight_decay"],
            narrowed=[self.narrowed.get(id(weight)) for weight in lists.weights],
        )
