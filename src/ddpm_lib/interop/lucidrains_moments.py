"""Adam's state in a checkpoint of denoising-diffusion-pytorch, by the order of the parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.interop.imported import Weights
from ddpm_lib.interop.lucidrains_network import (
    CLASS_ROWS,
    NULL_ROW,
    refuse_odd_values,
    to_our_names,
)

_MOMENTS = ("exp_avg", "exp_avg_sq")
_SETTINGS = {"lr": "learning_rate", "eps": "adam_eps", "weight_decay": "weight_decay"}


@dataclass(frozen=True)
class Moments:
    """An optimizer in our terms.

    Attributes:
        tensors: `<parameter>|<entry>` for step, exp_avg and exp_avg_sq.
        training: Its settings as options of training.
    """

    tensors: Weights = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def read_moments(
    optimizer: object, network: Mapping[str, Tensor], where: str, notes: list[str]
) -> Moments:
    """Bring the state of torch's Adam under our names.

    Args:
        optimizer: Its state dict, None where there is none.
        network: The network's tensors by their own names, in the order of its parameters.
        where: The file, for messages.
        notes: Gets a note for what cannot be carried over.

    Raises:
        CheckpointError: If it is of another network.
    """
    if optimizer is None:
        return Moments()
    group, entries = _structure(optimizer, network, where)
    names = list(network)
    if any(not set(_MOMENTS) < set(entry) for entry in entries.values()):
        notes.append(
            "The optimizer is not Adam: its state is not carried over, training on starts afresh."
        )
        return Moments()
    by_moment: dict[str, dict[str, Tensor]] = {moment: {} for moment in _MOMENTS}
    steps = set()
    for index, entry in entries.items():
        name = names[index]
        for moment in _MOMENTS:
            refuse_odd_values({f"{moment} of {name}": entry[moment]}, where)
            if entry[moment].shape != network[name].shape:
                raise CheckpointError(
                    f"{where}: the {moment} of {name} has shape {tuple(entry[moment].shape)}, the"
                    f" weight {tuple(network[name].shape)}."
                )
            by_moment[moment][name] = entry[moment]
        steps.add(_number(entry.get("step"), f"the step of {name}", where))
    if len(steps) > 1:
        raise CheckpointError(f"{where}: its optimizer counts several steps: {sorted(steps)}.")
    tensors: Weights = {}
    for moment, found in by_moment.items():
        for name, tensor in to_our_names(_with_null_row(found, network)).items():
            tensors[f"{name}|{moment}"] = tensor
            tensors[f"{name}|step"] = torch.tensor(steps.copy().pop())
    return Moments(tensors, _settings(group, notes, where))


def _structure(
    optimizer: object, network: Mapping[str, Tensor], where: str
) -> tuple[Mapping[str, Any], Mapping[int, Mapping[str, Any]]]:
    """Return the settings and the states by number of the parameter, after a look at their form."""
    damaged = CheckpointError(f"{where}: the entry 'opt' is no state of an optimizer of torch.")
    if not isinstance(optimizer, Mapping):
        raise damaged
    groups, entries = optimizer.get("param_groups"), optimizer.get("state")
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise damaged
    if not isinstance(entries, Mapping):
        raise damaged
    numbers = [group.get("params") for group in groups]
    if numbers != [list(range(len(network)))] or not set(entries) <= set(range(len(network))):
        raise CheckpointError(
            f"{where}: its optimizer is not that of this network, which has {len(network)}"
            " parameters in one group."
        )
    if not all(isinstance(entry, Mapping) for entry in entries.values()):
        raise damaged
    return groups[0], entries


def _number(value: object, what: str, where: str) -> float:
    """Return a number, or a tensor of one, as a number.

    Raises:
        CheckpointError: If it is none, or not finite.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and value.layout == torch.strided:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{where}: {what} in its optimizer is no number.")
    return float(value)


def _with_null_row(moments: dict[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the moments of the null class, 0, where no label was ever hidden."""
    if CLASS_ROWS in moments and NULL_ROW in network and NULL_ROW not in moments:
        return moments | {NULL_ROW: torch.zeros_like(network[NULL_ROW])}
    return moments


def _settings(group: Mapping[str, Any], notes: list[str], where: str) -> dict[str, Any]:
    """Return the optimizer's settings as options of training; its rate has no warm-up."""
    if group.get("amsgrad") is True:
        notes.append("Adam was used with amsgrad, which is not carried over.")
    settings: dict[str, Any] = {
        ours: _number(group[theirs], theirs, where)
        for theirs, ours in _SETTINGS.items()
        if theirs in group
    }
    betas = group.get("betas", (0.9, 0.99))
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise CheckpointError(f"{where}: betas in its optimizer are no two numbers.")
    settings["adam_betas"] = tuple(_number(beta, "betas", where) for beta in betas)
    return {"optimizer": "adam", "warmup_steps": 0, **settings}
