"""Folders as diffusers writes them, made with and without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
"""A UNet2DModel of some 50,000 parameters."""


def unet_2d(**options: Any) -> Any:
    """Return a small UNet2DModel whose weights are all random, also those that begin at 0."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**{**SMALL, **options})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network.eval()


def published(shared: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Return what is known of a published network: its description, all tensors, its weights."""
    folder = shared / "fixtures" / "D_unets"
    about = json.loads((folder / f"{name}.json").read_text())
    tensors = load_file(folder / f"{name}.safetensors")
    scale = about["values"]["weight_scale"]
    weights = {}
    for key, value in tensors.items():
        kind, _, inner = key.partition("/")
        if kind == "weights_q":
            weights[inner] = value.float() * scale[inner]
        elif kind == "weights":
            weights[inner] = value
    return about, tensors, weights


def write_unet(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor], kind: str = "safetensors"
) -> Path:
    """Write config.json and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **config}))
    file = folder / f"diffusion_pytorch_model.{kind}"
    if kind == "bin":
        torch.save(weights, file)
    else:
        save_file({k: v.contiguous() for k, v in weights.items()}, file)
    return folder
