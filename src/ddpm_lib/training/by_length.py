"""Options that follow the length of a run where nobody names them: rate, its shape, warm-up,
averages.

A short run learns with a higher rate, and forgets its beginning sooner; the rate falls to zero in
the last fifth of any. What is chosen is a function of `max_steps`, the same in Python and on the
command line; a run that goes on keeps what it began with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.validation import check_type

if TYPE_CHECKING:
    from ddpm_lib.training.config import TrainingConfig

OPEN = ("learning_rate", "lr_schedule", "warmup_steps", "ema_decay")
"""Options that are "auto" until the run is prepared."""

USUAL_RATE, USUAL_STEPS, HIGHEST_RATE = 2e-4, 75_000, 2e-3
"""The rate of Ho et al. 2020's CIFAR-10 run is right for a long training; one of N steps takes
√(75,000/N) times as much, at most 2e-3."""
PARTS = (30, 10, 100)
"""Averages cover these parts of the run's steps, 1/30 of them first."""
SHORTEST = 2.0
"""Steps that an average covers at least."""


def rate_of(steps: int) -> float:
    """Return the peak learning rate of a run.

    >>> rate_of(75_000), rate_of(900), rate_of(100)
    (0.0002, 0.0018, 0.002)
    """
    rate = min(HIGHEST_RATE, USUAL_RATE * math.sqrt(USUAL_STEPS / steps))
    return float(f"{rate:.2g}")


def decays_of(steps: int) -> tuple[float, ...]:
    """Return the decays of the averages of a run, the first being the one to use.

    >>> decays_of(900), decays_of(75_000), decays_of(10)
    ((0.967, 0.989, 0.89), (0.9996, 0.99987, 0.9987), (0.5,))
    """
    found: list[float] = []
    for part in PARTS:
        rest = f"{1.0 / max(SHORTEST, steps / part):.2g}"
        decay = round(1.0 - float(rest), 12)
        if decay not in found:
            found.append(decay)
    return tuple(found)


def settled(config: TrainingConfig, saved: Mapping[str, Any] | None = None) -> TrainingConfig:
    """Return the options with values in the place of "auto".

    Args:
        config: The options.
        saved: The options of the run that goes on; None for a run that begins.
    """
    still = [name for name in OPEN if getattr(config, name) == "auto"]
    if not still:
        return config
    steps = config.max_steps
    chosen: dict[str, Any] = {
        "learning_rate": rate_of(steps),
        "lr_schedule": "wsd",
        "warmup_steps": min(500, steps // 20),
        "ema_decay": decays_of(steps),
    }
    if config.init_from is not None or saved is not None:
        # Trained weights are to be kept: what suits a beginning would take them apart.
        chosen |= {"learning_rate": USUAL_RATE, "lr_schedule": "constant"}
    if saved is not None:
        chosen |= _kept(saved)
    return replace(config, **{name: chosen[name] for name in still})


def averages_are_open(config: TrainingConfig, saved: Mapping[str, Any] | None) -> bool:
    """Say whether the average to use is chosen at the end of a run: nobody has named any.

    Args:
        config: The options, before `settled`.
        saved: The options of the run that goes on; None for a run that begins.
    """
    if config.ema_decay != "auto" or saved is None:
        return config.ema_decay == "auto"
    steps, decays = saved.get("max_steps"), saved.get("ema_decay")
    if not isinstance(steps, int) or steps < 1 or not isinstance(decays, list | tuple):
        return False
    return set(decays) == set(decays_of(steps))


def _kept(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run began with, as far as its checkpoint says so."""
    kinds: dict[str, Any] = {
        "learning_rate": float,
        "lr_schedule": str,
        "warmup_steps": int,
        "ema_decay": tuple[float, ...],
    }
    found = {}
    for name, kind in kinds.items():
        if saved.get(name) not in (None, "auto"):
            try:
                found[name] = check_type(name, saved[name], kind)
            except ConfigError:
                continue  # a label instead of a decay: what was synthesised is no average to go on
    return found


def number_of_averages(config: TrainingConfig) -> int:
    """Return how many averages of the weights a run keeps."""
    return len(settled(config).ema_decay)


def _length(steps: float) -> str:
    return f"{steps:,.0f}" if steps > 4.5 else f"{steps:.2g}"


def chosen_words(config: TrainingConfig, open_before: tuple[str, ...]) -> str:
    """Say in a line what was chosen for a run that begins; "" where everything was named.

    Args:
        config: The settled options.
        open_before: Which of `OPEN` were "auto".
    """
    if not open_before:
        return ""
    parts = []
    if {"learning_rate", "lr_schedule", "warmup_steps"} & set(open_before):
        falling = {"cosine": ", then falling as a cosine", "linear": ", then falling linearly"}
        falling["wsd"] = f", falling in the last {100 * config.cooldown_fraction:.0f} %"
        shape = falling.get(config.lr_schedule, "")
        parts.append(
            f"learning rate {config.learning_rate:g} after {config.warmup_steps} steps{shape}"
        )
    if "ema_decay" in open_before:
        decays = [d for d in config.ema_decay if not isinstance(d, str)]
        lengths = ", ".join(_length(1 / (1 - d)) for d in sorted(decays))
        parts.append(f"weight average{'s' if len(decays) > 1 else ''} over {lengths} steps")
    return f"Chosen for {config.max_steps:,} steps: {'; '.join(parts)}. What you name wins."
