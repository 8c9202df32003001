"""What a network and process have in common with those whose weights they begin with: what differs,
what of that can be mapped, and what is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ddpm_lib.core.text import printable
from ddpm_lib.nn import NETWORKS
from ddpm_lib.nn import _checks as checks
from ddpm_lib.runs.state import differences

MAPPED = (
    "channels",
    "out_channels",
    "num_classes",
    "self_condition",
    "augment_dim",
    "low_res_factor",
    "low_res_max_noise",
    "conditions",
)
"""Arguments of `Unet` whose weights have a meaning for other values."""

_CAN_DIFFER = {"Unet": MAPPED, "MLP": ("num_classes",)}

_NO_WEIGHTS = ("dropout", "class_drop_prob", "low_res_drop_prob", "gradient_checkpointing")
"""Arguments of networks that no weight depends on."""

_FOLLOW = ("attention_levels", "groups", "heads", "heads_up", "time_dim")
"""Arguments whose defaults follow from others."""

_LEVELS = ("timesteps", "schedule", "schedule_options")
_PREDICTED = ("parametrization", "parametrization_options")


@dataclass(frozen=True, kw_only=True)
class Described:
    """A network and its process by their arguments.

    Attributes:
        network: Class of the network.
        config: Its arguments, None where only Python can build it.
        process: Arguments of `GaussianDiffusion`, None for a network without a process.
    """

    network: str
    config: dict[str, Any] | None
    process: dict[str, Any] | None

    def option(self, name: str, default: Any = None) -> Any:
        """Return an argument of the network as it takes effect."""
        return effective(self.network, self.config or {}).get(name, default)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return int(self.option("channels", 0))

    @property
    def outputs(self) -> int:
        """Outputs per channel: 2 with a learned variance."""
        return int(self.option("out_channels", 0)) // max(1, self.channels)


@dataclass
class Changes:
    """What differs, in lines.

    Attributes:
        refused: Why these weights do not fit, a line each; empty if they do.
        notes: What is another and needs no mapping of weights.
    """

    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def effective(network: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network with its defaults filled in, and those that stand for
    others replaced.

    >>> effective("Unet", {"dim": 8})["time_dim"]
    32
    """
    full = _filled(network, config)
    if full.get("out_channels") is None and "channels" in full:
        full["out_channels"] = full["channels"]
    if network != "Unet":
        return full
    mults = full["dim_mults"]
    widths = [full["dim"] * mult for mult in mults]
    full["attention_levels"] = list(
        checks.resolve_attention_levels(full["attention_levels"], len(mults))
    )
    full["groups"] = checks.resolve_groups(full["groups"], [full["dim"], *widths])
    full["time_dim"] = 4 * full["dim"] if full["time_dim"] is None else full["time_dim"]
    full["heads_up"] = full["heads"] if full["heads_up"] is None else full["heads_up"]
    if full["head_dim"] is not None:  # replaces them
        full["heads"] = full["heads_up"] = None
    if full["low_res_factor"] is None:
        full["low_res_max_noise"] = full["low_res_drop_prob"] = 0.0
    return full


def _filled(network: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network with its defaults."""
    if network not in NETWORKS:
        return dict(config)
    known = inspect.signature(NETWORKS[network].__init__).parameters.values()
    defaults = {p.name: p.default for p in known if p.default is not inspect.Parameter.empty}
    return {**defaults, **config}


def compare(there: Described, here: Described, source: str) -> Changes:
    """Find out whether weights of one network mean something in another.

    Args:
        there: What the weights were trained in.
        here: What they are to be trained in.
        source: The short name of where they lie, for the lines.
    """
    changes = Changes()
    _compare_networks(there, here, source, changes)
    if not changes.refused:
        _compare_inputs(there, here, source, changes)
        _compare_processes(there, here, source, changes)
    return changes


def _compare_networks(there: Described, here: Described, source: str, changes: Changes) -> None:
    if there.network != here.network:
        changes.refused.append(f"network: {there.network} in {source}, {here.network} here")
        return
    before, now = (effective(d.network, d.config or {}) for d in (there, here))
    given = [_filled(d.network, d.config or {}) for d in (there, here)]
    may_differ = {*_NO_WEIGHTS, *_CAN_DIFFER.get(there.network, ())}
    for change in differences(before, now):
        told = change.worded(f"in {source}", "here")
        if change.path in _FOLLOW and given[0][change.path] == given[1][change.path]:
            continue  # what it follows is named
        if change.path in _NO_WEIGHTS:
            changes.notes.append(f"{told}: no weight depends on it")
        elif change.path == "time_scale" and _steps_times_scale_agree(there, here):
            changes.notes.append(f"{told}, which fits the other number of levels")
        elif change.path.partition(".")[0] not in may_differ:
            changes.refused.append(told)


def _compare_inputs(there: Described, here: Described, source: str, changes: Changes) -> None:
    """Compare what can be mapped for some values only."""
    if there.network != "Unet":
        return
    pair = (there.channels, here.channels)
    if pair[0] != pair[1] and not {*pair} <= {1, 3, 4}:
        changes.refused.append(
            f"channels: {pair[0]} in {source}, {pair[1]} here; only 1 (grey), 3 (RGB) and 4 (RGB"
            " with alpha) have a meaning for each other"
        )
    for described, where in ((there, f"in {source}"), (here, "here")):
        if described.option("out_channels") % described.channels:
            changes.refused.append(
                f"out_channels: {described.option('out_channels')} {where} is no multiple of its"
                f" {described.channels} channels"
            )
    if there.option("low_res_factor") is None:
        return
    sees = "its network has never seen noise without the small image"
    if here.option("low_res_factor") is None and not there.option("low_res_drop_prob"):
        changes.refused.append(
            f"low_res_factor: {there.option('low_res_factor')} in {source}, None here; {sees}"
        )


def _compare_processes(there: Described, here: Described, source: str, changes: Changes) -> None:
    old, new = there.process, here.process
    if new is None:
        return
    if old is None:
        changes.notes.append(
            f"{source} holds no process: its network is taken to predict"
            f" {new['parametrization']}, at levels numbered as here"
        )
        return
    predicted = _pick(old, new, _PREDICTED)
    told = ", ".join(d.worded(f"in {source}", "here") for d in predicted)
    if predicted and old.get("parametrization") == new["parametrization"] == "x0":
        changes.notes.append(f"{told}: how much of x_t the answer is at low noise")
    elif predicted:
        changes.refused.append(
            f"{told}; the outputs of the one are no outputs of the other, and what the network has"
            f" learned is how to predict {old['parametrization']}"
        )
    if not _steps_times_scale_agree(there, here):
        changes.refused.append(_about_levels(there, here, source))
    elif moved := _pick(old, new, _LEVELS):
        told = ", ".join(d.worded(f"in {source}", "here") for d in moved)
        changes.notes.append(
            f"{told}: the network knows a level by its number, and learns anew how noisy each is"
        )
    if "image_size" in old and list(old["image_size"]) != list(new["image_size"]):
        changes.notes.append(_about_size(old, new, source))
    if old.get("learn_uncertainty") and new.get("learn_uncertainty"):
        changes.notes.append("The learned uncertainty begins anew.")
    said = {*_PREDICTED, *_LEVELS, "image_size", "channels", "variance"}
    for change in _pick(old, new, [name for name in new if name not in said]):
        changes.notes.append(f"{change.worded(f'in {source}', 'here')}: the loss or the sampling")


def _pick(old: Mapping[str, Any], new: Mapping[str, Any], names: Any) -> list[Any]:
    """List where entries differ that both say; None is what a default made of it."""
    both = [name for name in names if old.get(name) is not None and name in new]
    return differences({k: old[k] or None for k in both}, {k: new[k] or None for k in both})


def _steps_times_scale_agree(there: Described, here: Described) -> bool:
    """Say whether the noisiest level has one place among the times that the networks are told."""
    if there.process is None or here.process is None:
        return True
    ends = [
        d.process.get("timesteps", 1000) * d.option("time_scale", 1.0)
        for d in (there, here)
        if d.process is not None
    ]
    return abs(float(ends[0]) / float(ends[1]) - 1) < 0.01


def _about_levels(there: Described, here: Described, source: str) -> str:
    before, now = ((d.process or {}).get("timesteps", 1000) for d in (there, here))
    told = f"timesteps: {before} in {source}, {now} here; the network knows a level by its number"
    scale = there.option("time_scale")
    if scale is None:
        return f"{told}. timesteps={before} fits"
    return f"{told}. timesteps={before} fits, or a Unet with time_scale={scale * before / now:g}"


def _about_size(old: Mapping[str, Any], new: Mapping[str, Any], source: str) -> str:
    sizes = ["×".join(map(str, p["image_size"])) for p in (old, new)]
    line = f"image_size: {sizes[0]} in {source}, {sizes[1]} here, with the same weights"
    if max(new["image_size"]) > max(old["image_size"]):
        line += (
            ". The same noise hides less of a larger image: schedule shifted_cosine makes up for"
            " that (Hoogeboom et al. 2023)"
        )
    return line


def refusal(changes: Changes, source: str) -> str:
    """Word why weights are refused, listing what differs."""
    lines = "".join(f"\n  {printable(line)[:400]}" for line in changes.refused)
    return (
        f"The weights of {source} do not fit this network and process:{lines}\nUse the values of"
        f" {source}, or train from the beginning."
    )
