"""Checkpoints of tqch/ddpm-torch: `cifar10_2040.pt` and the like."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.interop.adam_state import adam_options, adam_step, adam_tensors, is_adam_state
from ddpm_lib.interop.assumed import filled_in, ho_process
from ddpm_lib.interop.given import needed
from ddpm_lib.interop.imported import USUAL_OPTIONS, Imported, Opened, Reader, Weights
from ddpm_lib.interop.level_plans import LevelPlan, config_of, levels_of, reached
from ddpm_lib.interop.renaming import NAMINGS, rename_unet
from ddpm_lib.interop.tensor_dicts import is_weights, refuse_keys, without_prefix
from ddpm_lib.nn import Unet

NAME = "ddpm-torch"
_PARTS = ("model", "optimizer", "ema", "scheduler", "epoch")


def _is_network(value: Any) -> bool:
    if not is_weights(value):
        return False
    return {"in_conv.weight", "embed.0.weight", "out_conv.2.weight"} <= set(_bare(value))


def _bare(weights: Mapping[str, Tensor]) -> Weights:
    """Return the weights without the prefixes of DDP and of the wrapper for block_size > 1."""
    return without_prefix(without_prefix(weights), "_model.")


def recognises(opened: Opened) -> bool:
    """Whether there is a network with its names, alone, as `model` or as the shadow of `ema`."""
    ema = opened.content.get("ema")
    shadow = ema.get("shadow") if isinstance(ema, dict) else None
    return any(map(_is_network, (opened.content, opened.content.get("model"), shadow)))


def read(opened: Opened, given: Mapping[str, Any]) -> Imported:
    """Read `model`, the shadow of `ema` with its decay, Adam's moments and the step; a bare state
    dict is read as trained weights.

    Raises:
        CheckpointError: If something is missing or left over.
        ConfigError: If the size of the images is not given.
    """
    where = str(opened.path)
    content = {"model": opened.content} if _is_network(opened.content) else opened.content
    # What training measured in its last epoch lies beside: loss, fid and other numbers.
    measured = [k for k, v in content.items() if isinstance(v, (int, float))]
    refuse_keys(content, (*_PARTS, *measured), where)
    states = {"model": content.get("model"), "ema": (content.get("ema") or {}).get("shadow")}
    parts = {name: _bare(state) for name, state in states.items() if state}
    needed(given, "image_size", f"{where} does not say how large the images are")
    training, notes = filled_in(given, {"dropout": 0.0}, NAME)
    config = _config(next(iter(parts.values())), where)
    if all("._model." in f".{name}" for name in next(state for state in states.values() if state)):
        config |= _patches(config, notes, where)
    with torch.device("meta"):
        model = Unet(**config, dropout=training["dropout"])

    def rename(state: Weights, what: str) -> Weights:
        return rename_unet(model, state, NAMINGS[NAME], what).weights

    weights = {name: rename(state, f"{name} of {where}") for name, state in parts.items()}
    process, assumed = _process(given, config)
    optim: Any = content.get("optimizer")
    moments: Weights = {}
    if is_adam_state(optim) and "model" in parts:
        moments = adam_tensors(optim, list(parts["model"]), rename, where)
        notes.append(
            "the length of the learning rate's warm-up is not in the file: the rate is constant"
        )
    averages: dict[float | str, Weights] = (
        {_decay(content["ema"], where): weights["ema"]} if "ema" in weights else {}
    )
    settings = adam_options(optim) | {"max_grad_norm": 1.0} if is_adam_state(optim) else {}
    settings |= {"ema_decay": tuple(averages)} if averages else {}
    return Imported(
        source=opened.path,
        format=NAME,
        network="Unet",
        network_config=model.config,
        process=process,
        weights=weights.get("model"),
        averages=averages,
        optimizer=moments,
        step=_step(content),
        training=settings,
        notes=(*assumed, *notes),
    )


def _process(
    given: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the process; None where the network says its own variances, for which ddpm-torch has
    no working process.
    """
    if config["out_channels"] == config["channels"]:
        return ho_process(given, NAME)
    if given.get("variance") == "learned_range":
        return ho_process(given, NAME)
    return None, [
        f"the network has {config['out_channels']} output channels for images of"
        f" {config['channels']}: ddpm-torch cannot sample with learned variances, so the network is"
        " taken alone, without a process"
    ]


def _decay(ema: Mapping[str, Any], where: str) -> float:
    decay = ema.get("decay")
    if not isinstance(decay, float) or not 0 <= decay < 1:
        raise CheckpointError(f"The decay of ema in {where} is no number in [0, 1): {decay!r}.")
    refuse_keys(ema, ("decay", "shadow", "num_updates"), f"ema of {where}")
    return decay


def _step(content: Mapping[str, Any]) -> int:
    """Return the optimizer steps done, which Adam and the scheduler of the rate count."""
    optim: Any = content.get("optimizer")
    scheduler = content.get("scheduler") or {}
    done = adam_step(optim) if is_adam_state(optim) else 0
    return done or int(scheduler.get("last_epoch", 0))


def _config(weights: Weights, where: str) -> dict[str, Any]:
    """Read the arguments of `Unet` off the names and shapes."""
    count = 1 + max(
        (int(m[1]) for m in (re.match(r"downsamples\.level_(\d+)\.", k) for k in weights) if m),
        default=-1,
    )
    blocks: list[tuple[int, bool] | None] = []
    convs = []
    for level in range(count):
        place = f"downsamples.level_{level}"
        here = _blocks(weights, place)
        blocks += [*([None] if level else []), *here]
        if level < count - 1:
            convs.append(f"{place}.{len(here)}.1.weight" in weights)
    levels: list[LevelPlan] = levels_of(blocks, where)
    first: Tensor = reached(weights, "in_conv.weight", where)
    config = config_of(levels, first, where)
    time_dim = len(reached(weights, "embed.0.weight", where))
    return config | {
        "out_channels": len(reached(weights, "out_conv.2.weight", where)),
        "time_dim": None if time_dim == 4 * config["dim"] else time_dim,
        "resample": "conv" if any(convs) or not convs else "pool",
        "norm_eps": 1e-6,
        "time_order": "sin_cos",
        "freq_shift": 1,
        "down_padding": "asymmetric",
    }


def _patches(config: Mapping[str, Any], notes: list[str], where: str) -> dict[str, int]:
    """Return patch size and channels of a network behind a space-to-depth of RGB images."""
    size = math.isqrt(config["channels"] // 3)
    if 3 * size**2 != config["channels"]:
        raise CheckpointError(
            f"The network in {where} lies behind a space-to-depth (block_size) of"
            f" {config['channels']} channels, which RGB images cannot have."
        )
    notes.append(f"block_size {size} is not in the file, but follows from RGB images")
    return {"patch_size": size, "channels": 3, "out_channels": config["out_channels"] // size**2}


def _blocks(weights: Weights, place: str) -> list[tuple[int, bool]]:
    found: list[tuple[int, bool]] = []
    while True:
        path = f"{place}.{len(found)}"
        plain, inner = f"{path}.conv1.weight", f"{path}.0.conv1.weight"
        if plain in weights:
            found.append((len(weights[plain]), False))
        elif inner in weights:
            found.append((len(weights[inner]), True))
        else:
            return found


READER = Reader(
    NAME,
    "NAME_EPOCH.pt of tqch/ddpm-torch, or its network alone",
    recognises,
    read,
    USUAL_OPTIONS,
)
