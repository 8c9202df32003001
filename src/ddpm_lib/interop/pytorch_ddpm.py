"""Checkpoints of w86763777/pytorch-ddpm, and of DeepSparkHub's variant of it: `ckpt.pt`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError
from ddpm_lib.core.spelling import option
from ddpm_lib.interop.adam_state import adam_options, adam_tensors, is_adam_state
from ddpm_lib.interop.assumed import filled_in, ho_process
from ddpm_lib.interop.given import needed
from ddpm_lib.interop.imported import USUAL_OPTIONS, Imported, Opened, Reader, Weights
from ddpm_lib.interop.level_plans import config_of, levels_of, reached
from ddpm_lib.interop.renaming import NAMINGS, rename_unet
from ddpm_lib.interop.tensor_dicts import is_weights, refuse_keys, without_prefix
from ddpm_lib.nn import Unet
from ddpm_lib.nn.embeddings import sinusoids

NAME = "pytorch-ddpm"
_TABLE = "time_embedding.timembedding.0.weight"
_ROUNDING = 2e-3
_PARTS = ("net_model", "ema_model", "sched", "optim", "step", "x_T")


def _is_network(value: Any) -> bool:
    return is_weights(value) and {_TABLE, "head.weight", "tail.2.weight"} <= set(
        without_prefix(value)
    )


def recognises(opened: Opened) -> bool:
    """Whether there is a network with a table of sinusoids, alone or in its place of a
    checkpoint.
    """
    return any(map(_is_network, (opened.content, *map(opened.content.get, _PARTS[:2]))))


def read(opened: Opened, given: Mapping[str, Any]) -> Imported:
    """Read `net_model`, `ema_model`, Adam's moments and the step; a bare state dict is read as
    trained weights.

    Raises:
        CheckpointError: If something is missing or left over.
        ConfigError: If the size of the images is neither in the file nor given.
    """
    where = str(opened.path)
    content = {"net_model": opened.content} if _is_network(opened.content) else opened.content
    refuse_keys(content, _PARTS, where)
    parts = {name: without_prefix(content[name]) for name in _PARTS[:2] if content.get(name)}
    first = next(iter(parts.values()))
    tables = [_table(weights, where) for weights in parts.values()]
    said = _said(content, len(tables[0]), where)
    if "image_size" not in {**said, **given}:
        needed(given, "image_size", f"{where} does not say how large the images are")
    training, notes = filled_in(given, {"dropout": 0.1, "ema_decay": 0.9999}, NAME)
    config = {**_config(first, where), "dropout": training["dropout"]}
    with torch.device("meta"):
        model = Unet(**config)
    if "ema_model" not in parts:
        notes = [note for note in notes if "ema_decay" not in note]
        if "ema_decay" in given:
            notes.append(f"there is no average in the file: {option('ema_decay')} is not used")

    def rename(state: Weights, what: str) -> Weights:
        return rename_unet(model, state, NAMINGS[NAME], what).weights

    weights = {
        name: rename({k: v for k, v in state.items() if k != _TABLE}, f"{name} of {where}")
        for name, state in parts.items()
    }
    process, assumed = ho_process({**said, **given}, NAME)
    if given.get("timesteps", len(tables[0])) != len(tables[0]):
        assumed.append(f"timesteps: {given['timesteps']} as given; the file has {len(tables[0])}")
    optim: Any = content.get("optim")
    moments: Weights = {}
    if is_adam_state(optim) and "net_model" in parts:
        names = list(parts["net_model"])
        moments = adam_tensors(optim, names, functools.partial(_moments, rename), where)
        notes.append(
            "the length of the learning rate's warm-up is not in the file: the rate is constant"
        )
    average = weights.get("ema_model")
    decay = float(training["ema_decay"])
    settings = adam_options(optim) | {"max_grad_norm": 1.0} if is_adam_state(optim) else {}
    settings |= {} if average is None else {"ema_decay": (decay,)}
    return Imported(
        source=opened.path,
        format=NAME,
        network="Unet",
        network_config=model.config,
        # Its sampler clips the finished images alone, not what is predicted on the way.
        process=process | {"clip": "none"},
        weights=weights.get("net_model"),
        averages={} if average is None else {decay: average},
        optimizer=moments,
        step=_step(content.get("step")),
        training=settings,
        notes=(*assumed, *notes),
    )


def _step(index: Any) -> int:
    """Return the steps done: the file has the number of the last one, counted from 0."""
    return 0 if index is None else int(index) + 1


def _moments(rename: Any, state: Weights, what: str) -> Weights:
    # Adam has no state of the table, which is not trained.
    renamed: Weights = rename({k: v for k, v in state.items() if k != _TABLE}, what)
    return renamed


def _said(content: Mapping[str, Any], levels: int, where: str) -> dict[str, Any]:
    """Return what the file says of the process: T, and the size by the noise of its grids."""
    noise = content.get("x_T")
    if noise is None:
        return {"timesteps": levels}
    if not isinstance(noise, Tensor) or noise.ndim != 4:
        raise CheckpointError(f"x_T in {where} is no batch of noise.")
    return {"timesteps": levels, "image_size": tuple(noise.shape[2:])}


def _table(weights: Weights, where: str) -> Tensor:
    """Return the table of sinusoids, whose rows are our own but for rounding: frequencies in
    float32, times t; and in averages the drift of a constant that was averaged in float32.

    Raises:
        CheckpointError: If it is another.
    """
    table = weights[_TABLE]
    if table.ndim == 2 and table.shape[1] % 2 == 0 and len(table) > 1:
        ours = sinusoids(torch.arange(len(table)).double(), table.shape[1], "interleaved")
        if (ours - table).abs().max() < _ROUNDING:
            return table
    raise CheckpointError(f"{_TABLE} in {where} is not the table of sinusoids of {NAME}.")


def _config(weights: Weights, where: str) -> dict[str, Any]:
    """Read the arguments of `Unet` off the shapes."""
    blocks: list[tuple[int, bool] | None] = []
    while True:
        path = f"downblocks.{len(blocks)}"
        if f"{path}.main.weight" in weights:
            blocks.append(None)  # a change of resolution
        elif f"{path}.block1.2.weight" in weights:
            width = len(weights[f"{path}.block1.2.weight"])
            blocks.append((width, f"{path}.attn.proj.weight" in weights))
        else:
            break
    levels = levels_of(blocks, where)
    config = config_of(levels, reached(weights, "head.weight", where), where)
    return config | {
        "out_channels": len(reached(weights, "tail.2.weight", where)),
        "time_order": "interleaved",
    }


READER = Reader(
    NAME,
    "ckpt.pt of w86763777/pytorch-ddpm and DeepSparkHub, or its network alone",
    recognises,
    read,
    (*USUAL_OPTIONS, "ema_decay"),
)
