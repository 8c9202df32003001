"""The arguments of diffusers' UNet2DModel as those of our `Unet`, and the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import short
from ddpm_lib.interop.given import refuse_given

OURS = "ddpm_lib.json"
"""The file beside theirs in which an export keeps what diffusers has no entry for."""
ENTRIES: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""The arguments of UNet2DModel, with the defaults that configs may leave out."""

_BLOCKS = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, "downsample_type"),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, "upsample_type"),
    "ResnetUpsampleBlock2D": (False, "resnet"),
}
"""Whether a block has attention, and how it changes the resolution, or the entry that says it."""
_RESAMPLE = {"conv": "conv", "resnet": "resblock"}
_ALL: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "class_embed_type": (None,),
    "time_embedding_type": ("positional", "fourier"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_padding": (0, 1),
    "freq_shift": (0, 1),
}
"""The values of entries that our `Unet` can hold."""
_COUNTS = {
    "in_channels": (False, None),
    "out_channels": (False, None),
    "layers_per_block": (False, 64),
    "norm_num_groups": (False, None),
    "attention_head_dim": (True, None),
    "attn_norm_num_groups": (True, None),
    "time_embedding_dim": (True, None),
    "num_class_embeds": (True, None),
}
"""Entries that are whole numbers from 1 on: whether they may be null, and their largest value."""
_SWITCHES = ("center_input_sample", "flip_sin_to_cos", "add_attention")
_MOST_LEVELS = 32


@dataclass(frozen=True)
class Network:
    """A network of ours by name and arguments."""

    name: str
    arguments: dict[str, Any]


def network_of(
    config: Mapping[str, Any], where: str, given: Mapping[str, Any], notes: list[str]
) -> Network:
    """Return our network with the layers and the weights of a UNet2DModel.

    Args:
        config: Its config.json, without entries of other objects.
        where: The file, for messages.
        given: What the user says, by our names of options.
        notes: Gets a line for what is assumed.

    Raises:
        CheckpointError: Naming the entry that is unknown, or that our `Unet` cannot hold.
    """
    unknown = [name for name in config if not name.startswith("_") and name not in ENTRIES]
    if unknown:
        raise CheckpointError(f"{where} has entries that no UNet2DModel takes: {unknown}.")
    said = {**ENTRIES, **{k: v for k, v in config.items() if not k.startswith("_")}}
    _check_kinds(said, where)
    for entry, values in _ALL.items():
        if said[entry] not in values:
            raise cannot_hold(where, entry, said[entry], f"only {_listed(values)}")
    fourier = said["time_embedding_type"] == "fourier"
    if said["center_input_sample"] and not fourier:
        raise cannot_hold(where, "center_input_sample", True, "only false with positional times")
    widths = _whole_numbers(said, "block_out_channels", where)
    attention, resample = _levels(said, len(widths), where)
    scale_shift = said["resnet_time_scale_shift"] == "scale_shift"
    channels, outputs = said["in_channels"], said["out_channels"]
    arguments: dict[str, Any] = {
        "dim": widths[0],
        "dim_mults": _multiples(widths, where),
        "channels": channels,
        "out_channels": None if outputs == channels else outputs,
        "blocks_per_level": said["layers_per_block"],
        "attention_levels": attention,
        "mid_attention": _mid_attention(said, scale_shift, where),
        "dropout": given.get("dropout", said["dropout"]),
        "time_conditioning": "scale_shift" if scale_shift else "add",
        "resample": resample,
        "down_padding": "symmetric" if said["downsample_padding"] == 1 else "asymmetric",
        "groups": said["norm_num_groups"],
        "norm_eps": said["norm_eps"],
        "time_dim": said["time_embedding_dim"],
        "time_order": "cos_sin" if said["flip_sin_to_cos"] else "sin_cos",
        "freq_shift": said["freq_shift"],
        **_heads(said),
        **_classes(said, given, notes),
    }
    if not fourier:
        return Network("Unet", arguments)
    return Network(
        "NoiseLevelUnet", {**arguments, "center_input": bool(said["center_input_sample"])}
    )


def cannot_hold(where: str, entry: str, value: Any, what: str) -> CheckpointError:
    """Return the error for an entry that our network cannot hold."""
    return CheckpointError(f"{where} has {entry}={short(value)}; the Unet holds {what}.")


def _check_kinds(said: Mapping[str, Any], where: str) -> None:
    """Refuse values of other types or ranges, before anything is made of them."""
    for entry, (optional, most) in _COUNTS.items():
        value = said[entry]
        if value is None and optional:
            continue
        if not _is_count(value) or (most is not None and value > most):
            end = "on" if most is None else f"to {most}"
            raise cannot_hold(where, entry, value, f"a whole number from 1 {end}")
    for entry in _SWITCHES:
        if not isinstance(said[entry], bool):
            raise cannot_hold(where, entry, said[entry], "true or false")
    dropout, eps, size = (said[entry] for entry in ("dropout", "norm_eps", "sample_size"))
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise cannot_hold(where, "dropout", dropout, "a number in [0, 1)")
    if not _is_number(eps) or not 0 < eps < 1:
        raise cannot_hold(where, "norm_eps", eps, "a small positive number")
    sides = size if isinstance(size, list) else [size, size]
    if size is not None and (len(sides) != 2 or not all(map(_is_count, sides))):
        raise cannot_hold(where, "sample_size", size, "one or two sides of an image")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _listed(values: Sequence[Any]) -> str:
    return " or ".join("null" if value is None else str(value) for value in values)


def _whole_numbers(said: Mapping[str, Any], entry: str, where: str) -> list[int]:
    values = said[entry]
    if (
        not isinstance(values, (list, tuple))
        or not 1 <= len(values) <= _MOST_LEVELS
        or not all(map(_is_count, values))
    ):
        raise cannot_hold(where, entry, values, f"a list of up to {_MOST_LEVELS} widths")
    return list(values)


def _multiples(widths: list[int], where: str) -> list[int]:
    if any(width % widths[0] for width in widths):
        what = "widths that are whole multiples of the first"
        raise cannot_hold(where, "block_out_channels", widths, what)
    return [width // widths[0] for width in widths]


def _levels(said: Mapping[str, Any], count: int, where: str) -> tuple[list[int], str]:
    """Return the levels with attention, and how the resolution changes."""
    kinds: dict[str, str] = {}
    attention: dict[str, list[int]] = {}
    for entry, end in (("down_block_types", "Down"), ("up_block_types", "Up")):
        blocks = said[entry]
        if not isinstance(blocks, (list, tuple)) or len(blocks) != count:
            what = f"as many blocks as block_out_channels, {count}"
            raise cannot_hold(where, entry, blocks, what)
        attention[end] = []
        for i, block in enumerate(blocks):
            name = str(block).removeprefix("UNetRes")
            if name not in _BLOCKS or end not in name:
                choices = [known for known in _BLOCKS if end in known]
                raise cannot_hold(where, entry, block, f"only {_listed(choices)}")
            attended, kind = _BLOCKS[name]
            if attended:
                attention[end].append(i if end == "Down" else count - 1 - i)
            if i < count - 1:
                kinds[entry if kind not in said else kind] = said.get(kind, kind) or "conv"
    if sorted(attention["Up"]) != attention["Down"]:
        what = "attention at the same resolutions on the way down and up"
        raise cannot_hold(where, "up_block_types", said["up_block_types"], what)
    for entry, kind in kinds.items():
        if kind not in _RESAMPLE or kind != next(iter(kinds.values())):
            what = "one kind of resampling everywhere, conv or resnet"
            raise cannot_hold(where, entry, said[entry], what)
    return attention["Down"], _RESAMPLE[next(iter(kinds.values()), "conv")]


def _mid_attention(said: Mapping[str, Any], scale_shift: bool, where: str) -> str:
    groups = said["attn_norm_num_groups"]
    if not said["add_attention"]:
        return "none"
    if groups is None:
        return "no_norm" if scale_shift else "norm"
    if groups != said["norm_num_groups"]:
        raise cannot_hold(where, "attn_norm_num_groups", groups, "the same as norm_num_groups")
    return "norm"


def _heads(said: Mapping[str, Any]) -> dict[str, Any]:
    width = said["attention_head_dim"]
    return {"heads": 1} if width is None else {"heads": 1, "head_dim": width}


def _classes(said: Mapping[str, Any], given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the arguments of the class condition.

    Raises:
        ConfigError: If a network without classes is to hide them.
    """
    count, drop = said["num_class_embeds"], given.get("class_drop_prob", 0.0)
    if count is None:
        refuse_given(given, ("class_drop_prob",), "The network knows no classes")
        return {"num_classes": None, "class_drop_prob": 0.0}
    if drop > 0:
        notes.append(f"The last of the {count} classes is taken to be the null class, class −1.")
        return {"num_classes": count - 1, "class_drop_prob": drop}
    notes.append(
        f"All {count} classes are taken to be classes: no guidance. If the last is a null class,"
        f" say {option('class_drop_prob', 0.1)}."
    )
    return {"num_classes": count, "class_drop_prob": 0.0}


# The first versions of diffusers called the parts of attention otherwise.
_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
    "NIN_0": "to_q",
    "NIN_1": "to_k",
    "NIN_2": "to_v",
    "NIN_3": "to_out.0",
    "GroupNorm_0": "group_norm",
}
_OLD = re.compile(rf"^(.*attentions\.\d+\.)({'|'.join(_ATTENTION)})\.(weight|bias|W|b)$")


def present_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a UNet2DModel under the names of today's diffusers."""
    found = {}
    for name, tensor in weights.items():
        match = _OLD.match(name)
        if match is not None:
            leaf = {"W": "weight", "b": "bias"}.get(match[3], match[3])
            found[f"{match[1]}{_ATTENTION[match[2]]}.{leaf}"] = (
                tensor.t() if match[3] == "W" else tensor  # stored as (in, out)
            )
        else:
            found[name] = tensor
    return found


_ORDER = (
    *("conv_in", "time_proj", "time_embedding", "class_embedding", "down_blocks", "up_blocks"),
    *("mid_block", "conv_norm_out", "conv_out", "linear_1", "linear_2"),
    *("attentions", "resnets", "downsamplers", "upsamplers", "conv"),
    *("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"),
    *("group_norm", "to_q", "to_k", "to_v", "to_out", "weight", "bias"),
)


def in_order(names: Sequence[str]) -> list[str]:
    """Sort the parameters of a UNet2DModel as its `parameters()` and so its optimizer have them."""
    place = {part: i for i, part in enumerate(_ORDER)}

    def key(name: str) -> list[int]:
        return [int(p) if p.isdigit() else place.get(p, len(place)) for p in name.split(".")]

    return sorted(names, key=key)
