"""What the options of training may be, alone and together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.runs.cadences import AUTO
from ddpm_lib.training.option_values import divisors, wanted_kind

_AT_LEAST = {
    "max_steps": 1,
    "accumulation_steps": 1,
    "warmup_steps": 0,
    "patience": 1,
    "val_every": 0,
    "val_max_images": 1,
    "log_every": 1,
    "save_every": 1,
    "keep_last": 2,
    "sample_every": 0,
    "sample_count": 1,
    "sample_steps": 1,
    "seed": 0,
    "max_nonfinite": 1,
    "posthoc_every": 1,
    "max_pixels": 1,
}
_POSITIVE = (
    "learning_rate",
    "adam_eps",
    "max_grad_norm",
    "max_hours",
    "ema_power",
    "cache_limit_mb",
    "process_timeout_minutes",
    "stall_minutes",
)


def check_ranges(options: Mapping[str, Any]) -> None:
    """Refuse a number that is out of range.

    Args:
        options: All fields of `TrainingConfig` by name, of the right types.

    Raises:
        ConfigError: Saying what the range is.
    """
    at_least = {**_AT_LEAST, "batch_size": 1}
    for name, least in at_least.items():
        if options[name] != AUTO and options[name] < least:
            raise ConfigError(f"{name} must be at least {least}; got {options[name]}.")
    for name in _POSITIVE:
        value = options[name]
        if value not in (None, "auto") and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} must be a positive finite number; got {value}.")
    for name in ("shards", "keep_every"):
        value = options[name]
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1 or none; got {value}.")
    if options["num_workers"] is not None and options["num_workers"] < 0:
        raise ConfigError(
            f"{option('num_workers')} must be 0 or more; got {options['num_workers']}. 0 decodes in"
            " the main"
            " process."
        )
    if not 0 <= options["val_fraction"] < 1:
        raise ConfigError(
            f"{option('val_fraction')} must lie in [0, 1); got {options['val_fraction']}."
        )
    if not 0 <= options["augment"] <= 1:
        raise ConfigError(
            f"augment must lie in [0, 1]; got {options['augment']}. Karras et al. use 0.12 … 0.15."
        )
    if not 0 <= options["final_learning_rate_ratio"] <= 1:
        raise ConfigError(
            f"{option('final_learning_rate_ratio')} must lie in [0, 1]; got"
            f" {options['final_learning_rate_ratio']}."
        )
    if not 0 < options["cooldown_fraction"] <= 1:
        raise ConfigError(
            f"{option('cooldown_fraction')} must lie in (0, 1]; got {options['cooldown_fraction']}."
            " 0.1 to 0.2 is usual."
        )
    for name in ("weight_decay", "pull_to_start"):
        value = options[name]
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name} must be 0 or more; got {value}.")
    for name in ("ema_decay", "adam_betas"):
        for value in () if options[name] == "auto" else options[name]:
            if not 0 <= value < 1:
                raise ConfigError(f"{name} must lie in [0, 1); got {value}.")


def check_together(options: Mapping[str, Any]) -> None:
    """Refuse options that contradict each other; see `check_ranges`."""
    if not all(0 < s < 0.288 for s in options["posthoc_ema"]) or len(
        set(options["posthoc_ema"])
    ) < len(options["posthoc_ema"]):
        raise ConfigError(
            f"{option('posthoc_ema')} must be different numbers between 0 and 0.288; got"
            f" {list(options['posthoc_ema'])}."
        )
    decays = options["ema_decay"]
    if decays != "auto" and len(set(decays)) != len(decays):
        raise ConfigError(
            f"{option('ema_decay')} names the same decay twice: {options['ema_decay']}."
        )
    size = options["batch_size"]
    if size != "auto" and size % options["accumulation_steps"]:
        raise ConfigError(
            f"{option('batch_size')} {size} is not divisible by {option('accumulation_steps')}"
            f" {options['accumulation_steps']}. Accumulation steps that fit: {divisors(size)}."
        )
    if size != "auto" and options["shards"] and size % options["shards"]:
        raise ConfigError(
            f"{option('batch_size')} {size} is not divisible by shards {options['shards']}. Shards"
            " that fit:"
            f" {divisors(size)}."
        )
    save_every = options["save_every"]
    if options["keep_every"] and save_every != AUTO and options["keep_every"] % save_every:
        near = save_every * max(1, round(options["keep_every"] / save_every))
        raise ConfigError(
            f"{option('keep_every')} {options['keep_every']} is not a multiple of"
            f" {option('save_every')} {save_every}, so those steps are not saved. Set"
            f" {option('keep_every', near)}."
        )
    wanted_kind(options["resume"])
    if options["init_weights"] != "auto" and options["init_from"] is None:
        raise ConfigError(
            f"{option('init_weights', options['init_weights'])} chooses among the weights of"
            f" {option('init_from')}, which"
            " is not given. Give both or neither."
        )
    if options["val_condition"] and options["val_data"] is None:
        raise ConfigError(
            f"{option('val_condition')} says where the conditions of {option('val_data')} are,"
            f" which is not given. Give {option('val_data')}, or leave it out."
        )
    if options["val_data"] is not None and options["val_every"] == 0:
        raise ConfigError(
            f"{option('val_data')} is given but {option('val_every')} is 0, so it would never"
            f" be used. Set {option('val_every')} or"
            f" drop {option('val_data')}."
        )
