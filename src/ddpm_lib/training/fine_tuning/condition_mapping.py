"""Weights of conditions of the data in a network that takes others than the one it begins with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.nn.text_encoders import same_encoder
from ddpm_lib.training.fine_tuning.network_changes import Described

_BIAS = "time_embedding.linear2.bias"
_ANEW = ("layers.2.", "null", "embedding.")
"""What of a new condition begins at 0, so that it adds nothing."""


def condition_channels(described: Described) -> dict[str, int]:
    """Return the input channels of masks and images among the conditions, in order.

    A condition of another size is another one: its name holds the number.
    """
    found = {}
    for name, entry in _table(described).items():
        count = entry.get("classes") if entry["kind"] == "mask" else entry.get("channels")
        if entry["kind"] in ("mask", "image") and isinstance(count, int):
            found[f"{name} {count}"] = count
    return found


def map_data_conditions(
    new: dict[str, Tensor],
    template: Mapping[str, Tensor],
    there: Described,
    here: Described,
    say: Callable[[str], None],
) -> None:
    """Keep the weights of conditions that both networks take, and add and take away others.

    Args:
        new: The weights, which are changed.
        template: Those of the network that is to begin, for what is new.
        there: The network that was trained.
        here: The network that is to begin.
        say: Gets a line for each that is new or goes.
    """
    before, now = _table(there), _table(here)
    for name in dict.fromkeys([*before, *now]):
        prefix = f"conditioners.{name}."
        own = {k: v for k, v in new.items() if k.startswith(prefix)}
        wanted = {k: v for k, v in template.items() if k.startswith(prefix)}
        same = {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in wanted.items()}
        kinds = [table[name]["kind"] for table in (before, now) if name in table]
        if len(kinds) == 2 and same and kinds[0] == kinds[1] and _alike(before[name], now[name]):
            continue
        for key in own:
            del new[key]
        if name in before and f"{prefix}null" in own:
            new[_BIAS] = new[_BIAS] + own[f"{prefix}null"]
        elif name in before and f"{prefix}embedding.weight" in own:
            new[_BIAS] = new[_BIAS] + own[f"{prefix}embedding.weight"][-1]
        for key, tensor in wanted.items():
            fresh = key.removeprefix(prefix).startswith(_ANEW)
            new[key] = torch.zeros_like(tensor) if fresh else tensor
        if name in now:
            say(f"The condition {name} is new: what it adds begins at 0.")
        else:
            say(f"The condition {name} goes: the network begins as for images without it.")


def _table(described: Described) -> Mapping[str, Mapping[str, Any]]:
    table: Mapping[str, Mapping[str, Any]] = described.option("conditions") or {}
    return table


def _alike(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether weights mean the same for both: what is measured or hidden may differ."""
    names = ("names", "classes", "channels", "size", "factor", "period")
    same = all(before.get(name) == now.get(name) for name in names)
    return same and same_encoder(before.get("encoder"), now.get("encoder"))
