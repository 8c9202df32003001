"""Checkpoints as improved-diffusion and guided-diffusion write them, made of our own networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm_lib.interop.openai_classifier import classifier_naming
from ddpm_lib.interop.renaming import CLASS_EMBEDDING, NAMINGS, RES_CHILDREN, Naming
from ddpm_lib.nn import NoisyClassifier, Unet
from ddpm_lib.nn.attention import Attention
from ddpm_lib.nn.blocks import ResBlock


def randomised(**config) -> Unet:
    """A network whose output depends on all of its weights, with the groups that OpenAI's have."""
    model = Unet(**{"groups": 32, "blocks_per_level": 1} | config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def openai_state(
    model: Unet, weights: Mapping[str, Tensor] | None = None, order: str = "improved-diffusion"
) -> dict[str, Tensor]:
    """The state dict of the same network under their names, in the order of their parameters."""
    ours = dict(weights or model.state_dict())
    if CLASS_EMBEDDING in ours:
        ours[CLASS_EMBEDDING] = ours[CLASS_EMBEDDING][:-1]
    return _renamed_back(model, ours, NAMINGS[order])


def _renamed_back(
    model: nn.Module, ours: Mapping[str, Tensor], naming: Naming
) -> dict[str, Tensor]:
    theirs: dict[str, Tensor] = {}

    def copy(our_path: str, their_path: str) -> None:
        for leaf in ("weight", "bias"):
            if f"{our_path}.{leaf}" in ours:
                theirs[f"{their_path}.{leaf}"] = ours[f"{our_path}.{leaf}"]

    for our_path, their_path in naming.paths(model).items():
        try:
            module = model.get_submodule(our_path)
        except AttributeError:
            continue
        if isinstance(module, ResBlock):
            for child, name in zip(RES_CHILDREN, naming.block, strict=True):
                copy(f"{our_path}.{child}", f"{their_path}.{name}")
        elif isinstance(module, Attention):
            copy(f"{our_path}.norm", f"{their_path}.{naming.norm}")
            for leaf, extra in (("weight", (1,)), ("bias", ())):
                joint = ours[f"{our_path}.qkv.{leaf}"]
                if naming.per_head:
                    joint = joint.unflatten(0, (3, module.heads, -1)).transpose(0, 1).flatten(0, 2)
                theirs[f"{their_path}.qkv.{leaf}"] = joint.reshape(*joint.shape, *extra)
                proj = ours[f"{our_path}.proj.{leaf}"]
                theirs[f"{their_path}.proj_out.{leaf}"] = proj.reshape(*proj.shape, *extra)
        else:
            copy(our_path, their_path)
    return {name: tensor.clone() for name, tensor in theirs.items()}


def write_openai(path: Path, **config) -> Unet:
    """Write a network to a file as OpenAI's training loop does, and return it."""
    model = randomised(**config)
    torch.save(openai_state(model), path)
    return model


def randomised_classifier(**config) -> NoisyClassifier:
    """A classifier whose output depends on all of its weights."""
    model = NoisyClassifier(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def classifier_state(model: NoisyClassifier) -> dict[str, Tensor]:
    """The state dict of the same classifier under their names."""
    own, naming = model.state_dict(), classifier_naming("legacy", model.pooling)
    theirs = _renamed_back(model, own, naming)
    if "pool.position" in own:
        theirs["out.2.positional_embedding"] = own["pool.position"].clone()
    return theirs
