"""A trained process as a folder of diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.new_folders import new_folder, refuse_taken
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.interop.diffusers_unet import OURS
from ddpm_lib.interop.export_diffusers_configs import scheduler_config, unet_config
from ddpm_lib.interop.renaming import CLASS_EMBEDDING, NAMINGS, original_names
from ddpm_lib.nn import Unet
from ddpm_lib.nn.blocks import Resampler, ResolutionLevel
from ddpm_lib.nn.outside import diffusers_config, diffusers_name

_INDEX = {
    "_class_name": "DDPMPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}


def export_diffusers(
    diffusion: GaussianDiffusion, folder: str | Path, about: Mapping[str, Any] | None = None
) -> Path:
    """Write a folder that diffusers' `DDPMPipeline.from_pretrained` opens.

    `DDIMPipeline` and schedulers made by `from_config` take it too; a learned variance is known to
    DDPMScheduler, and to the DPM-Solvers where the noise is predicted. The pipelines pass no class
    labels: with classes, call `unet(x, t, class_labels=…)` in a loop over `scheduler.timesteps`.

    Args:
        diffusion: The process.
        folder: Where; must not exist, or be empty.
        about: What is known of the weights; kept in ddpm_lib.json beside, which diffusers ignores.

    Returns:
        The folder.

    Raises:
        ConfigError: If something lies there, or no UNet2DModel or scheduler can hold an option,
            which is named; for processes that learn measured values.
        OSError: If the disk refuses; nothing half-written stays.
    """
    from safetensors.torch import save_file

    refuse_taken(folder)
    if diffusion.normalization is not None:
        raise ConfigError(
            "A pipeline of diffusers gives pictures of 8 bits, and this network learns measured"
            f" values ({diffusion.channels} × {diffusion.normalization.dtype}): their units would"
            " be lost. --to safetensors, onnx, torch-export and npz-weights keep them, as"
            " 'normalization' of their JSON file."
        )
    config, weights = _network(diffusion)
    scheduler = scheduler_config(diffusion)
    conditioner = dict(diffusion.conditioners or {}).get("class_label")
    known = {
        **dict(about or {}),
        "class_names": list(diffusion.class_names) if diffusion.class_names else None,
        "class_drop_prob": None if conditioner is None else conditioner.drop_prob,
    }
    with new_folder(folder) as aside:
        for part in ("unet", "scheduler"):
            (aside / part).mkdir()
        _write(aside / "model_index.json", _INDEX)
        _write(aside / "unet" / "config.json", config)
        _write(aside / "scheduler" / "scheduler_config.json", scheduler)
        _write(aside / OURS, known)
        file = aside / "unet" / "diffusion_pytorch_model.safetensors"
        save_file(weights, file, metadata={"format": "pt"})
    return Path(folder)


def _write(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _network(diffusion: GaussianDiffusion) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and the weights under the names of diffusers."""
    model: Any = diffusion.model
    if diffusers_name(type(model)) == "diffusers.UNet2DModel":
        config = {"_class_name": "UNet2DModel", **diffusers_config(model)}
        config["sample_size"] = list(diffusion.image_size)
        return config, _plain(model.state_dict())
    if type(model) is not Unet:
        raise ConfigError(
            f"diffusers' UNet2DModel holds networks of the class Unet; this is a"
            f" {type(model).__name__}. --to onnx and --to torch-export hold every network."
        )
    config = unet_config(model, diffusion.image_size)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config["time_order"] == "interleaved":
        # sin, cos, sin, cos, …: theirs are all sines, then all cosines.
        first = state["time_embedding.linear1.weight"]
        state["time_embedding.linear1.weight"] = torch.cat([first[:, 0::2], first[:, 1::2]], 1)
    if CLASS_EMBEDDING in state:
        state[CLASS_EMBEDDING] = state[CLASS_EMBEDDING][: config["num_class_embeds"]]
    weights = original_names(model, state, NAMINGS["diffusers"])
    return config, _plain(weights | _pools(model))


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of their own memory on the CPU, as safetensors takes them."""
    return {
        name: tensor.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }


def _pools(model: Unet) -> dict[str, Tensor]:
    """Return averages of 2×2, and plain repetition, as the 3×3 convolutions that diffusers has."""
    made: dict[str, Tensor] = {}
    for way, parts in (("down", model.down), ("up", model.up)):
        for i, part in enumerate(parts):
            level: nn.Module = part
            assert isinstance(level, ResolutionLevel)
            resampler = level.resample
            if not isinstance(resampler, Resampler) or resampler.conv or resampler.block:
                continue
            example = level.layers[0].res.conv2.weight  # type: ignore[union-attr]
            assert isinstance(example, Tensor)
            width = example.shape[0]
            weight = torch.zeros(width, width, 3, 3, dtype=example.dtype)
            every = torch.arange(width)
            if way == "down":
                weight[every, every, 1:, 1:] = 0.25
            else:
                weight[every, every, 1, 1] = 1.0
            path = f"{way}_blocks.{i}.{way}samplers.0.conv"
            made[f"{path}.weight"] = weight
            made[f"{path}.bias"] = torch.zeros(width, dtype=example.dtype)
    return made
