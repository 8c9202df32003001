"""Names of the modules of published U-Nets, and how their weights map onto ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.nn import Unet
from ddpm_lib.nn.attention import Attention
from ddpm_lib.nn.blocks import ResBlock

Paths = dict[str, str]
Leaves = tuple[str, ...]

RES_CHILDREN = ("norm1", "conv1", "time", "norm2", "conv2", "skip")
OPENAI_RES = (
    "in_layers.0",
    "in_layers.2",
    "emb_layers.1",
    "out_layers.0",
    "out_layers.3",
    "skip_connection",
)
TQCH_RES = ("norm1", "conv1", "fc", "norm2", "conv2", "skip")
PYTORCH_DDPM_RES = ("block1.0", "block1.2", "temb_proj.1", "block2.0", "block2.3", "shortcut")
DIFFUSERS_RES = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")


def resample_path(stage, ours: str, plain: str, block: str) -> Paths:
    """Name the change of resolution of a stage, whichever kind it is."""
    if stage.resample is None or (stage.resample.conv is None and stage.resample.block is None):
        return {}
    return {f"{ours}.conv": plain} if stage.resample.conv is not None else {f"{ours}.block": block}


def openai_paths(model: Unet) -> Paths:
    """Name the modules as improved-diffusion and guided-diffusion do."""
    paths = {
        "time_embedding.linear1": "time_embed.0",
        "time_embedding.linear2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "middle.res1": "middle_block.0",
        "middle.attn": "middle_block.1",
        "middle.res2": "middle_block.2",
        "norm_out": "out.0",
        "conv_out": "out.2",
        "conditioners.class_label.embedding": "label_emb",
    }
    index = 1
    for s, stage in enumerate(model.down):
        for i in range(len(stage.layers)):
            paths |= {f"down.{s}.layers.{i}.res": f"input_blocks.{index}.0"}
            paths |= {f"down.{s}.layers.{i}.attn": f"input_blocks.{index}.1"}
            index += 1
        paths |= resample_path(
            stage, f"down.{s}.resample", f"input_blocks.{index}.0.op", f"input_blocks.{index}.0"
        )
        index += 1
    index = 0
    for s, stage in enumerate(model.up):
        for i in range(len(stage.layers)):
            paths |= {f"up.{s}.layers.{i}.res": f"output_blocks.{index}.0"}
            paths |= {f"up.{s}.layers.{i}.attn": f"output_blocks.{index}.1"}
            index += 1
        last = f"output_blocks.{index - 1}.{2 if stage.layers[-1].attn is not None else 1}"
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
    for ours, theirs, stages in (
        ("down", "downsamples", model.down),
        ("up", "upsamples", model.up),
    ):
        for s, stage in enumerate(stages):
            level = f"{theirs}.level_{s if ours == 'down' else len(stages) - 1 - s}"
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
    for ours, theirs, stages in (("down", "downblocks", model.down), ("up", "upblocks", model.up)):
        index = 0
        for s, stage in enumerate(stages):
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
    for ours, stages in (("down", model.down), ("up", model.up)):
        for s, stage in enumerate(stages):
            for i in range(len(stage.layers)):
                paths |= {f"{ours}.{s}.layers.{i}.res": f"{ours}_blocks.{s}.resnets.{i}"}
                paths |= {f"{ours}.{s}.layers.{i}.attn": f"{ours}_blocks.{s}.attentions.{i}"}
            sampler = f"{ours}_blocks.{s}.{ours}samplers.0"
            paths |= resample_path(stage, f"{ours}.{s}.resample", f"{sampler}.conv", sampler)
    return paths


def separate_qkv(q: str, k: str, v: str) -> Callable[[dict[str, Tensor], str, int], Tensor]:
    """Join three projections stored under different names."""
    return lambda state, path, heads: torch.cat(
        [state.pop(path.format(name)) for name in (q, k, v)]
    )


def joint_qkv(name: str, per_head: bool) -> Callable[[dict[str, Tensor], str, int], Tensor]:
    """Take one projection, whose channels may be ordered [q, k, v] head by head."""

    def take(state: dict[str, Tensor], path: str, heads: int) -> Tensor:
        weight = state.pop(path.format(name))
        return (
            weight.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
            if per_head
            else weight
        )

    return take


# The paths, the children of a residual block, and norm, qkv and output of attention.
PEERS = {
    "improved_diffusion": (openai_paths, OPENAI_RES, ("norm", joint_qkv("qkv", True), "proj_out")),
    "guided_diffusion": (openai_paths, OPENAI_RES, ("norm", joint_qkv("qkv", False), "proj_out")),
    "tqch": (tqch_paths, TQCH_RES, ("norm", joint_qkv("project_in", False), "project_out")),
    "pytorch_ddpm": (
        pytorch_ddpm_paths,
        PYTORCH_DDPM_RES,
        ("group_norm", separate_qkv("proj_q", "proj_k", "proj_v"), "proj"),
    ),
    "diffusers": (
        diffusers_paths,
        DIFFUSERS_RES,
        ("group_norm", separate_qkv("to_q", "to_k", "to_v"), "to_out.0"),
    ),
}


def convert(
    model: Unet, state: dict[str, Tensor], peer: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Turn a published state dict into one for `model`; every entry must be used.

    Returns:
        The state dict, and the names of the parameters that map one to one (theirs → ours).
    """
    make_paths, res_children, (norm, take_qkv, proj) = PEERS[peer]
    state, ours, same = dict(state), {}, {}
    shapes = {name: p.shape for name, p in model.state_dict().items()}

    def copy(our_path: str, their_path: str) -> None:
        for leaf in ("weight", "bias"):
            if f"{our_path}.{leaf}" in shapes:
                same[f"{their_path}.{leaf}"] = f"{our_path}.{leaf}"
                ours[f"{our_path}.{leaf}"] = state.pop(f"{their_path}.{leaf}")

    for our_path, their_path in make_paths(model).items():
        try:
            module = model.get_submodule(our_path)
        except AttributeError:
            continue
        if isinstance(module, ResBlock):
            for child, theirs in zip(RES_CHILDREN, res_children, strict=True):
                copy(f"{our_path}.{child}", f"{their_path}.{theirs}")
        elif isinstance(module, Attention):
            copy(f"{our_path}.norm", f"{their_path}.{norm}")
            copy(f"{our_path}.proj", f"{their_path}.{proj}")
            for leaf in ("weight", "bias"):
                ours[f"{our_path}.qkv.{leaf}"] = take_qkv(
                    state, f"{their_path}.{{}}.{leaf}", module.heads
                )
        elif module is not None:
            copy(our_path, their_path)
    # Projections of attention are 1×1 convolutions in some peers; the null class has no row in
    # theirs.
    ours = {
        k: v.reshape(shapes[k]) if v.numel() == shapes[k].numel() else v for k, v in ours.items()
    }
    label = "conditioners.class_label.embedding.weight"
    if label in ours:
        ours[label] = torch.cat([ours[label], torch.zeros_like(ours[label][:1])])
        same = {k: v for k, v in same.items() if v != label}
    assert not state, f"not used: {sorted(state)}"
    return ours, same
