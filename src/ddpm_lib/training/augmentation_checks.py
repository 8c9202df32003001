"""Whether a network is told of the augmentation that training does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.training.augmentation import AUGMENT_DIM
from ddpm_lib.training.conditions_of_data import refuse_augmented
from ddpm_lib.training.config import TrainingConfig

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion


def check_augmentation(diffusion: GaussianDiffusion, config: TrainingConfig) -> None:
    """Check that a network is told of the augmentation that training does, and the other way round.

    Raises:
        ConfigError: If not.
    """
    told: Any = dict(diffusion.conditioners or {}).get("augment")
    if told is None and config.augment:
        raise ConfigError(
            f"augment={config.augment:g} needs a network that is told of it, else samples would be"
            f" turned and shifted too. Build the Unet with augment_dim={AUGMENT_DIM};"
            f" {option('horizontal_flip')} works with any network."
        )
    if told is not None and not config.augment:
        raise ConfigError(
            "The network has augment_dim, but nothing is augmented. Set"
            f" {option('augment', 0.12)}, or build it"
            " without."
        )
    if config.augment:
        refuse_augmented(diffusion)
    if config.augment and len(diffusion.image_size) != 2:
        raise ConfigError(
            f"augment turns and shifts images; this data has {len(diffusion.image_size)} spatial"
            " dimensions."
        )
    if told is not None and told.augment_dim != AUGMENT_DIM:
        raise ConfigError(
            f"The augmentation is described by {AUGMENT_DIM} numbers; got"
            f" augment_dim={told.augment_dim}."
        )
