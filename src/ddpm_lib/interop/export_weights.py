"""The weights alone: as NumPy arrays, or as a pretrained folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub import PARTNER
from ddpm_lib.core.hub.folder import UNCERTAINTY, arranged, save_folder
from ddpm_lib.core.hub.folder_config import FolderConfig
from ddpm_lib.core.new_folders import new_folder, refuse_taken
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.interop.exporting import describe, write_description
from ddpm_lib.nn.networks import describe_for_others
from ddpm_lib.process.pretrained import portable, texts_of_folder
from ddpm_lib.process.sampling import stored_partner


def export_npz(
    diffusion: GaussianDiffusion, folder: str | Path, about: Mapping[str, Any] | None = None
) -> Path:
    """Write `model.npz`, the weights as NumPy arrays by their names, and `model.json`.

    Args:
        diffusion: The process.
        folder: Where; must not exist, or be empty.
        about: What else `model.json` is to say of the weights.

    Returns:
        The folder.

    Raises:
        ConfigError: If something lies there, or a weight is of a kind that NumPy has not.
        OSError: If the disk refuses; nothing half-written stays.
    """
    import numpy as np

    arrays: dict[str, Any] = {}
    for name, tensor in diffusion.model.state_dict().items():
        try:
            arrays[name] = tensor.detach().cpu().contiguous().numpy()
        except TypeError as error:
            raise ConfigError(
                f"The weight {name} is of {tensor.dtype}, which NumPy does not have. Export a"
                " network in float32: diffusion.float()."
            ) from error
    with new_folder(folder) as aside:
        with (aside / "model.npz").open("xb") as file:
            np.savez(file, **arrays)
        write_description(aside, describe(diffusion, "model.npz", None, about))
    return Path(folder)


def export_safetensors(
    diffusion: GaussianDiffusion, folder: str | Path, about: Mapping[str, Any] | None = None
) -> Path:
    """Write a pretrained folder, for `GaussianDiffusion.from_pretrained`, with the way of sampling
    that was chosen for the weights.

    Args:
        diffusion: The process.
        folder: Where; must not exist, or be empty.
        about: What is known of the weights; {"weights": "ema 0.999"} calls them "ema".

    Returns:
        The folder.

    Raises:
        ConfigError: If something lies there, or the class of the network is not registered.
        CheckpointError: If what guides by default is no longer there.
        OSError: If the disk refuses; nothing half-written stays.
    """
    refuse_taken(folder)
    averaged = str((about or {}).get("weights", "")).startswith("ema")
    name = "ema" if averaged else "model"
    named, default = {name: diffusion.model.state_dict()}, diffusion.sampling_default
    if default is not None and default.guide_by is not None:
        named[PARTNER] = stored_partner(diffusion, default).model.state_dict()
    weights, groups = arranged(named)
    if diffusion.uncertainty is not None:
        groups[UNCERTAINTY] = diffusion.uncertainty.state_dict()
    units = None if diffusion.normalization is None else diffusion.normalization.to_json()
    texts = texts_of_folder(diffusion, groups)
    config = FolderConfig(
        model=describe_for_others(diffusion.model),
        diffusion=diffusion.config,
        class_names=diffusion.class_names,
        weights=weights,
        sampling=None if default is None else portable(default).to_json(),
        normalization=units,
        texts=texts,
    )
    return save_folder(folder, config, groups)
