"""What the flags say about guidance by a worse version, as arguments of `sample`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ddpm_lib.process.autoguidance import partner_of
from ddpm_lib.runs.guiding import load_partner
from ddpm_lib.runs.loading import LoadedRun
from ddpm_lib.runs.placing import place_network


def partner(loaded: LoadedRun, guide_by: str | None, guide_scale: float | None) -> dict[str, Any]:
    """Load the partner that a flag names; return arguments of `sample`, none without a flag.

    Raises:
        CheckpointError: If there is no such checkpoint.
        ConfigError: If it is of another process, or what it is to guide.
    """
    if guide_by is None:
        return {}
    found = load_partner(loaded, guide_by).diffusion
    partner_of(loaded.diffusion, found, guide_scale)  # refuses before anything is drawn
    return {"guide_by": found, "guide_scale": guide_scale}


def place(
    partner: Mapping[str, Any], device: torch.device, precision: str, *, compiled: bool = False
) -> None:
    """Bring the partner to the device; see `place_network`."""
    if partner:
        place_network(partner["guide_by"], device, precision, compiled=compiled)
