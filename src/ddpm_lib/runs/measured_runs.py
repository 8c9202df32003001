"""What a run knows of the units of its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import CheckpointError

if TYPE_CHECKING:
    from ddpm_lib.data.measurements.normalization import Normalization
    from ddpm_lib.runs.state import RunState


def run_normalization(state: RunState | None, checkpoint: Path) -> Normalization | None:
    """Return how a run's measured values were normalized; None for pictures.

    Args:
        state: Of a checkpoint; None for a run that begins.
        checkpoint: Its directory, for messages.

    Raises:
        CheckpointError: If it is lost or damaged: samples would have no units.
    """
    if state is None:
        return None
    saved = state.data.get("normalization")
    kind = state.training.get("normalize")
    if saved is None:
        if kind is not None:
            raise CheckpointError(
                f"{checkpoint} was trained with normalize={kind!r}, but holds no normalization, so"
                " that the units of its samples are lost. Take another checkpoint of the run."
            )
        return None
    return normalization_in(saved, str(checkpoint))


def normalization_in(saved: Any, where: str) -> Normalization | None:
    """Read what a checkpoint or a folder holds of the units of its data; None for pictures.

    Args:
        saved: What was kept.
        where: Its place, for messages.

    Raises:
        CheckpointError: If it is damaged.
    """
    if saved is None:
        return None
    from ddpm_lib.data.measurements.normalization import Normalization

    try:
        return Normalization.from_json(saved, where)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
