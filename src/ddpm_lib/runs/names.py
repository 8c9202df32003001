"""Names of checkpoint directories: step-000001200."""

from __future__ import annotations

import re
from pathlib import Path

from ddpm_lib.core.errors import CheckpointError

AVERAGE_LOSS = "val_loss_ema_"
"""Column of the held-out loss of an average at the end of a run, before its decay."""
_NAME = re.compile(r"step-(\d{9,})")


def checkpoint_name(step: int) -> str:
    """Return the directory name of a step."""
    return f"step-{step:09d}"


def step_in(name: str) -> int | None:
    """Return the step that a name says, None if it is no checkpoint's."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def step_of(path: Path) -> int:
    """Return the step that a checkpoint directory's name says.

    Raises:
        CheckpointError: If it is named otherwise.
    """
    step = step_in(path.name)
    if step is None:
        raise CheckpointError(f"{path} is not named like a checkpoint (step-000001200).")
    return step
