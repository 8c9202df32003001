"""Optimizers, and learning rates as pure functions of the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.runs import cadences
from ddpm_lib.training.by_length import settled
from ddpm_lib.training.one_pass import KeptAdam, OnePassAdam

if TYPE_CHECKING:
    from ddpm_lib.training.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of optimizer step `step` (0-based): linear warm-up, then the
    schedule down to max_steps.

    >>> from ddpm_lib.training.config import TrainingConfig
    >>> c = TrainingConfig(learning_rate=1.0, warmup_steps=4, max_steps=10, lr_schedule="linear")
    >>> [round(learning_rate(s, c), 2) for s in (0, 3, 4, 7, 10)]
    [0.25, 1.0, 1.0, 0.5, 0.0]
    >>> c = TrainingConfig(learning_rate=1.0, warmup_steps=4, max_steps=20, lr_schedule="wsd")
    >>> [round(learning_rate(s, c), 2) for s in (3, 15, 16, 17, 20)]
    [1.0, 1.0, 1.0, 0.5, 0.0]
    """
    config = settled(config)
    peak, warmup = cast(float, config.learning_rate), cast(int, config.warmup_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    span = max(1, config.max_steps - warmup)
    done = min(1.0, (step - warmup) / span)
    floor = config.final_learning_rate_ratio
    shape = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
        "wsd": 1.0 - math.sqrt(cooled(step, config)),
    }[config.lr_schedule]
    if config.lr_schedule == "constant":
        return peak
    return peak * (floor + (1.0 - floor) * shape)


def cooldown_start(config: TrainingConfig) -> int:
    """Return the step at which wsd begins to cool down, after the warm-up in any case."""
    warmup = cast(int, settled(config).warmup_steps)
    return cadences.cooldown_start(config.max_steps, config.cooldown_fraction, warmup)


def cooled(step: int, config: TrainingConfig) -> float:
    """Return which part of its cool-down wsd has done at a step, 0 … 1.

    The rate falls as 1 − √part, which Hägele et al. (2024, §3) find better than a line.
    """
    start = cooldown_start(config)
    return min(1.0, max(0.0, (step - start) / max(1, config.max_steps - start)))


def make_optimizer(
    model: nn.Module, config: TrainingConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Build Adam, AdamW or Muon over the trainable parameters; vectors (norms, biases, embeddings'
    rows) are not decayed.
    """
    if config.optimizer == "muon":
        return _muon(model, config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("The model has no trainable parameters. Check requires_grad.")
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {
        "lr": cast(float, settled(config).learning_rate),
        "betas": config.adam_betas,
        "eps": config.adam_eps,
        "fused": device.type in ("cpu", "cuda", "xpu"),
        "decoupled_weight_decay": config.optimizer == "adamw",
    }
    cls = OnePassAdam if device.type == "cpu" else KeptAdam
    return cls([g for g in groups if g["params"]], **options)


def _muon(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    from ddpm_lib.training.muon import Muon, takes_muon

    names = set(takes_muon(model))
    trained = [(name in names, p) for name, p in model.named_parameters() if p.requires_grad]
    if not any(orthogonal for orthogonal, _ in trained):
        raise ConfigError(
            f"{option('optimizer', 'muon')} is for weights with at least 16 inputs and outputs, and"
            " this network trains none. Use 'adamw'."
        )
    groups: list[dict[str, Any]] = [
        {
            "params": [p for orthogonal, p in trained if orthogonal],
            "muon": True,
            "weight_decay": config.weight_decay,
        },
        {
            "params": [p for orthogonal, p in trained if not orthogonal and p.ndim >= 2],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for orthogonal, p in trained if not orthogonal and p.ndim < 2]},
    ]
    return Muon(
        [group for group in groups if group["params"]],
        lr=cast(float, settled(config).learning_rate),
        betas=config.adam_betas,
        eps=config.adam_eps,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def state_entries(group: dict[str, Any]) -> tuple[str, ...]:
    """Return what an optimizer keeps of each parameter of a group."""
    from ddpm_lib.training.muon import ADAM_STATE, MUON_STATE

    return MUON_STATE if group.get("muon") else ADAM_STATE


def say_extension(
    config: TrainingConfig, step: int, saved: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Say that a run is extended from weights whose rate was being cooled down.

    Args:
        config: The options.
        step: Of the checkpoint.
        saved: The options it was trained with.
        say: Gets the line.
    """
    steps, fraction = saved.get("max_steps"), saved.get("cooldown_fraction")
    same = saved.get("lr_schedule") == config.lr_schedule == "wsd"
    if not (same and isinstance(steps, int) and isinstance(fraction, float)):
        return
    start = cadences.cooldown_start(steps, fraction, cast(int, settled(config).warmup_steps))
    if start < step < cooldown_start(config):
        say(
            f"Step {step:,} lies in the cool-down that began at step {start:,}: the rate rises to"
            f" its peak again. To extend the run from before it: {option('resume', str(start))}."
        )
