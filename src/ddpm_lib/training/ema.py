"""Exponential moving averages of the weights by ema-pytorch, one per decay, kept on every rank."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.nn.kernels.weight_passes import follow, one_pass_fits

Slots = list[tuple[dict[str, Any], str]]
"""Where modules keep their tensors, and under which name: what lies there may be replaced."""


class WeightAverages:
    """Several EMAs of one network; the decay of each warms up as 1 - (1 + n)^-power, capped at its
    own value.

    Every update happens at every step (ema-pytorch's default of each tenth step makes the decay
    mean something else), in float32, and the counters live on the CPU so that reading them never
    waits for the device. The averages are functions of the step: resuming sets `set_step`.

    Args:
        model: The network to follow; it must be deep-copyable.
        decays: One or more decays in [0, 1).
        power: Exponent of the warm-up; 3/4 reaches 0.999 after 10,000 steps.
    """

    def __init__(self, model: nn.Module, decays: Sequence[float], power: float = 0.75) -> None:
        from ema_pytorch import EMA

        try:
            copies = [copy.deepcopy(model).requires_grad_(False) for _ in decays]
        except Exception as error:
            raise TypeError(
                f"The model cannot be deep-copied, which the EMA needs ({type(error).__name__}:"
                f" {error}). Remove lazy layers, hooks or open handles from it, or pass"
                " ema_decay=()."
            ) from error
        self.decays = tuple(decays)
        averages = [
            EMA(
                model,
                ema_model=shadow,
                beta=decay,
                update_after_step=0,
                update_every=1,
                inv_gamma=1.0,
                power=power,
                include_online_model=False,
                use_foreach=True,
            )
            for decay, shadow in zip(decays, copies)
        ]
        for average in averages:
            average.ema_model.eval()
            average.initted, average.step = average.initted.cpu(), average.step.cpu()
        self.averages: list[Any] = averages
        self._slots = _float_slots(model)
        self._shadows = [_float_slots(average.ema_model) for average in averages]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's weights after one optimizer step.

        ema-pytorch walks through all modules by name for that, which costs milliseconds per
        average; here it says how much to move, and the lists of tensors are kept.
        """
        now, shadows, weights = self.followed(), self.shadows(), self.next_weights()
        if one_pass_fits(now, *shadows):
            follow(now, shadows, weights)
            return
        for shadow, weight in zip(shadows, weights):
            torch._foreach_lerp_(shadow, now, weight)

    def followed(self) -> list[Tensor]:
        """Return the network's tensors that averages follow."""
        return _tensors(self._slots)

    def shadows(self) -> list[list[Tensor]]:
        """Return the tensors of each average, in the order of `followed`."""
        return [_tensors(slots) for slots in self._shadows]

    def first_tensors(self) -> list[Tensor]:
        """Return the first tensor of each average, by which one sees whether it was replaced."""
        return [kept[name] for (kept, name), *_ in self._shadows]

    def next_weights(self) -> list[float]:
        """Count an update, and return how far it moves each average to the network, in [0, 1]."""
        return [_next_weight(average) for average in self.averages]

    def set_step(self, step: int) -> None:
        """Set the counters to a number of updates done."""
        for average in self.averages:
            average.step = torch.tensor(step)
            average.initted = torch.tensor(step > 0)

    def network(self, decay: float | None = None) -> nn.Module:
        """Return the averaged network of a decay; default: the first."""
        if decay is None:
            return self.averages[0].ema_model
        if decay not in self.decays:
            raise ValueError(
                f"No EMA with decay {decay}. This run keeps: {', '.join(map(str, self.decays))}."
            )
        return self.averages[self.decays.index(decay)].ema_model

    def put_first(self, decay: float) -> None:
        """Make an average the one that `network` returns by default."""
        order = sorted(range(len(self.decays)), key=lambda k: self.decays[k] != decay)
        self.decays = tuple(self.decays[k] for k in order)
        self.averages = [self.averages[k] for k in order]
        self._shadows = [self._shadows[k] for k in order]

    def tensors(self) -> dict[str, Tensor]:
        """Return all averaged tensors under `<decay>/<name>`."""
        return {
            f"{decay}/{name}": tensor
            for decay, average in zip(self.decays, self.averages)
            for name, tensor in average.ema_model.state_dict().items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Load what `tensors` returned; a decay that was not kept before starts from the online
        weights.
        """
        for decay, average in zip(self.decays, self.averages):
            prefix = f"{decay}/"
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            average.ema_model.load_state_dict(own or average.model.state_dict())


def _float_slots(model: nn.Module) -> Slots:
    """Return where the parameters and buffers are that averages follow, each tensor once."""
    found: Slots = []
    seen: set[int] = set()
    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                if tensor is None or not tensor.is_floating_point() or id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                found.append((kept, name))
    return found


def _tensors(slots: Slots) -> list[Tensor]:
    return [kept[name] for kept, name in slots]


def _next_weight(average: Any) -> float:
    """Count an update of an ema-pytorch average, and return how far it moves to the weights."""
    average.step += 1
    if not average.initted:
        average.initted = torch.tensor(True)
        return 1.0
    return 1.0 - float(average.get_current_decay())
