"""Adam's moments in the optNNNNNN.pt of improved-diffusion and guided-diffusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.interop.imported import Weights
from ddpm_lib.interop.openai_files import Files

Rename = Callable[[Mapping[str, Tensor]], Weights]
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Moments:
    """An optimizer in our terms.

    Attributes:
        tensors: `<parameter>|<entry>` for step, exp_avg and exp_avg_sq.
        step: Updates done, None where there is no optimizer.
        training: Its settings as options of training.
    """

    tensors: Weights = field(default_factory=dict)
    step: int | None = None
    training: dict[str, Any] = field(default_factory=dict)


def read_moments(files: Files, rename: Rename, notes: list[str]) -> Moments:
    """Bring the optimizer's state under our names, by the order of the parameters.

    A file that was trained in half precision has one flat vector of all parameters (improved-
    diffusion), or one of the vectors and one of the matrices (guided-diffusion).

    Args:
        files: The files of one step.
        rename: Brings tensors by their names under ours.
        notes: Gets a note for what cannot be carried over.
    """
    if files.optimizer is None:
        return Moments()
    names = {name: tensor.shape for name, tensor in files.any_weights.items()}
    state, groups = files.optimizer["state"], files.optimizer["param_groups"]
    entries = [state[key] for key in sorted(state)] if isinstance(state, Mapping) else []
    found = _by_name(entries, names)
    if found is None:
        notes.append(
            "Adam's moments are not carried over: they are not those of this network's parameters."
        )
        return Moments()
    step = int(entries[0]["step"])
    tensors: Weights = {}
    for moment in _MOMENTS:
        for name, tensor in rename(found[moment]).items():
            tensors[f"{name}|{moment}"] = tensor
            tensors[f"{name}|step"] = torch.tensor(float(step))
    settings = _settings(groups)
    if settings.get("weight_decay"):
        notes.append("Their weight decay also shrank norms and biases, which ours leaves out.")
    return Moments(tensors, step, settings)


def _by_name(
    entries: Sequence[Any], shapes: Mapping[str, torch.Size]
) -> dict[str, dict[str, Tensor]] | None:
    """Return both moments by the names of the parameters, None if they are of other parameters."""
    wanted = {"step", *_MOMENTS}
    if not entries or not all(isinstance(e, Mapping) and wanted <= e.keys() for e in entries):
        return None
    result = {}
    for moment in _MOMENTS:
        values = [entry[moment] for entry in entries]
        if not all(isinstance(value, Tensor) for value in values):
            return None
        tensors = _split(values, shapes)
        if tensors is None:
            return None
        result[moment] = tensors
    return result


def _split(values: list[Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor] | None:
    """Share tensors out to the parameters, in their order."""
    if [value.shape for value in values] == list(shapes.values()):
        return {name: value.float() for name, value in zip(shapes, values, strict=True)}
    names = [list(shapes)]
    if len(values) == 2:
        names = [
            [name for name, shape in shapes.items() if len(shape) <= 1],
            [name for name, shape in shapes.items() if len(shape) > 1],
        ]
    sizes = [[shapes[name].numel() for name in group] for group in names]
    if [value.numel() for value in values] != [sum(size) for size in sizes]:
        return None
    found = {
        name: part.view(shapes[name]).float()
        for value, group, size in zip(values, names, sizes, strict=True)
        for name, part in zip(group, value.flatten().split(size), strict=True)
    }
    return {name: found[name] for name in shapes}


def _settings(groups: Any) -> dict[str, Any]:
    """Return the optimizer's settings as options of training."""
    group = groups[0] if isinstance(groups, Sequence) and groups else {}
    known = {"weight_decay": "weight_decay", "betas": "adam_betas", "eps": "adam_eps"}
    settings = {ours: group[theirs] for theirs, ours in known.items() if theirs in group}
    rate = group.get("initial_lr", group.get("lr"))
    if isinstance(rate, float) and rate > 0:
        settings["learning_rate"] = rate
    return {"optimizer": "adamw", **settings}
