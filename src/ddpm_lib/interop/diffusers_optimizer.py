"""Adam's moments in the checkpoints that diffusers' training scripts write through accelerate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.interop.diffusers_unet import in_order
from ddpm_lib.interop.imported import Opened, Weights

_MOMENTS = ("exp_avg", "exp_avg_sq")
_NOT_CARRIED = "Adam's moments (optimizer.bin) are not carried over: {}."
_SETTINGS = {"weight_decay": "weight_decay", "betas": "adam_betas", "eps": "adam_eps"}


def read_optimizer(
    opened: Opened, rename: Callable[[Mapping[str, Tensor]], Weights], notes: list[str]
) -> tuple[Weights, int, dict[str, Any]]:
    """Bring the state of optimizer.bin under our names, by the order of the network's parameters.

    Args:
        opened: A folder with `unet/` and optimizer.bin.
        rename: Brings tensors of the network by their names under ours.
        notes: Gets a line where it cannot be carried over.

    Returns:
        `<parameter>|<entry>` for step, exp_avg and exp_avg_sq; the steps done; the settings as
        options of training. Empty where there is none.
    """
    saved = opened.content.get("optimizer")
    unet = next((v for k, v in opened.content.items() if k.startswith("unet/")), None)
    if not isinstance(saved, Mapping) or not isinstance(unet, Mapping):
        return {}, 0, {}
    state, groups = saved.get("state"), saved.get("param_groups")
    names = in_order(list(unet))
    entries = _entries(state, names)
    if entries is None:
        notes.append(_NOT_CARRIED.format("they are not of AdamW, or of other parameters"))
        return {}, 0, {}
    if any(entry["exp_avg"].shape != unet[name].shape for name, entry in entries.items()):
        notes.append(_NOT_CARRIED.format("their shapes are not those of the weights"))
        return {}, 0, {}
    step = int(next(iter(entries.values()))["step"])
    tensors: Weights = {}
    for moment in _MOMENTS:
        renamed = rename({name: entry[moment].float() for name, entry in entries.items()})
        for name, tensor in renamed.items():
            tensors[f"{name}|{moment}"] = tensor
            tensors[f"{name}|step"] = torch.tensor(float(step))
    return tensors, step, _settings(groups)


def _entries(state: Any, names: list[str]) -> dict[str, dict[str, Tensor]] | None:
    """Return the entries of an optimizer's state by the names of the parameters."""
    if not isinstance(state, Mapping) or sorted(state) != list(range(len(names))):
        return None
    wanted = {"step", *_MOMENTS}
    found = {name: state[i] for i, name in enumerate(names)}
    complete = all(isinstance(e, Mapping) and wanted <= e.keys() for e in found.values())
    return found if complete and found else None


def _settings(groups: Any) -> dict[str, Any]:
    group = groups[0] if isinstance(groups, list) and groups else {}
    settings = {ours: group[theirs] for theirs, ours in _SETTINGS.items() if theirs in group}
    rate = group.get("initial_lr", group.get("lr"))
    if isinstance(rate, float) and rate > 0:
        settings["learning_rate"] = rate
    return {"optimizer": "adamw", **settings}
