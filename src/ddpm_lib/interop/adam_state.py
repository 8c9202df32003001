"""The state of torch's Adam, which numbers its parameters, by the names of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
Rename = Callable[[dict[str, Tensor], str], dict[str, Tensor]]
"""Tensors by their names and words for where they lie → tensors by ours."""


def adam_tensors(
    state: Mapping[str, Any], names: Sequence[str], rename: Rename, where: str
) -> dict[str, Tensor]:
    """Return Adam's moments and steps as `<our parameter>|<entry>`.

    Args:
        state: What `torch.optim.Adam.state_dict()` returned.
        names: Their names of all parameters, frozen ones included, in the order of
            `model.parameters()`.
        rename: Brings tensors under our names; it is called for each moment of all parameters that
            have one.
        where: The file, for messages.

    Returns:
        The tensors; none where no step was done.

    Raises:
        CheckpointError: If the state is of another network or another optimizer.
    """
    entries = _by_name(state, names, where)
    if not entries:
        return {}
    other = sorted({key for entry in entries.values() for key in entry} - {"step", *MOMENTS})
    lacking = sorted({key for entry in entries.values() for key in MOMENTS if key not in entry})
    if other or lacking:
        said = [*(f"left over: {key}" for key in other), *(f"missing: {key}" for key in lacking)]
        raise CheckpointError(f"The optimizer in {where} is not Adam: {'; '.join(said)}.")
    step = torch.tensor(float(adam_step(state)))
    found: dict[str, Tensor] = {}
    for moment in MOMENTS:
        theirs = {name: entry[moment] for name, entry in entries.items()}
        ours = rename(theirs, f"the {moment} of {where}")
        found |= {f"{name}|{moment}": tensor for name, tensor in ours.items()}
        found |= {f"{name}|step": step.clone() for name in ours}
    return found


def adam_step(state: Mapping[str, Any]) -> int:
    """Return the number of steps that Adam has done; 0 for none."""
    return max((int(entry.get("step", 0)) for entry in state["state"].values()), default=0)


def adam_options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return our training options for what a state dict of Adam says of its first group.

    The learning rate is that which a scheduler started from, where there was one.
    """
    group = state["param_groups"][0]
    rate = group.get("initial_lr", group.get("lr"))
    options = {
        "optimizer": "adam",
        "learning_rate": None if rate is None else float(rate),
        "adam_betas": tuple(float(beta) for beta in group["betas"]) if "betas" in group else None,
        "adam_eps": float(group["eps"]) if "eps" in group else None,
        "weight_decay": float(group["weight_decay"]) if "weight_decay" in group else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def is_adam_state(value: Any) -> bool:
    """Whether a value has the form of an optimizer's state dict."""
    return (
        isinstance(value, dict)
        and set(value) == {"state", "param_groups"}
        and isinstance(value["state"], dict)
        and all(isinstance(entry, dict) for entry in value["state"].values())
        and isinstance(value["param_groups"], list)
        and bool(value["param_groups"])
        and all(isinstance(group, dict) for group in value["param_groups"])
    )


def _by_name(
    state: Mapping[str, Any], names: Sequence[str], where: str
) -> dict[str, dict[str, Any]]:
    numbers = [n for group in state["param_groups"] for n in group.get("params", [])]
    unknown = [n for n in state["state"] if n not in numbers]
    if len(numbers) != len(names) or unknown:
        raise CheckpointError(
            f"The optimizer in {where} is of another network: it has {len(numbers)} parameters, the"
            f" weights are {len(names)}" + (f"; left over: {unknown[:5]}." if unknown else ".")
        )
    by_number = dict(zip(numbers, names, strict=True))
    return {by_number[number]: entry for number, entry in state["state"].items()}
