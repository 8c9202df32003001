"""From data, device and hours to a plan: a look at the images, a few timed steps, the rules."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.core.validation import unknown_options
from ddpm_lib.data.survey import survey
from ddpm_lib.process.presets import PROCESS_PRESETS
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.planning import plan_rules as rules
from ddpm_lib.training.planning.deciding import Deciding
from ddpm_lib.training.planning.plan_file import Plan

LEAST_HOURS = 0.01
"""Below that a plan would be longer than the training."""


def plan(
    data: Any,
    *,
    hours: float = 2.0,
    purpose: str = "samples",
    log: Callable[[str], None] | None = None,
    **given: Any,
) -> Plan:
    """Plan a training: look at the images, time a few steps on this machine, and set what suits
    both, each setting with its reason.

    Args:
        data: What `Trainer` takes.
        hours: How long the training may take.
        purpose: "samples" for good pictures, "likelihood" for few bits per dimension.
        log: Gets lines on what is done.
        **given: Settings that are fixed, and planned around: options of `TrainingConfig`,
            image_size, channels, preset, class_conditional, and model and diffusion with options of
            `Unet` and `GaussianDiffusion`.

    Returns:
        The plan: print it, save it as run.yaml, or train with `plan(…).trainer().train()`.

    Raises:
        ConfigError: For unknown, impossible or contradictory settings.
        ValueError, OSError: For data that cannot be used.

    Example:
        >>> plan = ddpm_lib.plan("path/to/images", hours=2)                   # doctest: +SKIP
        >>> print(plan)                                                       # doctest: +SKIP
        >>> plan.trainer(output_dir="runs/mine").train()                      # doctest: +SKIP
    """
    return planned(data, hours, purpose, given, log or (lambda line: None))


def planned(
    data: Any,
    hours: float,
    purpose: str,
    given: Mapping[str, Any],
    say: Callable[[str], None],
    began: float | None = None,
) -> Plan:
    """Plan a training; see `plan`.

    Args:
        data: What `Trainer` takes.
        hours: How long the training may take.
        purpose: What it is for.
        given: Settings that are fixed, by name, those of groups as `model.dim` or as a mapping.
        say: Gets lines on what is done.
        began: Since when the hours count, by `time.monotonic()`; None: from the training on.
    """
    fixed = checked(hours, purpose, given)
    say("looking at the images …")
    start = time.monotonic()
    seen = survey(data, **reading(fixed))
    found = Deciding(data, seen, hours, purpose, fixed, say, began)
    found.decide_all()
    say(f"planned in {time.monotonic() - start:.0f} s")
    return Plan(
        data,
        found.ordered(),
        seen,
        found.cost,
        hours,
        purpose,
        found.images,
        found.budget.whole(found.steps, found.cost),
        found.notes(),
    )


def checked(hours: Any, purpose: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given, flattened to dotted names.

    Raises:
        ConfigError: For what cannot be planned.
    """
    if isinstance(hours, bool) or not isinstance(hours, int | float) or not hours >= LEAST_HOURS:
        raise ConfigError(
            f"{option('hours')} must be a number of at least {LEAST_HOURS}; got {hours!r}. It is"
            " how long the training may take: 2, or 0.5 for half an hour."
        )
    if not math.isfinite(hours):
        raise ConfigError(f"{option('hours')} must be a finite number; got {hours!r}.")
    if purpose not in rules.PURPOSES:
        raise ConfigError(unknown_name("purpose", purpose, rules.PURPOSES))
    fixed: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("model", "diffusion") and isinstance(value, Mapping):
            fixed |= {f"{name}.{inner}": one for inner, one in value.items()}
        else:
            fixed[name] = value
    known = ["image_size", "channels", "preset", "class_conditional", "model", "diffusion"]
    plain = {name for name in fixed if "." not in name}
    unknown_options(plain, [*TrainingConfig.__dataclass_fields__, *known], "plan")
    if fixed.get("preset") in PROCESS_PRESETS:
        raise ConfigError(
            f"{option('preset', fixed['preset'])} is a published run with a process of its own, so"
            " that nothing is left to plan. Train with it as it is; `ddpm estimate` says how long"
            " that takes."
        )
    for name in ("init_from", "max_hours"):
        if fixed.get(name) is not None:
            raise ConfigError(_NOT_PLANNED[name])
    return fixed


_NOT_PLANNED = {
    "init_from": (
        "A plan chooses a network, and trained weights have one already. Train with init_from and"
        " without a plan; `ddpm estimate` says how long it takes."
    ),
    "max_hours": "hours is the limit of a plan; leave max_hours out.",
}


def reading(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the fixed options that say how data are read."""
    names = (
        "labels",
        "image_column",
        "label_column",
        "split",
        "files",
        "data_root",
        "download",
        "on_bad_image",
        "background",
        "max_pixels",
        "value_range",
        "frames",
        "normalize",
        "slice_axis",
        "channels",
    )
    found = {name: fixed[name] for name in names if fixed.get(name) is not None}
    if fixed.get("condition"):
        found["conditions"] = fixed["condition"]
    size = fixed.get("image_size")
    if size is not None:
        found["image_size"] = tuple(size) if isinstance(size, list | tuple) else (size,)
    return found
