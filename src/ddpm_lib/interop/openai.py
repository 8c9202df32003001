"""Checkpoints of OpenAI's improved-diffusion and guided-diffusion (Nichol & Dhariwal 2021; Dhariwal
& Nichol 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.spelling import option
from ddpm_lib.interop.given import heads_given, needed, refuse_given
from ddpm_lib.interop.imported import Imported, Opened, Reader
from ddpm_lib.interop.openai_files import collect, is_unet, parts_of
from ddpm_lib.interop.openai_moments import read_moments
from ddpm_lib.interop.openai_shapes import Shapes, read_shapes
from ddpm_lib.interop.renaming import NAMINGS, rename_unet
from ddpm_lib.nn import Unet

NAME = "openai"
_OPTIONS = (
    "image_size",
    "timesteps",
    "time_scale",
    "schedule",
    "variance",
    "loss",
    "heads",
    "heads_up",
    "head_dim",
    "attention_order",
    "dropout",
    "low_res_factor",
)


def _recognises(opened: Opened) -> bool:
    return any(is_unet(value) for value in parts_of(opened).values())


def _read(opened: Opened, given: Mapping[str, Any]) -> Imported:
    files = collect(opened)
    shapes, notes = read_shapes(files.any_weights, files.where), list(files.notes)
    network = network_config(shapes, given, notes)
    process = process_config(shapes, given, notes)
    with torch.device("meta"):
        model = Unet(**network)
    naming = NAMINGS[_order_of_channels(shapes, given, network, notes)]

    def renamed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return rename_unet(model, weights, naming, files.where).weights

    weights = None if files.weights is None else renamed(files.weights)
    averages = {decay: renamed(average) for decay, average in files.averages.items()}
    moments = read_moments(files, renamed, notes)
    if weights is not None and not averages:
        notes.append(
            "The weights are those of one file, which does not say whether they are averages."
        )
    return Imported(
        source=opened.path,
        format=NAME,
        network="Unet",
        network_config=network,
        process=process,
        weights=weights,
        averages=averages,
        optimizer=moments.tensors,
        step=moments.step if moments.step is not None else files.step or 0,
        training=moments.training | ({"ema_decay": tuple(averages)} if averages else {}),
        notes=tuple(notes),
    )


def network_config(shapes: Shapes, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the arguments of our `Unet`, with a note for each that the file does not say.

    Args:
        shapes: What the file says.
        given: What the user says.
        notes: Gets the notes.
    """
    timesteps = int(given.get("timesteps", 1000))
    if "time_scale" not in given and timesteps != 1000:
        notes.append(
            f"The network is taken to see t·1000/{timesteps} (rescale_timesteps);"
            f" {option('time_scale', 1.0)} otherwise."
        )
    config: dict[str, Any] = {
        "dim": shapes.dim,
        "dim_mults": shapes.dim_mults,
        "channels": shapes.channels,
        "out_channels": 2 * shapes.channels if shapes.learned_sigma else None,
        "blocks_per_level": shapes.blocks_per_level,
        "attention_levels": shapes.attention_levels,
        "time_conditioning": "scale_shift" if shapes.scale_shift else "add",
        "resample": shapes.resample or "conv",
        "groups": 32,
        "dropout": float(given.get("dropout", 0.0)),
        "time_scale": float(given.get("time_scale", 1000 / timesteps)),
        "num_classes": shapes.num_classes,
        "class_drop_prob": 0.0,
    }
    config |= _heads(shapes, given, notes)
    if shapes.super_resolution:
        factor = given.get("low_res_factor")
        if factor is None:
            factor = 4
            notes.append(
                "The small image is taken to be 4 times smaller, as in the published networks;"
                f" {option('low_res_factor')} says another factor."
            )
        config |= {"low_res_factor": int(factor), "low_res_max_noise": 0.0}
    else:
        refuse_given(given, ("low_res_factor",), "The file is of a network that enlarges nothing")
    return config


def _heads(shapes: Shapes, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the number of attention heads, which no shape shows.

    Raises:
        ConfigError: If it is given in two ways.
    """
    said = heads_given(given)
    if said:
        return said
    widths = [shapes.dim * shapes.dim_mults[level] for level in shapes.attention_levels]
    widths.append(shapes.dim * shapes.dim_mults[-1])
    if shapes.resample == "resblock" and not any(width % 64 for width in widths):
        notes.append(
            "The file does not say the attention heads: taken to have 64 channels each, as in most"
            f" networks of guided-diffusion; {option('heads')} or {option('head_dim')} otherwise."
        )
        return {"head_dim": 64}
    notes.append(
        "The file does not say the attention heads: taken to be 4, their default;"
        f" {option('heads')} or {option('head_dim')} otherwise."
    )
    return {"heads": 4}


def _order_of_channels(
    shapes: Shapes, given: Mapping[str, Any], network: Mapping[str, Any], notes: list[str]
) -> str:
    """Return whose order of the channels of attention the file has."""
    order = given.get("attention_order")
    if order is None:
        widths = [shapes.dim * shapes.dim_mults[level] for level in shapes.attention_levels]
        widths.append(shapes.dim * shapes.dim_mults[-1])
        one_head = all(
            width == network["head_dim"] if "head_dim" in network else network.get("heads") == 1
            for width in widths
        ) and network.get("heads_up") in (None, 1)
        if not one_head:  # with one head both orders are the same
            notes.append(
                "The file does not say the order of attention's channels: taken to be the legacy"
                f" one, their default; {option('attention_order', 'new')} for"
                " use_new_attention_order."
            )
    return "guided-diffusion" if order == "new" else "improved-diffusion"


def process_config(shapes: Shapes, given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the arguments of our `GaussianDiffusion`, with a note for each assumption.

    Args:
        shapes: What the file says.
        given: What the user says.
        notes: Gets the notes.

    Raises:
        CheckpointError: If the network says another variance than is given.
        ConfigError: If the size of the images was not given.
    """
    size = needed(given, "image_size", "Files of OpenAI do not say the size of the images")
    schedule = given.get("schedule", "linear")
    if "schedule" not in given or "timesteps" not in given:
        notes.append(
            "The file does not say the noise levels: taken to be"
            f" {given.get('timesteps', 1000)} of the schedule {schedule}, their default;"
            f" {option('timesteps')} and {option('schedule')} otherwise."
        )
    if shapes.learned_sigma:
        variance = "learned_range"
    else:
        variance = given.get("variance", "fixed_large")
    if variance != given.get("variance", variance):
        raise CheckpointError(
            f"The network's output is that of variance {variance}, not {given['variance']}."
        )
    return {
        "image_size": list(size),
        "channels": shapes.channels,
        "timesteps": int(given.get("timesteps", 1000)),
        "schedule": schedule,
        "parametrization": "eps",
        "weighting": "simple",
        "variance": variance,
        "loss": given.get("loss"),
    }


READER = Reader(
    name=NAME,
    reads="U-Nets of improved-diffusion and guided-diffusion: model*.pt, ema_*.pt, opt*.pt",
    recognises=_recognises,
    read=_read,
    options=_OPTIONS,
)
