"""How further images of a run are read: as its training images were."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ddpm_lib.training.config import TrainingConfig

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset

_ALIKE = ("fit", "background", "value_range", "max_pixels", "normalize", "slice_axis")
"""Options of `open_dataset` by which a pixel means the same in two sets."""


def read_alike(config: TrainingConfig, train: ImageDataset) -> TrainingConfig:
    """Return options by which held-out images and additions are read as the training images were:
    an open set has options of its own, which count where the run names none.
    """
    from ddpm_lib.data.fits import DEFAULTS

    found: dict[str, Any] = {}
    for name in _ALIKE:
        value = train.opened_with.get(name)
        if value is not None and getattr(config, name) == DEFAULTS[name]:
            found[name] = value
    if not isinstance(found.get("background", ""), str):
        found["background"] = "#{:02x}{:02x}{:02x}".format(*found["background"])
    if "value_range" in found:
        found["value_range"] = tuple(map(float, found["value_range"]))
    return replace(config, **found) if found else config
