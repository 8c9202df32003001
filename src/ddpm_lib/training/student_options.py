"""How a network that was trained is tuned to draw in few steps, where the user does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddpm_lib.training.by_length import rate_of
from ddpm_lib.training.option_values import is_described

SHARE, LONG_SHARE = 1.5, 0.5
"""Of the steps that the teacher was trained for, are those of its student: of short trainings the
first, as long as that is at most `LONG` steps, else the second.
"""
FEWEST_STEPS, LONG = 200, 10_000
RATE = 0.5
"""Of the teacher's peak learning rate."""
LOOKS = 4
"""So many grids and validations."""

ANEW = (
    "output_dir",
    "resume",
    "override",
    "init_from",
    "init_weights",
    "freeze",
    "pull_to_start",
    "max_hours",
    "posthoc_ema",
    "posthoc_every",
    "stop_when",
    "patience",
    "keep_every",
    "keep_best",
    "shards",
    "sample_sampler",
    "sample_steps",
    "sample_guidance_scale",
    "mixed_precision",
    "device",
    "cuda_graph",
)
"""Options of a training that say nothing about another one, or that a student's cannot have."""


def student_options(
    teacher: Mapping[str, Any], steps: int, source: str, max_steps: int | None = None
) -> dict[str, Any]:
    """Return the options of training a student: those of its teacher's data, batch and optimizer,
    with a schedule of its own.

    Args:
        teacher: Options that the teacher was trained with; empty where they are not known.
        steps: Steps that the teacher was trained for; 0 where that is not known.
        source: The run or the folder that holds the teacher.
        max_steps: Steps of the student, where they are given.
    """
    kept = {name: value for name, value in teacher.items() if name not in ANEW}
    if is_described(kept.get("val_data")):
        kept |= {"val_data": None, "val_condition": ()}
    most = max_steps or steps_of(steps)
    every = max(1, most // LOOKS)
    rate = kept.get("learning_rate")
    rate = float(rate) if isinstance(rate, int | float) else rate_of(steps or most)
    cadences = {
        name: _at_most(kept.get(name, "auto"), every)
        for name in ("sample_every", "val_every", "save_every", "log_every")
    }
    averages = "auto" if kept.pop("ema_decay", "auto") else ()
    return {
        **kept,
        **cadences,
        "init_from": source,
        "max_steps": most,
        "learning_rate": RATE * rate,
        "lr_schedule": "cosine",
        "warmup_steps": min(500, most // 20),
        "ema_decay": averages,
        "sample_sampler": "consistency",
        "sample_steps": 2,
    }


def steps_of(steps: int) -> int:
    """Return the steps of a student whose teacher was trained for so many; 0: that is not known.

    >>> [steps_of(n) for n in (0, 60, 900, 12_000, 100_000)]
    [10000, 200, 1350, 10000, 50000]
    """
    if not steps:
        return LONG
    return max(FEWEST_STEPS, round(LONG_SHARE * steps), min(round(SHARE * steps), LONG))


def _at_most(cadence: Any, every: int) -> Any:
    """Return a teacher's cadence where it is finer than a student needs; 0 stays "never"."""
    if isinstance(cadence, str):
        return every
    return min(int(cadence), every) if cadence else cadence
