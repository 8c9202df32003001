"""The U-Nets of denoising-diffusion-pytorch as arguments of `LucidrainsUnet`, read off their
tensors, and the names of the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.spelling import option
from ddpm_lib.interop.given import heads_given, refuse_given
from ddpm_lib.interop.renaming import refuse

CLASS_ROWS, NULL_ROW = "classes_emb.weight", "null_classes_emb"
EMBEDDING = "conditioners.class_label.embedding.weight"
_CLASS_MLP, _OUR_CLASS_MLP = "classes_mlp.", "conditioners.class_label.mlp."
# Up to 1.7 and in the network with classes, attention is wrapped twice: Residual(PreNorm(…)).
_WRAPPED = re.compile(r"^((?:downs|ups)\.\d+\.2|mid_attn)\.fn\.(?:fn\.(to_\w+\.)|(norm\.))")
_PLAIN = re.compile(r"^((?:downs|ups)\.\d+\.2|mid_attn)\.(?:(to_\w+\.)|(norm\.))")
_DEFAULT_HEADS, _DEFAULT_HEAD_DIM = 4, 32


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of one of its U-Nets by the names of `LucidrainsUnet`.

    Only the network with classes has other names: its attention is wrapped, and the null class is a
    tensor of its own where ours is the last row of the embedding. Adam's moments are renamed in the
    same way.
    """
    result = {}
    for name, tensor in state.items():
        if name == NULL_ROW and _joins(state.get(CLASS_ROWS), tensor):
            continue
        if name == CLASS_ROWS and _joins(tensor, state.get(NULL_ROW)):
            result[EMBEDDING] = torch.cat((tensor, state[NULL_ROW][None]))
        elif name.startswith(_CLASS_MLP):
            result[_OUR_CLASS_MLP + name.removeprefix(_CLASS_MLP)] = tensor
        else:
            result[_WRAPPED.sub(_joined, name)] = tensor
    return result


def to_peer_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a `LucidrainsUnet` by the names of the original, in its order: the
    inverse of `to_our_names`.
    """
    if EMBEDDING not in state:
        return dict(state)
    first, behind, classes = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    norms = dict[str, Tensor]()  # there they come behind the attention that they are in front of
    for name, tensor in state.items():
        if name == EMBEDDING:
            classes[CLASS_ROWS] = tensor[:-1]
        elif name.startswith(_OUR_CLASS_MLP):
            classes[_CLASS_MLP + name.removeprefix(_OUR_CLASS_MLP)] = tensor
        elif name.startswith(("init_conv.", "time_mlp.")):
            first[name] = tensor
        else:
            theirs = _PLAIN.sub(_wrapped, name)
            if ".fn.norm." in theirs:
                norms[theirs] = tensor
                continue
            if ".fn.fn." not in theirs:
                behind |= norms
                norms.clear()
            behind[theirs] = tensor
    return {NULL_ROW: state[EMBEDDING][-1], **first, **classes, **behind}


def _joins(rows: Tensor | None, null: Tensor | None) -> bool:
    """Say whether the null class can become a row behind the classes."""
    return rows is not None and null is not None and rows.shape[1:] == null.shape


def _joined(found: re.Match[str]) -> str:
    return f"{found[1]}.{found[2] or found[3]}"


def _wrapped(found: re.Match[str]) -> str:
    return f"{found[1]}.fn.fn.{found[2]}" if found[2] else f"{found[1]}.fn.{found[3]}"


def is_unet(value: object) -> bool:
    """Say whether these are the weights of one of its U-Nets, with or without wrapped attention."""
    return isinstance(value, Mapping) and {
        "init_conv.weight",
        "time_mlp.1.weight",
        "mid_block1.block1.proj.weight",
        "final_res_block.block1.proj.weight",
        "final_conv.weight",
    } <= set(value)


@dataclass(frozen=True)
class _Shapes:
    """Shapes of tensors by their names; a missing one is an error that names it."""

    state: Mapping[str, Tensor]
    where: str

    def __contains__(self, name: object) -> bool:
        return name in self.state

    def __getitem__(self, name: str) -> tuple[int, ...]:
        tensor = self.state.get(name)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{self.where} is a U-Net of denoising-diffusion-pytorch without its {name!r}."
            )
        return tuple(tensor.shape)

    def fits(self, name: str, *dims: int | None) -> tuple[int, ...]:
        """Return a shape with that many axes, of these lengths where they are given."""
        shape = self[name]
        if len(shape) != len(dims) or any(d not in (None, n) for d, n in zip(dims, shape)):
            wanted = ", ".join("?" if d is None else str(d) for d in dims)
            raise CheckpointError(f"{self.where}: {name} has shape {shape}, expected ({wanted}).")
        return shape


def refuse_odd_values(state: Mapping[str, object], where: str) -> None:
    """Refuse entries that are no tensors of real numbers.

    Args:
        state: The weights.
        where: The file, for the message.

    Raises:
        CheckpointError: Listing them.
    """
    odd = [
        f"no tensor of real numbers: {name}"
        for name, value in state.items()
        if not isinstance(value, Tensor)
        or not value.is_floating_point()
        or value.layout != torch.strided
    ]
    refuse(odd, where)


def refuse_other_networks(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse networks with the same names that are of another architecture.

    Args:
        state: The weights by the names of the file.
        where: The file, for the message.

    Raises:
        CheckpointError: Saying which it is.
    """
    first = state["init_conv.weight"]
    if first.ndim != 4:
        kind = {3: "Unet1D, for sequences", 5: "a network for volumes"}.get(first.ndim, "unknown")
        raise CheckpointError(
            f"{where} is of another network of denoising-diffusion-pytorch ({kind}); only its Unet"
            " for images can be read."
        )
    wrapped = any(_WRAPPED.match(name) for name in state)
    if wrapped and "downs.0.0.block1.norm.weight" in state:
        raise CheckpointError(
            f"{where} is of denoising-diffusion-pytorch 1.7 or earlier, or of its network with"
            " classes before 2.0, whose residual blocks differ (group normalisation, in part with"
            " standardised weights). Networks of 1.8 and later without classes, and of 2.0 and"
            " later with classes, can be read."
        )


def network_config(
    state: Mapping[str, Tensor], given: Mapping[str, Any], notes: list[str], where: str
) -> dict[str, Any]:
    """Return the arguments of `LucidrainsUnet`, with a note for each that no shape shows.

    Args:
        state: The weights by our names, see `to_our_names`.
        given: What the user says.
        notes: Gets the notes.
        where: The file, for messages.

    Raises:
        CheckpointError: If the shapes are of no such network.
    """
    shapes = _Shapes(state, where)
    widths, dim, dim_mults = _widths(shapes)
    classes = EMBEDDING in shapes
    channels, out_channels, self_condition = _channels(shapes, given, notes, classes)
    config: dict[str, Any] = {
        "dim": dim,
        "dim_mults": dim_mults,
        "channels": channels,
        "out_channels": None if out_channels == channels else out_channels,
        "init_dim": None if widths[0] == dim else widths[0],
        "downsampling": _downsampling(shapes, len(dim_mults)),
        "norm": "group" if "downs.0.0.block1.norm.weight" in shapes else "rms",
        "self_condition": self_condition,
        "num_classes": shapes.fits(EMBEDDING, None, dim)[0] - 1 if classes else None,
    }
    if "dropout" in given:
        config["dropout"] = float(given["dropout"])
    if classes:
        config["class_drop_prob"] = float(given.get("class_drop_prob", 0.5))
        if "class_drop_prob" not in given:
            notes.append(
                "The file does not say how often training hid the class: taken to be half of the"
                f" time, the default; {option('class_drop_prob')} otherwise."
            )
    else:
        refuse_given(given, ("class_drop_prob",), f"The network in {where} knows no classes")
    return config | _attention(shapes, len(dim_mults), given, notes) | _time(shapes, given, notes)


def _widths(shapes: _Shapes) -> tuple[list[int], int, tuple[int, ...]]:
    """Return the widths of the levels with the deepest, dim and its multiples."""
    levels = 0
    while f"downs.{levels}.0.block1.proj.weight" in shapes:
        levels += 1
    emb_dim = shapes.fits("time_mlp.1.weight", None, None)[0]
    names = [f"downs.{level}.0.block1.proj.weight" for level in range(levels)]
    names.append("mid_block1.block1.proj.weight")
    widths = [shapes.fits(name, None, None, 3, 3)[1] for name in names]
    dim = emb_dim // 4
    if levels == 0 or dim < 1 or any(width % dim for width in widths[1:]):
        raise CheckpointError(
            f"{shapes.where}: levels of width {widths} beside a vector of {emb_dim} belong to no"
            " U-Net of denoising-diffusion-pytorch: they are multiples of a quarter of it."
        )
    return widths, dim, tuple(width // dim for width in widths[1:])


def _channels(
    shapes: _Shapes, given: Mapping[str, Any], notes: list[str], classes: bool
) -> tuple[int, int, bool]:
    """Return the channels of the images and of the output, and whether it sees itself."""
    into = shapes.fits("init_conv.weight", None, None, 7, 7)[1]
    out = shapes.fits("final_conv.weight", None, None, 1, 1)[0]
    channels = int(given.get("channels", out if into == 2 * out and not classes else into))
    if channels not in (into, into // 2 if into % 2 == 0 and not classes else into):
        raise CheckpointError(
            f"{shapes.where}: a network with {into} channels in front is not one for images of"
            f" {channels}."
        )
    if into == 2 * out and not classes and "channels" not in given:
        notes.append(
            f"{into} channels come in and {out} go out: taken to be self-conditioned images of"
            f" {out} channels."
        )
    return channels, out, into == 2 * channels


def _downsampling(shapes: _Shapes, levels: int) -> str:
    """Return how the resolution is halved; networks of one level never do."""
    if levels > 1 and "downs.0.3.weight" in shapes:
        return "conv"
    return "conv" if levels == 1 and EMBEDDING in shapes else "unshuffle"


def _attention(
    shapes: _Shapes, levels: int, given: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Return which levels have full attention, and heads and memory of all."""
    full = [level for level in range(levels) if f"downs.{level}.2.to_out.weight" in shapes]
    places = [*(f"downs.{level}.2" for level in range(levels)), "mid_attn"]
    tokens, pairs = 0, list[tuple[int, int]]()
    if "mid_attn.mem_kv" in shapes:
        refuse_given(
            given, ("heads", "head_dim"), f"{shapes.where} says the heads of its attention"
        )
        for level, place in enumerate(places):
            _, heads, *rest = shapes.fits(f"{place}.mem_kv", 2, None, None, None)
            # Linear attention keeps its memory the other way round.
            tokens, head_dim = rest if level in (*full, levels) else rest[::-1]
            pairs.append((heads, head_dim))
    else:
        for place in places:
            inner = shapes.fits(f"{place}.to_qkv.weight", None, None, 1, 1)[0] // 3
            pairs.append(_split(inner, given if place == "mid_attn" else {}, shapes.where))
        if not {"heads", "head_dim"} & set(given):
            notes.append(
                "The file does not say the heads of the attention in the middle: taken to be"
                f" {pairs[-1][0]} of {pairs[-1][1]} features; {option('heads')} otherwise."
            )
    mid_heads, mid_head_dim = pairs.pop()
    return {
        "attention_levels": tuple(full),
        "heads": tuple(heads for heads, _ in pairs),
        "head_dim": tuple(head_dim for _, head_dim in pairs),
        "mid_heads": mid_heads,
        "mid_head_dim": mid_head_dim,
        "memory_tokens": tokens,
    }


def _split(inner: int, given: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Return heads and features per head of attention that does not show them."""
    said = heads_given(given)
    width = said.get("head_dim")
    heads = said.get("heads", _DEFAULT_HEADS) if width is None else inner // width
    if heads < 1 or inner % heads or width not in (None, inner // heads):
        parts = f"{heads} heads" if width is None else f"heads of {width}"
        raise CheckpointError(
            f"{where}: attention of {inner} features does not divide into {parts}."
        )
    return heads, inner // heads


def _time(shapes: _Shapes, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return what the network sees of t."""
    if "time_mlp.0.weights" not in shapes:
        why = f"{shapes.where} holds no frequencies of the time"
        refuse_given(given, ("time_features",), why)
        return {"time_base": float(given["time_base"])} if "time_base" in given else {}
    refuse_given(given, ("time_base",), f"{shapes.where} holds the frequencies of the time")
    kind = given.get("time_features")
    if kind is None:
        kind = "learned"
        notes.append(
            "The file does not say whether the frequencies of the time were learned or random: they"
            f" are trained on; {option('time_features', 'random')} keeps them fixed."
        )
    return {"time_features": kind, "fourier_dim": 2 * shapes.fits("time_mlp.0.weights", None)[0]}
