"""Optimizers, and learning rates as pure functions of the optimizer step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from ddpm_lib.training.by_length import settled

if TYPE_CHECKING:
    from ddpm_lib.training.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of optimizer step `step` (0-based): linear warm-up, then the
    schedule down to max_steps.

    >>> from ddpm_lib.training.config import TrainingConfig
    >>> c = TrainingConfig(learning_rate=1.0, warmup_steps=4, max_steps=10, lr_schedule="linear")
    >>> [round(learning_rate(s, c), 2) for s in (0, 3, 4, 7, 10)]
    [0.25, 1.0, 1.0, 0.5, 0.0]
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
    }[config.lr_schedule]
    if config.lr_schedule == "constant":
        return peak
    return peak * (floor + (1.0 - floor) * shape)


def make_optimizer(
    model: nn.Module, config: TrainingConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Build Adam or AdamW over the trainable parameters; vectors (norms, biases, embeddings' rows)
    are not decayed.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("The model has no trainable parameters. Check requires_grad.")
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    fused = device.type in ("cpu", "cuda")
    return cls(
        [g for g in groups if g["params"]],
        lr=cast(float, settled(config).learning_rate),
        betas=config.adam_betas,
        eps=config.adam_eps,
        fused=fused,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
