"""The conditions that a network gets with the images of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ddpm_lib.core.digests import digest_of
from ddpm_lib.images import to_model_range
from ddpm_lib.nn import LowRes
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.process.conditions import find_conditioner

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion


def low_res_conditioner(diffusion: GaussianDiffusion) -> LowRes | None:
    """Return the condition of a network that enlarges images, None of one that does not."""
    return find_conditioner(diffusion.conditioners, LowRes)


def conditions_of(
    diffusion: GaussianDiffusion,
    batch: dict[str, Tensor],
) -> dict[str, Tensor] | None:
    """Return the conditions that the network knows: labels, and small images of the images."""
    names = diffusion.conditioners or {}
    cond = {k: v for k, v in batch.items() if k in names}
    low_res = low_res_conditioner(diffusion)
    if low_res is not None:
        cond[low_res.name] = low_res.derive(to_model_range(batch["image"]))
    return cond or None


def identity_of(images: ImageDataset) -> str:
    """Return what tells images with their conditions from others: the fingerprint alone is that of
    the images, and the same ones may come with other conditions.
    """
    values = {name: condition.digest() for name, condition in images.conditions.items()}
    return digest_of(images.fingerprint, values) if values else images.fingerprint


def draws_of_data(diffusion: GaussianDiffusion) -> bool:
    """Whether samples need images of the data for their conditions: to enlarge, or for what comes
    with them.
    """
    return low_res_conditioner(diffusion) is not None or bool(
        data_conditions(diffusion.conditioners)
    )
