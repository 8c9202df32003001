"""What options mean that follow from a run: from its data, or from what it was started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ddpm_lib.runs.cadences import AUTO, MOST, SMALL, early_steps
from ddpm_lib.training.by_length import settled
from ddpm_lib.training.callbacks.base import Callback
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.optim import cooldown_start

_BEFORE = {**MOST, "keep_best": None, "keep_early": "no"}
"""Options that are "auto" by default, and what they were before they could be."""


def as_begun(config: TrainingConfig, saved: Mapping[str, Any]) -> TrainingConfig:
    """Return the options of a run that goes on: what is "auto" stays what its checkpoint says, so
    that a run which was told a cadence, or is older than "auto", keeps its own.

    Args:
        config: The options.
        saved: Those that the checkpoint holds.
    """
    found: dict[str, Any] = {
        name: saved.get(name, before)
        for name, before in _BEFORE.items()
        if getattr(config, name) == AUTO
    }
    return replace(config, **found)


def best_metric(config: TrainingConfig, images: int, validated: bool) -> str | None:
    """Return the metric whose best checkpoint is kept, None for none.

    Args:
        config: The options.
        images: Training images.
        validated: Whether there are held-out images.
    """
    if config.keep_best != AUTO:
        return config.keep_best
    return "val_loss" if validated and config.cadences.val_every and images < SMALL else None


def early(config: TrainingConfig, images: int) -> tuple[int, ...]:
    """Return the early steps whose checkpoints are kept; see `best_metric`."""
    wanted = config.keep_early == "yes" or (config.keep_early == AUTO and images < SMALL)
    return early_steps(config.max_steps) if wanted else ()


def keepers(config: TrainingConfig, images: int, validated: bool) -> list[Callback]:
    """Return the callbacks that keep checkpoints unasked, or for the options `keep_best`,
    `keep_early` and `stop_when`; see `best_metric`.
    """
    from ddpm_lib.training.callbacks.best import KeepBest, KeepEarly, KeepUncopied

    found: list[Callback] = []
    steps, metric = early(config, images), best_metric(config, images, validated)
    if steps:
        found.append(KeepEarly(steps))
    if metric is not None:
        begin = steps[0] if config.keep_best == AUTO and steps else 0
        found.append(KeepBest(metric, begin))
    if "copying" in config.stop_when:
        found.append(KeepUncopied())
    return found


def kept_for_good(config: TrainingConfig, images: int, validated: bool) -> int:
    """Return how many checkpoints are kept besides the newest; see `best_metric`. One of them is
    that before a cool-down.
    """
    best = best_metric(config, images, validated) is not None
    start = cooldown_start(config)
    cools = settled(config).lr_schedule == "wsd" and 0 < start < config.max_steps
    uncopied = "copying" in config.stop_when
    return len({*early(config, images), *[start] * cools}) + best + uncopied
