"""Checkpoints of lucidrains' denoising-diffusion-pytorch: `model-N.pt` of its Trainer, and state
dicts of its GaussianDiffusion and of its Unet alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core.errors import CheckpointError, ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import short
from ddpm_lib.interop.given import needed
from ddpm_lib.interop.imported import Imported, Opened, Reader, Weights
from ddpm_lib.interop.lucidrains_moments import read_moments
from ddpm_lib.interop.lucidrains_network import (
    is_unet,
    network_config,
    refuse_odd_values,
    refuse_other_networks,
    to_our_names,
)
from ddpm_lib.interop.lucidrains_process import BUFFERS, process_config
from ddpm_lib.interop.renaming import refuse, shape_problems
from ddpm_lib.nn import LucidrainsUnet
from ddpm_lib.nn.strict import check_finite

NAME = "lucidrains"
_ENTRIES = {"step", "model", "opt", "ema", "scaler", "version"}
_EMA_DECAY = 0.9995
"""Per step: 0.995 at every tenth step, the defaults of its Trainer."""
_OPTIONS = (
    "image_size",
    "channels",
    "timesteps",
    "schedule",
    "schedule_options",
    "parametrization",
    "heads",
    "head_dim",
    "dropout",
    "class_drop_prob",
    "time_features",
    "time_base",
    "ema_decay",
)


@dataclass(frozen=True)
class _Parts:
    """What lies in a file.

    Attributes:
        network: Trained weights of the network by its own names.
        buffers: Tables of its GaussianDiffusion; none beside a network alone.
        average: Averaged weights, None where there are none.
        optimizer: Of torch's Adam, None where there is none.
        step: Optimizer steps done.
        notes: What cannot be carried over.
    """

    network: dict[str, Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] | None = None
    optimizer: Mapping[str, Any] | None = None
    step: int = 0
    notes: tuple[str, ...] = ()


def _network_of(state: object) -> dict[str, Any] | None:
    """Return the network's tensors in the state dict of a process, None where it is none."""
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        return None
    inner = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    return inner if is_unet(inner) else None


def _recognises(opened: Opened) -> bool:
    content = opened.content
    found = is_unet(content), _network_of(content), _network_of(content.get("model"))
    return any(part for part in found)


def _parts_of(opened: Opened) -> _Parts:
    content = opened.content
    where = str(opened.path)
    if is_unet(content):
        return _Parts(content)
    if _network_of(content) is not None:
        return _Parts(*_split(content, where))
    more = [name for name in content if name not in _ENTRIES]
    if more:
        raise CheckpointError(
            f"{where} holds besides what denoising-diffusion-pytorch saves:"
            f" {short(', '.join(map(str, more)))}."
        )
    network, buffers = _split(content["model"], where)
    step = content.get("step", 0)
    step = step.item() if isinstance(step, Tensor) and step.numel() == 1 else step
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        what = f"a tensor of {step.numel()} values" if isinstance(step, Tensor) else short(step)
        raise CheckpointError(f"{where} is at the step {what}, which is no number of steps.")
    notes = []
    if content.get("scaler") is not None:
        notes.append(
            "The state of the gradient scaler (fp16) is not carried over; it finds itself."
        )
    average = _average(content.get("ema"), set(content["model"]), where)
    return _Parts(network, buffers, average, content.get("opt"), step, tuple(notes))


def _split(state: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide the state dict of its GaussianDiffusion into the network and the tables."""
    network = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    buffers = {k: v for k, v in state.items() if k in BUFFERS}
    more = [name for name in state if name not in buffers and not str(name).startswith("model.")]
    refuse([f"left over: {name}" for name in more], where)
    if "betas" not in buffers:
        refuse(["missing: betas"], where)
    return network, buffers


def _average(ema: object, names: set[str], where: str) -> dict[str, Tensor] | None:
    """Return the averaged network in the state of ema-pytorch, which also holds the tensors `names`
    of the trained process once more.
    """
    if ema is None:
        return None
    if not isinstance(ema, Mapping):
        raise CheckpointError(f"{where}: the entry 'ema' is no state of ema-pytorch.")
    average = {
        k.removeprefix("ema_model."): v
        for k, v in ema.items()
        if isinstance(k, str) and k.startswith("ema_model.")
    }
    known = {"initted", "step"} | {f"ema_model.{name}" for name in average}
    known |= {f"online_model.{name}" for name in names | average.keys()}
    more = [name for name in ema if name not in known]
    refuse([f"left over: ema.{name}" for name in more], where)
    average, _ = _split(average, where)
    return average


def _renamed(state: Mapping[str, Tensor], model: LucidrainsUnet, where: str) -> Weights:
    """Return weights by our names, after a comparison with the network."""
    refuse_odd_values(state, where)
    weights = to_our_names(state)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"missing: {name}" for name in shapes if name not in weights]
    problems += [f"left over: {name}" for name in weights if name not in shapes]
    fitting = {name: tensor for name, tensor in weights.items() if name in shapes}
    refuse(problems + shape_problems(fitting, shapes), where)
    check_finite(weights, where, "It cannot be read.")
    return weights


def _read(opened: Opened, given: Mapping[str, Any]) -> Imported:
    parts, where = _parts_of(opened), str(opened.path)
    notes = list(parts.notes)
    refuse_odd_values(parts.network, where)
    refuse_other_networks(parts.network, where)
    config = network_config(to_our_names(parts.network), given, notes, where)
    with torch.device("meta"):
        model = LucidrainsUnet(**config)
    weights = _renamed(parts.network, model, where)
    process = process_config(model, parts.buffers, given, notes, where)
    if process is not None:
        size = needed(given, "image_size", f"{where} does not say the size of its images")
        try:
            model.check_size(size)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        process = {"image_size": list(size), **process}
    moments = read_moments(parts.optimizer, parts.network, where, notes)
    averages: dict[float | str, Weights] = {}
    if parts.average is not None:
        decay = float(given.get("ema_decay", _EMA_DECAY))
        if "ema_decay" not in given:
            notes.append(
                "The file does not say the decay of the average: taken to be 0.995 at every tenth"
                f" step, the default, which is {decay} per step; {option('ema_decay')} otherwise."
            )
        averages[decay] = _renamed(parts.average, model, where)
    elif "ema_decay" in given:
        notes.append(f"There is no average in the file: {option('ema_decay')} is not used.")
    training = dict(moments.training)
    if averages:
        training["ema_decay"] = tuple(averages)
    return Imported(
        source=opened.path,
        format=NAME,
        network="LucidrainsUnet",
        network_config=model.config,
        process=process,
        weights=weights,
        averages=averages,
        optimizer=moments.tensors,
        step=parts.step,
        training=training,
        notes=tuple(notes),
    )


READER = Reader(
    name=NAME,
    reads="denoising-diffusion-pytorch 1.8 and later: model-N.pt of its Trainer, state dicts",
    recognises=_recognises,
    read=_read,
    options=_OPTIONS,
)
