"""The worse version of a run that guides it: an earlier step, another average, another run."""

from __future__ import annotations

from ddpm_lib.runs.loading import LoadedRun, find_checkpoints, load_checkpoint
from ddpm_lib.runs.partners import Guided, find_partner


def load_partner(loaded: Guided, guide_by: str) -> LoadedRun:
    """Load the version that is to guide a run; see `find_partner`."""
    found: LoadedRun = find_partner(loaded, guide_by, find_checkpoints, load_checkpoint)
    return found
