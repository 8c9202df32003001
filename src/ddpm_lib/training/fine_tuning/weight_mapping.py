"""Weights of one network as first weights of another: input and output channels, classes and
conditions.

What is new begins so that it adds nothing, and what goes leaves behind what it adds where it is
absent: but for channels, the network begins as the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.text import printable
from ddpm_lib.nn import LowResNoise
from ddpm_lib.training.fine_tuning.condition_mapping import (
    condition_channels,
    map_data_conditions,
)
from ddpm_lib.training.fine_tuning.network_changes import Described

Weights = dict[str, Tensor]
_CLASSES = "conditioners.class_label.embedding.weight"
_AUGMENT = "conditioners.augment.linear.weight"
_NOISE = "conditioners.low_res_noise."
_BIAS = "time_embedding.linear2.bias"
_RGB = {"in": torch.ones(1, 3), "out": torch.full((1, 3), 1 / 3)}


def map_weights(
    weights: Mapping[str, Tensor],
    template: Mapping[str, Tensor],
    there: Described,
    here: Described,
    class_names: tuple[Sequence[str] | None, Sequence[str] | None],
    say: Callable[[str], None],
) -> Weights:
    """Return the weights with which a network begins.

    Nothing changes, to the bit, where the networks are the same.

    Args:
        weights: Those that were trained.
        template: Those that the network has now; parts that are new and add nothing by other
            weights are taken from them.
        there: The network that was trained.
        here: The network that is to be trained; `network_changes.compare` refuses nothing in it.
        class_names: Of the data of both, None where they have none.
        say: Gets a line for each thing that was mapped.
    """
    new = dict(weights)
    if there.network == "Unet":
        _map_channels(new, there, here, say)
        _map_conditions(new, template, there, here, say)
    _map_classes(new, there, here, class_names, say)
    return new


def channel_map(old: int, new: int, side: str) -> Tensor:
    """Return the matrix (new, old) that turns weights of image channels into others.

    RGB to grey: the input's weights are added, which leaves the response to a grey image as it is,
    and the output's averaged. Grey to RGB: a third of the input's weights for each colour, and the
    output three times. An alpha channel that is new begins at 0.

    >>> channel_map(1, 3, "in").sum(), channel_map(3, 1, "out").sum()
    (tensor(1.), tensor(1.))
    """
    if old == new:
        return torch.eye(old)
    to_rgb = torch.eye(3, 4) if old == 4 else torch.eye(3)
    if old == 1:
        to_rgb = torch.full((3, 1), 1 / 3) if side == "in" else torch.ones(3, 1)
    from_rgb = {1: _RGB[side], 3: torch.eye(3), 4: torch.eye(4, 3)}[new]
    return from_rgb @ to_rgb


def _inputs(described: Described) -> dict[str, int]:
    """Return the channels that the first convolution sees, by what they show, in order."""
    channels = described.channels
    shown = {"image": channels}
    if described.option("self_condition"):
        shown["self_cond"] = channels
    if described.option("low_res_factor") is not None:
        shown["low_res"] = channels
    return shown | condition_channels(described)


def _map_channels(
    new: Weights, there: Described, here: Described, say: Callable[[str], None]
) -> None:
    """Map conv_in and conv_out."""
    old_inputs, new_inputs = _inputs(there), _inputs(here)
    old, now = there.channels, here.channels
    if old_inputs != new_inputs:
        kernel = new["conv_in.weight"]
        pixels = kernel.shape[1] // sum(old_inputs.values())
        split = [count * pixels for count in old_inputs.values()]
        parts = dict(zip(old_inputs, kernel.split(split, dim=1)))
        made = []
        for name, count in new_inputs.items():
            if name in parts and name in condition_channels(here):
                made.append(parts[name])
            elif name in parts:
                made.append(_mixed(parts[name], channel_map(old, now, "in"), 1, pixels))
            else:
                shape = (kernel.shape[0], count * pixels, *kernel.shape[2:])
                made.append(kernel.new_zeros(shape))
        new["conv_in.weight"] = torch.cat(made, dim=1)
    if (old, there.outputs) != (now, here.outputs):
        mix = channel_map(old, now, "out")
        full = torch.zeros(here.outputs * now, there.outputs * old)
        for k in range(min(here.outputs, there.outputs)):
            full[k * now : (k + 1) * now, k * old : (k + 1) * old] = mix
        for name in ("conv_out.weight", "conv_out.bias"):
            pixels = new[name].shape[0] // (there.outputs * old)
            new[name] = _mixed(new[name], full, 0, pixels)
    _say_channels(there, here, say)


def _mixed(tensor: Tensor, matrix: Tensor, dim: int, pixels: int) -> Tensor:
    """Apply a matrix to the channels along a dimension, each of which holds the pixels of a
    patch.
    """
    channels = tensor.movedim(dim, 0).unflatten(0, (-1, pixels))
    mixed = torch.tensordot(matrix.to(tensor), channels, dims=1)
    return mixed.flatten(0, 1).movedim(0, dim).contiguous()


def _say_channels(there: Described, here: Described, say: Callable[[str], None]) -> None:
    old, now = there.channels, here.channels
    if old != now:
        how = {
            (3, 1): "the weights of the three colours are added for the input, averaged for the"
            " output",
            (1, 3): "a third of the input's weights for each colour, the output's for all three",
        }.get((old, now), "colours are kept, averaged or repeated; alpha begins at 0, or goes")
        say(f"channels {old} → {now}: {how}; the response to a grey image stays.")
    if there.outputs < here.outputs:
        say(
            "The variance is learned here and was fixed: its outputs begin at 0, halfway between"
            " the fixed ones."
        )
    elif there.outputs > here.outputs:
        say("The variance is fixed here and was learned: its outputs are left out.")


def _map_conditions(
    new: Weights,
    template: Mapping[str, Tensor],
    there: Described,
    here: Described,
    say: Callable[[str], None],
) -> None:
    """Add and take away the conditions besides the class."""
    before, now = there.option("self_condition"), here.option("self_condition")
    if now and not before:
        say("self_condition is new: its input channels begin at 0.")
    elif before and not now:
        say("self_condition goes: the network begins as if it were shown nothing.")
    before, now = there.option("augment_dim"), here.option("augment_dim")
    if before != now:
        new.pop(_AUGMENT, None)
        if now is not None:
            new[_AUGMENT] = torch.zeros_like(template[_AUGMENT])
            say("augment is a new condition: its weights begin at 0.")
        if before is not None:
            say(f"augment_dim {before} goes: the network begins as for images left alone.")
    before, now = there.option("low_res_factor"), here.option("low_res_factor")
    if before is None and now is not None:
        say("low_res is a new condition: its input channels begin at 0.")
    elif before is not None and now is None:
        say("low_res goes: the network begins as if it were shown no small image.")
    elif before != now:
        say(f"low_res_factor {before} → {now}, with the same weights.")
    _map_noise(new, template, there, here, say)
    map_data_conditions(new, template, there, here, say)


def _map_noise(
    new: Weights,
    template: Mapping[str, Tensor],
    there: Described,
    here: Described,
    say: Callable[[str], None],
) -> None:
    """Add or take away the condition that says how noisy the small image is."""
    before, now = there.option("low_res_max_noise"), here.option("low_res_max_noise")
    if before and not now:
        own = {k.removeprefix(_NOISE): new.pop(k) for k in list(new) if k.startswith(_NOISE)}
        drop = there.option("low_res_drop_prob")
        conditioner = LowResNoise(len(new[_BIAS]), before, drop)
        conditioner.load_state_dict(own)
        with torch.no_grad():
            gone = here.option("low_res_factor") is None
            level = torch.full((1,), 1.0 if gone else 0.0)
            new[_BIAS] = new[_BIAS] + conditioner.embed(level)[0]
        if not gone:
            say("low_res_noise goes: the network begins as for small images without noise.")
    elif now and not before:
        for name, tensor in template.items():
            if name.startswith(_NOISE):  # the second linear map at 0 adds nothing
                last = name.startswith(f"{_NOISE}embedding.linear2.")
                new[name] = torch.zeros_like(tensor) if last else tensor
        if there.option("low_res_factor") is not None:
            say("low_res_noise is a new condition: what it adds begins at 0.")
    elif before != now:
        say(f"low_res_max_noise {before:g} → {now:g}, with the same weights.")


def _map_classes(
    new: Weights,
    there: Described,
    here: Described,
    class_names: tuple[Sequence[str] | None, Sequence[str] | None],
    say: Callable[[str], None],
) -> None:
    """Map the rows of the class embedding; the last one is the null class."""
    before, now = there.option("num_classes"), here.option("num_classes")
    if now is None and before is None:
        return
    if before is None:
        new[_CLASSES] = new[_BIAS].new_zeros(now + 1, len(new[_BIAS]))
        say(f"{now} classes are new: their rows begin at 0, so that all begin as the one network.")
        return
    old_names, new_names = class_names
    if _CLASSES not in new:
        if list(old_names or ()) != list(new_names or ()):
            say("classes by number: a network of this kind has no rows to exchange.")
        return
    rows = new[_CLASSES]
    knows_null = there.option("class_drop_prob") > 0
    null = rows[-1] if knows_null else rows[:-1].mean(dim=0)
    which = "the null class" if knows_null else "the mean of all classes"
    if now is None:
        del new[_CLASSES]
        new[_BIAS] = new[_BIAS] + null
        say(f"{before} classes go: the network begins as for {which}.")
        return
    taken, line = rows_of(before, now, old_names, new_names)
    if taken == list(range(now)) and before == now and not line:
        if not knows_null and here.option("class_drop_prob") > 0:
            new[_CLASSES] = torch.cat([rows[:-1], null[None]])
            say("The null class is new: its row is the mean of all classes.")
        return
    made = [null if k is None else rows[k] for k in taken]
    new[_CLASSES] = torch.stack([*made, null])
    say(f"{line}; new rows are {which}." if None in taken else f"{line}.")


def rows_of(
    before: int, now: int, old_names: Sequence[str] | None, new_names: Sequence[str] | None
) -> tuple[list[int | None], str]:
    """Say which row of an embedding each class takes.

    Args:
        before: Number of classes that were trained.
        now: Number of classes.
        old_names: Names of the former, None where they have none.
        new_names: Names of the latter; fewer where the network has room for more classes.

    Returns:
        Row by class, None for a class that is new; and a line, empty where nothing changes.
    """
    if not old_names or not new_names:
        if before == now:
            line = "" if not old_names and not new_names else _BY_NUMBER
            return list(range(now)), line
        return [None] * now, (
            f"{before} classes in the source, {now} here, not named on both sides: none is known"
            " to be another"
        )
    if before == now and list(old_names) == list(new_names):
        return list(range(now)), ""
    place = {name: k for k, name in enumerate(old_names[:before])}
    taken = [place.get(name) for name in new_names[:now]] + [None] * (now - len(new_names))
    kept = [k for k in taken if k is not None]
    fresh = [name for name in new_names[:now] if name not in place]
    gone = [name for name in place if name not in set(new_names)]
    told = [f"classes by name: {len(kept)} of {now} are known"]
    told += [f"new: {_listed(fresh)}"] if fresh else []
    told += [f"left out: {_listed(gone)}"] if gone else []
    return taken, "; ".join(told)


_BY_NUMBER = "classes by number, as only one side names them"


def _listed(names: Sequence[Any]) -> str:
    shown = ", ".join(printable(name)[:40] for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
