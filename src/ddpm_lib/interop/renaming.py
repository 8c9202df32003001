"""How published U-Nets name their modules, and how their tensors become those of our `Unet`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.registry import Registry
from ddpm_lib.core.text import printable
from ddpm_lib.nn import Unet
from ddpm_lib.nn.attention import Attention
from ddpm_lib.nn.blocks import ResBlock, ResolutionLevel

Paths = dict[str, str]
RES_CHILDREN = ("norm1", "conv1", "time", "norm2", "conv2", "skip")
"""The parts of our residual block, in the order in which a `Naming` lists theirs."""

CLASS_EMBEDDING = "conditioners.class_label.embedding.weight"
_SHOWN = 8


@dataclass(frozen=True)
class Naming:
    """How a library names the modules of a U-Net.

    Attributes:
        paths: From a network of ours to the names of its modules, ours → theirs. Modules that the
            network does not have may be listed.
        block: Theirs for `RES_CHILDREN`.
        norm: The normalisation in front of attention.
        qkv: Their projections to queries, keys and values: one, or three.
        per_head: Whether the channels of a joint projection are ordered [q, k, v] head by head,
            rather than all queries first.
        proj: The projection behind attention.
    """

    paths: Callable[[Any], Paths]
    block: tuple[str, str, str, str, str, str]
    norm: str
    qkv: tuple[str, ...]
    per_head: bool
    proj: str


@dataclass(frozen=True)
class Renamed:
    """A state dict under our names.

    Attributes:
        weights: By the names of our network.
        same: The parameters that map one to one, theirs → ours.
    """

    weights: dict[str, Tensor]
    same: dict[str, str]


def _modules(model: nn.Module, naming: Naming) -> Iterator[tuple[nn.Module, str, str]]:
    """Go through the modules that the network has, with their path in it and that in a library."""
    for our_path, their_path in naming.paths(model).items():
        try:
            module = model.get_submodule(our_path)
        except AttributeError:
            continue
        if module is not None:
            yield module, our_path, their_path


def _alike(module: nn.Module, ours: str, theirs: str, naming: Naming) -> list[tuple[str, str]]:
    """Return the paths whose weights are the same in both, ours first; of an attention not those
    of queries, keys and values.
    """
    if isinstance(module, ResBlock):
        return [
            (f"{ours}.{mine}", f"{theirs}.{other}")
            for mine, other in zip(RES_CHILDREN, naming.block, strict=True)
        ]
    if isinstance(module, Attention):
        pairs = (("norm", naming.norm), ("proj", naming.proj))
        return [(f"{ours}.{mine}", f"{theirs}.{other}") for mine, other in pairs]
    return [(ours, theirs)]


def rename_unet(
    model: nn.Module, state: Mapping[str, Tensor], naming: Naming, where: str = "the file"
) -> Renamed:
    """Bring a published state dict under the names of `model`.

    Adam's moments, by the names of their parameters, are renamed in the same way. The null class,
    which published networks do not have, gets a row of zeros.

    Args:
        model: The network that the file is of, made of our blocks; it may lie on the meta device.
        state: Tensors by their names.
        naming: How they are named.
        where: The file, for the message.

    Raises:
        CheckpointError: Listing what is missing, left over or of another shape.
    """
    left, ours, same = dict(state), dict[str, Tensor](), dict[str, str]()
    missing: list[str] = []
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}

    def take(name: str) -> Tensor | None:
        if name not in left:
            missing.append(name)
        return left.pop(name, None)

    def copy(our_path: str, their_path: str) -> None:
        for leaf in ("weight", "bias"):
            if f"{our_path}.{leaf}" in shapes:
                tensor = take(f"{their_path}.{leaf}")
                if tensor is not None:
                    same[f"{their_path}.{leaf}"] = f"{our_path}.{leaf}"
                    ours[f"{our_path}.{leaf}"] = tensor

    for module, our_path, their_path in _modules(model, naming):
        for mine, theirs in _alike(module, our_path, their_path, naming):
            copy(mine, theirs)
        if isinstance(module, Attention):
            for leaf in ("weight", "bias"):
                parts = [take(f"{their_path}.{name}.{leaf}") for name in naming.qkv]
                found = [part for part in parts if part is not None]
                if len(found) == len(parts):
                    joint = _joint_qkv(found, naming.per_head, module.heads)
                    ours[f"{our_path}.qkv.{leaf}"] = joint
    if CLASS_EMBEDDING in ours and len(ours[CLASS_EMBEDDING]) + 1 == shapes[CLASS_EMBEDDING][0]:
        ours[CLASS_EMBEDDING] = _with_null_row(ours[CLASS_EMBEDDING])
        same = {theirs: name for theirs, name in same.items() if name != CLASS_EMBEDDING}
    # Projections of attention are 1×1 convolutions in some libraries.
    ours = {k: v.reshape(shapes[k]) if _is_reshaped(v, shapes[k]) else v for k, v in ours.items()}
    problems = [f"missing: {name}" for name in missing] + [f"left over: {name}" for name in left]
    problems += shape_problems(ours, shapes)
    refuse(problems, where)
    return Renamed(ours, same)


def original_names(model: Unet, state: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """Bring weights of ours under the names of a library: the inverse of `rename_unet`.

    Args:
        model: The network.
        state: Its weights; what the library has no module for is left out.
        naming: How it names its modules; its projections of attention must be three.
    """
    found: dict[str, Tensor] = {}

    def copy(our_path: str, their_path: str) -> None:
        for leaf in ("weight", "bias"):
            if f"{our_path}.{leaf}" in state:
                found[f"{their_path}.{leaf}"] = state[f"{our_path}.{leaf}"]

    for module, our_path, their_path in _modules(model, naming):
        for mine, theirs in _alike(module, our_path, their_path, naming):
            copy(mine, theirs)
        if isinstance(module, Attention):
            for leaf in ("weight", "bias"):
                parts = state[f"{our_path}.qkv.{leaf}"].chunk(3)
                for name, part in zip(naming.qkv, parts, strict=True):
                    found[f"{their_path}.{name}.{leaf}"] = part
    return found


def _with_null_row(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.zeros_like(rows[:1])])


def _is_reshaped(tensor: Tensor, shape: torch.Size) -> bool:
    """Say whether a tensor differs from a shape by axes of length 1 alone."""
    return [n for n in tensor.shape if n != 1] == [n for n in shape if n != 1]


def _joint_qkv(parts: list[Tensor], per_head: bool, heads: int) -> Tensor:
    weight = parts[0] if len(parts) == 1 else torch.cat(parts)
    if not per_head or len(weight) % (3 * heads):
        return weight
    return weight.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def shape_problems(tensors: Mapping[str, Tensor], shapes: Mapping[str, Iterable[int]]) -> list[str]:
    """Word where tensors have other shapes than those wanted under their names."""
    return [
        f"{name}: shape {tuple(tensor.shape)} in the file, {tuple(shapes[name])} in the network"
        for name, tensor in tensors.items()
        if tuple(tensor.shape) != tuple(shapes[name])
    ]


def refuse(problems: list[str], where: str) -> None:
    """Raise for weights that do not fit, if there are any, listing the first ones.

    Args:
        problems: One line each; none is fine.
        where: The file, for the message.

    Raises:
        CheckpointError: If there are any.
    """
    if not problems:
        return
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    listed = "; ".join(printable(line) for line in problems[:_SHOWN])
    raise CheckpointError(f"The weights in {where} do not fit the network: {listed}{more}.")


def resample_path(stage: ResolutionLevel, ours: str, plain: str, block: str) -> Paths:
    """Name the change of resolution of a level, whichever kind it is.

    Args:
        stage: The level.
        ours: Its path, as down.0.resample.
        plain: Theirs for a convolution.
        block: Theirs for a residual block.
    """
    if stage.resample is None or (stage.resample.conv is None and stage.resample.block is None):
        return {}
    return {f"{ours}.conv": plain} if stage.resample.conv is not None else {f"{ours}.block": block}


def openai_trunk_paths(down: Iterable[nn.Module]) -> Paths:
    """Name the way down and the middle as improved-diffusion and guided-diffusion do.

    Args:
        down: The levels.
    """
    paths = {
        "time_embedding.linear1": "time_embed.0",
        "time_embedding.linear2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "middle.res1": "middle_block.0",
        "middle.attn": "middle_block.1",
        "middle.res2": "middle_block.2",
    }
    index = 1
    for s, stage in enumerate(_levels(down)):
        for i in range(len(stage.layers)):
            paths |= {f"down.{s}.layers.{i}.res": f"input_blocks.{index}.0"}
            paths |= {f"down.{s}.layers.{i}.attn": f"input_blocks.{index}.1"}
            index += 1
        paths |= resample_path(
            stage, f"down.{s}.resample", f"input_blocks.{index}.0.op", f"input_blocks.{index}.0"
        )
        index += 1
    return paths


def openai_paths(model: Unet) -> Paths:
    """Name the modules as improved-diffusion and guided-diffusion do."""
    paths = openai_trunk_paths(model.down) | {
        "norm_out": "out.0",
        "conv_out": "out.2",
        "conditioners.class_label.embedding": "label_emb",
    }
    index = 0
    for s, stage in enumerate(_levels(model.up)):
        for i in range(len(stage.layers)):
            paths |= {f"up.{s}.layers.{i}.res": f"output_blocks.{index}.0"}
            paths |= {f"up.{s}.layers.{i}.attn": f"output_blocks.{index}.1"}
            index += 1
        last = f"output_blocks.{index - 1}.{2 if _has_attention(stage) else 1}"
        paths |= resample_path(stage, f"up.{s}.resample", f"{last}.conv", last)
    return paths


def tqch_paths(model: Unet) -> Paths:
    """Name the modules as ddpm-torch does."""
    paths = {
        "time_embedding.linear1": "embed.0",
        "time_embedding.linear2": "embed.2",
        "conv_in": "in_conv",
        "middle.res1": "middle.0",
        "middle.attn": "middle.1",
        "middle.res2": "middle.2",
        "norm_out": "out_conv.0",
        "conv_out": "out_conv.2",
    }
    for ours, theirs, parts in (("down", "downsamples", model.down), ("up", "upsamples", model.up)):
        for s, stage in enumerate(_levels(parts)):
            level = f"{theirs}.level_{s if ours == 'down' else len(parts) - 1 - s}"
            for i, layer in enumerate(stage.layers):
                inner = ".0" if layer.attn is not None else ""
                paths |= {f"{ours}.{s}.layers.{i}.res": f"{level}.{i}{inner}"}
                paths |= {f"{ours}.{s}.layers.{i}.attn": f"{level}.{i}.1"}
            paths |= resample_path(
                stage, f"{ours}.{s}.resample", f"{level}.{len(stage.layers)}.1", ""
            )
    return paths


def pytorch_ddpm_paths(model: Unet) -> Paths:
    """Name the modules as pytorch-ddpm does."""
    paths = {
        "time_embedding.linear1": "time_embedding.timembedding.1",
        "time_embedding.linear2": "time_embedding.timembedding.3",
        "conv_in": "head",
        "middle.res1": "middleblocks.0",
        "middle.attn": "middleblocks.0.attn",
        "middle.res2": "middleblocks.1",
        "norm_out": "tail.0",
        "conv_out": "tail.2",
    }
    for ours, theirs, parts in (("down", "downblocks", model.down), ("up", "upblocks", model.up)):
        index = 0
        for s, stage in enumerate(_levels(parts)):
            for i in range(len(stage.layers)):
                paths |= {f"{ours}.{s}.layers.{i}.res": f"{theirs}.{index}"}
                paths |= {f"{ours}.{s}.layers.{i}.attn": f"{theirs}.{index}.attn"}
                index += 1
            paths |= resample_path(stage, f"{ours}.{s}.resample", f"{theirs}.{index}.main", "")
            index += 1
    return paths


def diffusers_paths(model: Unet) -> Paths:
    """Name the modules as diffusers' UNet2DModel does."""
    paths = {
        "time_embedding.linear1": "time_embedding.linear_1",
        "time_embedding.linear2": "time_embedding.linear_2",
        "conv_in": "conv_in",
        "middle.res1": "mid_block.resnets.0",
        "middle.attn": "mid_block.attentions.0",
        "middle.res2": "mid_block.resnets.1",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
        "conditioners.class_label.embedding": "class_embedding",
    }
    for ours, parts in (("down", model.down), ("up", model.up)):
        for s, stage in enumerate(_levels(parts)):
            for i in range(len(stage.layers)):
                paths |= {f"{ours}.{s}.layers.{i}.res": f"{ours}_blocks.{s}.resnets.{i}"}
                paths |= {f"{ours}.{s}.layers.{i}.attn": f"{ours}_blocks.{s}.attentions.{i}"}
            sampler = f"{ours}_blocks.{s}.{ours}samplers.0"
            paths |= resample_path(stage, f"{ours}.{s}.resample", f"{sampler}.conv", sampler)
    return paths


def _levels(parts: Iterable[nn.Module]) -> list[ResolutionLevel]:
    return [part for part in parts if isinstance(part, ResolutionLevel)]


def _has_attention(stage: ResolutionLevel) -> bool:
    return stage.layers[-1].attn is not None


_OPENAI_BLOCK = (
    "in_layers.0",
    "in_layers.2",
    "emb_layers.1",
    "out_layers.0",
    "out_layers.3",
    "skip_connection",
)

NAMINGS: Registry[Naming] = Registry(
    "naming of modules",
    {
        "improved-diffusion": Naming(
            openai_paths, _OPENAI_BLOCK, "norm", ("qkv",), True, "proj_out"
        ),
        "guided-diffusion": Naming(
            openai_paths, _OPENAI_BLOCK, "norm", ("qkv",), False, "proj_out"
        ),
        "ddpm-torch": Naming(
            tqch_paths,
            ("norm1", "conv1", "fc", "norm2", "conv2", "skip"),
            "norm",
            ("project_in",),
            False,
            "project_out",
        ),
        "pytorch-ddpm": Naming(
            pytorch_ddpm_paths,
            ("block1.0", "block1.2", "temb_proj.1", "block2.0", "block2.3", "shortcut"),
            "group_norm",
            ("proj_q", "proj_k", "proj_v"),
            False,
            "proj",
        ),
        "diffusers": Naming(
            diffusers_paths,
            ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"),
            "group_norm",
            ("to_q", "to_k", "to_v"),
            False,
            "to_out.0",
        ),
    },
)
"""By library; "guided-diffusion" is its new order of attention's channels, its legacy order is that
of improved-diffusion.
"""
