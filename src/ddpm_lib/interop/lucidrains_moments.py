"""Adam's state in a checkpoint of denoising-diffusion-pytorch, by the order of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.interop.imported import Weights
from ddpm_lib.interop.lucidrains_network import CLASS_ROWS, NULL_ROW, to_our_names

_MOMENTS = ("exp_avg", "exp_avg_sq")
_SETTINGS = {"lr": "learning_rate", "betas": "adam_betas", "eps": "adam_eps"}


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
    if not isinstance(optimizer, Mapping) or not {"state", "param_groups"} <= set(optimizer):
        raise CheckpointError(f"{where}: the entry 'opt' is no state of an optimizer of torch.")
    groups, entries = optimizer["param_groups"], optimizer["state"]
    if len(groups) != 1 or list(groups[0]["params"]) != list(range(len(network))):
        raise CheckpointError(
            f"{where}: its optimizer is not that of this network, which has {len(network)}"
            " parameters in one group."
        )
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
            if entry[moment].shape != network[name].shape:
                raise CheckpointError(
                    f"{where}: the {moment} of {name} has shape {tuple(entry[moment].shape)}, the"
                    f" weight {tuple(network[name].shape)}."
                )
            by_moment[moment][name] = entry[moment]
        steps.add(float(entry["step"]))
    if len(steps) > 1:
        raise CheckpointError(f"{where}: its optimizer counts several steps: {sorted(steps)}.")
    tensors: Weights = {}
    for moment, found in by_moment.items():
        for name, tensor in to_our_names(_with_null_row(found, network)).items():
            tensors[f"{name}|{moment}"] = tensor
            tensors[f"{name}|step"] = torch.tensor(steps.copy().pop())
    return Moments(tensors, _settings(groups[0], notes))


def _with_null_row(moments: dict[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the moments of the null class, 0, where no label was ever hidden."""
    if CLASS_ROWS in moments and NULL_ROW in network and NULL_ROW not in moments:
        return moments | {NULL_ROW: torch.zeros_like(network[NULL_ROW])}
    return moments


def _settings(group: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the optimizer's settings as options of training; its rate has no warm-up."""
    if group.get("amsgrad"):
        notes.append("Adam was used with amsgrad, which is not carried over.")
    settings = {ours: group[theirs] for theirs, ours in _SETTINGS.items() if theirs in group}
    settings["adam_betas"] = tuple(settings.get("adam_betas", (0.9, 0.99)))
    decay = float(group.get("weight_decay", 0.0))
    return {"optimizer": "adam", "weight_decay": decay, "warmup_steps": 0, **settings}
