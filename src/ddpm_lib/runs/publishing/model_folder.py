"""A checkpoint of a run as a pretrained folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.hub import MAX_SHARD_SIZE, PARTNER
from ddpm_lib.core.hub.folder import UNCERTAINTY, arranged, save_folder
from ddpm_lib.core.hub.folder_config import FolderConfig, check_weights_name
from ddpm_lib.core.text import short
from ddpm_lib.nn.networks import describe_for_others
from ddpm_lib.process.pretrained import portable, texts_of_folder
from ddpm_lib.process.sampling import stored_partner
from ddpm_lib.runs.checkpoint import VerifiedCheckpoint
from ddpm_lib.runs.loading import LoadedRun, load_checkpoint


def load_first(checkpoint: VerifiedCheckpoint, wanted: Sequence[str]) -> LoadedRun:
    """Load a checkpoint with the weights that `from_pretrained` is to give.

    Args:
        checkpoint: The verified checkpoint.
        wanted: Names of weights, the first of which counts: "ema", "ema:0.999", "model"; empty for
            the first average, or the trained weights where none was kept.

    Raises:
        CheckpointError: If the network is one that only Python code can build, or a file is
            damaged.
        ConfigError: For a wrong name, or weights that were not kept.
    """
    name = wanted[0] if wanted else ("ema" if checkpoint.state.ema_decay else "model")
    if check_weights_name(name) == "model":
        return load_checkpoint(checkpoint, "model")
    return load_checkpoint(checkpoint, "ema", _decay(checkpoint, name))


def write_model_folder(
    checkpoint: VerifiedCheckpoint, loaded: LoadedRun, folder: Path, wanted: Sequence[str]
) -> dict[str, str]:
    """Write a checkpoint's weights as a pretrained folder.

    Args:
        checkpoint: The verified checkpoint.
        loaded: It with the first of the weights, see `load_first`.
        folder: Where; it must not exist.
        wanted: As for `load_first`.

    Returns:
        What the weights are, by their names in config.json: {"ema": "ema 0.9999"}.

    Raises:
        ConfigError: For a wrong name, or weights that were not kept.
        OSError: If the disk refuses.
    """
    process = loaded.diffusion
    first: Mapping[str, Tensor] = process.model.state_dict()
    named: dict[str, Mapping[str, Tensor]] = {}
    labels: dict[str, str] = {}
    for name in wanted or [loaded.weights.split(" ")[0]]:
        if not named:
            tensors, label = first, loaded.weights
        else:
            more = load_first(checkpoint, [name])
            tensors, label = more.diffusion.model.state_dict(), more.weights
        named[name], labels[name] = tensors, label
    default = process.sampling_default
    if default is not None and default.guide_by is not None:
        named[PARTNER] = stored_partner(process, default).model.state_dict()
        labels[PARTNER] = f"what guides: {default.guide_by}"
    weights, groups = arranged(named)
    if process.uncertainty is not None:
        groups[UNCERTAINTY] = process.uncertainty.state_dict()
    texts = texts_of_folder(process, groups)
    config = FolderConfig(
        model=describe_for_others(process.model),
        diffusion=process.config,
        class_names=process.class_names,
        weights=weights,
        sampling=None if default is None else portable(default).to_json(),
        normalization=None if process.normalization is None else process.normalization.to_json(),
        texts=texts,
    )
    save_folder(folder, config, groups, MAX_SHARD_SIZE)
    return labels


def _decay(checkpoint: VerifiedCheckpoint, name: str) -> Any:
    """Return the decay that "ema:0.999" names, or the label of an average that has one; None for
    "ema": the first.
    """
    text = name.partition(":")[2]
    if not text:
        return None
    if text in checkpoint.state.ema_decay:
        return text
    try:
        return float(text)
    except ValueError:
        kept = ", ".join(f"ema:{decay}" for decay in checkpoint.state.ema_decay) or "none"
        raise ConfigError(
            f"weights names an average by its decay; got {short(name)}. Kept: {kept}."
        ) from None
