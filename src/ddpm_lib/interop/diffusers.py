"""Folders of 🤗 diffusers: UNet2DModel with or without a scheduler, averages beside it, and the
checkpoints of its training scripts.

JSON and tensors are read; diffusers itself is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.text import printable
from ddpm_lib.interop.diffusers_optimizer import read_optimizer
from ddpm_lib.interop.diffusers_scheduler import process_of
from ddpm_lib.interop.diffusers_unet import OURS, Network, network_of, present_names
from ddpm_lib.interop.given import needed
from ddpm_lib.interop.imported import USUAL_OPTIONS, Imported, Opened, Reader, Weights
from ddpm_lib.interop.renaming import NAMINGS, refuse, rename_unet
from ddpm_lib.nn import NETWORKS

NAME = "diffusers"
_KEY = "down_blocks.0.resnets.0.conv1.weight"
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_STEM = "diffusion_pytorch_model"
_EMA = {
    *("decay", "min_decay", "optimization_step", "update_after_step"),
    *("use_ema_warmup", "inv_gamma", "power"),
}
"""What an EMAModel writes into the config of the network that it averages."""


def _recognises(opened: Opened) -> bool:
    classes = [config.get("_class_name") for config in opened.configs.values()]
    return (
        any(isinstance(name, str) and name.startswith("UNet") for name in classes)
        or any(_class_of(opened, "model_index.json"))
        or _has_weights(opened.content)
        or any(_has_weights(tensors) for tensors in opened.content.values())
    )


def _class_of(opened: Opened, file: str) -> str:
    name = opened.configs.get(file, {}).get("_class_name")
    return name if isinstance(name, str) else ""


def _has_weights(tensors: Any) -> bool:
    return isinstance(tensors, Mapping) and _KEY in tensors


def _read(opened: Opened, given: Mapping[str, Any]) -> Imported:
    _refuse_other_pipelines(opened)
    notes: list[str] = []
    folder = _folder_of(opened, "unet")
    config, ema = _configs(opened, folder)
    where = f"{opened.path}/{folder}config.json"
    own = opened.configs.get(OURS, {})
    if isinstance(own.get("class_drop_prob"), float):
        given = {"class_drop_prob": own["class_drop_prob"], **given}
    network = network_of(config, where, given, notes)
    try:
        with torch.device("meta"):
            model: Any = NETWORKS[network.name](**network.arguments)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} describes no network: {printable(error)}") from error
    file = str(opened.path / folder)
    weights = _renamed(_weights(opened, folder), model, network, file)
    averages: dict[float | str, Weights] = {}
    if ema:
        averages, trained = {_decay(ema): weights}, None
    else:
        trained = weights
        if any(name.startswith("unet_ema/") for name in opened.configs):
            averages, ema = _averages(opened, config, model, network)
    notes += _ema_notes(ema)
    optimizer, step, training = read_optimizer(
        opened, lambda tensors: _renamed(tensors, model, network, file), notes
    )
    named = own.get("class_names")
    return Imported(
        source=opened.path,
        format=NAME,
        network=network.name,
        network_config=network.arguments,
        process=_process(opened, folder, config, network, given, notes),
        weights=trained,
        averages=averages,
        optimizer=optimizer,
        step=step or _steps(ema),
        training=training | ({"ema_decay": tuple(averages)} if averages else {}),
        class_names=tuple(map(str, named)) if isinstance(named, list) else None,
        notes=tuple(notes),
    )


def _refuse_other_pipelines(opened: Opened) -> None:
    index = opened.configs.get("model_index.json", {})
    parts = [name for name in index if not name.startswith("_") and index[name]]
    further = [name for name in parts if name not in ("unet", "scheduler")]
    if further:
        raise CheckpointError(
            f"{opened.path}/model_index.json has {further[0]!r}: a {_class_of_index(index)} is more"
            " than a network and its noise levels. What can be read is a pipeline of a unet and a"
            " scheduler, such as DDPMPipeline."
        )


def _class_of_index(index: Mapping[str, Any]) -> str:
    return str(index.get("_class_name"))


def _folder_of(opened: Opened, part: str) -> str:
    """Return the folder of the network, with a slash behind; "" for the root itself."""
    inside = f"{part}/"
    if any(name.startswith(inside) for name in [*opened.configs, *opened.content]):
        return inside
    return ""


def _configs(opened: Opened, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config of a network, and the entries of an average in it.

    Raises:
        CheckpointError: If it is missing, or of another class.
    """
    file = f"{folder}config.json"
    config = opened.configs.get(file)
    if config is None:
        raise CheckpointError(
            f"{opened.path} has no {file}, which says what the layers are. Give the folder that"
            " save_pretrained wrote, with config.json beside the weights."
        )
    kind = config.get("_class_name", "UNet2DModel")
    if kind not in ("UNet2DModel", "UNetUnconditionalModel"):
        raise CheckpointError(
            f"{opened.path}/{file} is of a {kind}. What can be read is UNet2DModel."
        )
    ema = {name: value for name, value in config.items() if name in _EMA}
    return {name: value for name, value in config.items() if name not in _EMA}, ema


def _weights(opened: Opened, folder: str) -> dict[str, Tensor]:
    """Return the tensors of a network, of all its shards.

    Raises:
        CheckpointError: If there are none, or several files that could be meant.
    """
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensors in opened.content.items():
        stem = name.removeprefix(folder)
        if not name.startswith(folder) or "/" in stem or not isinstance(tensors, Mapping):
            continue
        group = files.setdefault(_SHARD.sub("", stem), {})
        group.update({k: _float32(v) for k, v in tensors.items() if isinstance(v, Tensor)})
    chosen = files.get(_STEM) or {}
    if not chosen:
        named = [name for name in files if name.startswith(_STEM)]
        if len(named) != 1:
            there = f"several: {', '.join(named)}" if named else "none"
            raise CheckpointError(
                f"{opened.path}/{folder} should hold weights {_STEM}.safetensors or .bin; there"
                f" are {there}."
            )
        chosen = files[named[0]]
    missing = _missing_shards(opened, folder)
    if missing:
        raise CheckpointError(f"{opened.path}/{folder} lacks {', '.join(missing)}.")
    return chosen


def _float32(tensor: Tensor) -> Tensor:
    """Return weights that were stored in half precision as training takes them."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _missing_shards(opened: Opened, folder: str) -> list[str]:
    index = opened.configs.get(f"{folder}{_STEM}.safetensors.index.json", {})
    weight_map = index.get("weight_map")
    files = sorted({str(v) for v in weight_map.values()} if isinstance(weight_map, dict) else ())
    there = {f"{name}.safetensors" for name in opened.content}
    return [file for file in files if f"{folder}{file}" not in there]


def _renamed(weights: Mapping[str, Tensor], model: Any, network: Network, file: str) -> Weights:
    """Bring tensors under our names."""
    state = present_names(weights)
    frequencies = None
    if network.name == "NoiseLevelUnet":
        old = state.pop("time_proj.W", None)
        frequencies = state.pop("time_proj.weight", old)
        if frequencies is None or frequencies.shape != model.time_embedding.frequencies.shape:
            refuse(
                ["time_proj.weight: missing, or of another length than block_out_channels"], file
            )
    renamed = rename_unet(model, state, NAMINGS["diffusers"], file).weights
    if frequencies is not None:
        renamed["time_embedding.frequencies"] = frequencies
    return renamed


def _averages(
    opened: Opened, config: Mapping[str, Any], model: Any, network: Network
) -> tuple[dict[float | str, Weights], dict[str, Any]]:
    """Return the averages in `unet_ema`, and what their config says of them."""
    folder = "unet_ema/"
    other, ema = _configs(opened, folder)
    public = {name: value for name, value in config.items() if not name.startswith("_")}
    differing = [name for name in public if name in other and other[name] != public[name]]
    if differing:
        raise CheckpointError(
            f"{opened.path}/{folder}config.json is of another network than unet/config.json:"
            f" {', '.join(differing)} differ."
        )
    file = str(opened.path / folder)
    return {_decay(ema): _renamed(_weights(opened, folder), model, network, file)}, ema


def _steps(ema: Mapping[str, Any]) -> int:
    steps = ema.get("optimization_step", 0)
    return steps if isinstance(steps, int) and steps > 0 else 0


def _decay(ema: Mapping[str, Any]) -> float | str:
    decay = ema.get("decay")
    return float(decay) if isinstance(decay, (int, float)) else "ema"


def _ema_notes(ema: Mapping[str, Any]) -> list[str]:
    if not ema.get("use_ema_warmup"):
        return []
    return [
        f"The average's warm-up (use_ema_warmup, power {ema.get('power')}) is not carried over:"
        " training on averages with the decay alone."
    ]


def _process(
    opened: Opened,
    folder: str,
    config: Mapping[str, Any],
    network: Network,
    given: Mapping[str, Any],
    notes: list[str],
) -> dict[str, Any] | None:
    """Return the arguments of the process; None for a network that belongs to none of ours."""
    if network.name != "Unet":
        notes.append(
            "time_embedding_type='fourier': the network takes noise levels and belongs to no"
            " process of this library, which counts steps. It is read alone."
        )
        return None
    files = ("scheduler/scheduler_config.json", "scheduler_config.json")
    file = next((name for name in files if name in opened.configs), None)
    channels = network.arguments["channels"]
    outputs = network.arguments["out_channels"] or channels
    if outputs not in (channels, 2 * channels):
        raise CheckpointError(
            f"{opened.path}/{folder}config.json has in_channels={channels} and"
            f" out_channels={outputs}; a process needs as many, or twice as many for a learned"
            " variance."
        )
    scheduler = None if file is None else opened.configs[file]
    where = str(opened.path / (file or "scheduler_config.json"))
    process = process_of(scheduler, where, outputs != channels, given, notes)
    size = given.get("image_size", config.get("sample_size"))
    if size is None:
        size = needed(given, "image_size", f"{opened.path}/{folder}config.json says no sample_size")
    sizes = [size, size] if isinstance(size, int) else list(size)
    return {"image_size": sizes, "channels": channels, **process}


READER = Reader(
    name=NAME,
    reads="folders of diffusers: UNet2DModel with its scheduler, averages, checkpoint-N",
    recognises=_recognises,
    read=_read,
    options=(*USUAL_OPTIONS, "class_drop_prob"),
)
