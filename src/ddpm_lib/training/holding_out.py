"""Which images of the training data are held out of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ddpm_lib.core.spelling import option
from ddpm_lib.training.config import TrainingConfig

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset


def held_fraction(config: TrainingConfig, before: float | None) -> float:
    """Return the share of the training data that is held out by hash of the name; 0: none.

    Args:
        config: The options.
        before: For a run that goes on, the share until now.
    """
    asked = config.val_fraction if config.val_every and config.val_data is None else 0.0
    if before is None:
        return asked
    return (asked or before) if before else 0.0


def hold_out(
    train: ImageDataset,
    config: TrainingConfig,
    held_before: float | None,
    log: Callable[[str], None],
) -> tuple[ImageDataset, ImageDataset | None]:
    """Part the images that are held out, or were so far, from those that are trained on; None where
    there are none.
    """
    fraction = held_fraction(config, held_before)
    if fraction and len(train) < 10:
        log(
            f"{len(train)} images are too few to hold some out: there is no validation."
            f" {option('val_data')} can name others."
        )
    elif fraction:
        # 1,000 held-out images estimate the loss well; a share of a million would only be lost to
        # training.
        count = min(1000, max(1, math.floor(len(train) * fraction)))
        train, held_out = train.split(count, config.seed)
        if held_before and not held_fraction(config, None):
            log(
                f"The {len(held_out):,} images that this run held out so far stay out of the"
                " training."
            )
        return train, held_out
    elif held_before == 0 and held_fraction(config, None):
        log(
            "This run trains on all its images, so that none can be held out: there is no"
            f" validation. {option('val_data')} can name others."
        )
    return train, None
