"""Sampling shared over the ranks: every rank makes its part, every rank gets the whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

    from ddpm_lib.diffusion import GaussianDiffusion


def own_share(n: int, rank: int, processes: int) -> range:
    """Return the images 0 … n-1 that a rank makes: equal blocks, the last ones shorter or empty."""
    size = math.ceil(n / processes)
    return range(min(n, rank * size), min(n, (rank + 1) * size))


def default_condition(diffusion: GaussianDiffusion, n: int) -> dict[str, Tensor] | None:
    """Return labels that go through the classes in turn for a class-conditional network, else None."""
    conditioners = getattr(diffusion.model, "conditioners", {})
    if "class_label" not in conditioners:
        return None
    return {"class_label": torch.arange(n) % conditioners["class_label"].num_classes}


def sample_shared(
    diffusion: GaussianDiffusion,
    n: int,
    state: Accelerator | PartialState,
    *,
    cond: dict[str, Tensor] | None = None,
    first_index: int = 0,
    **options: Any,
) -> Tensor:
    """Draw n images over all ranks; image i is a function of the seed and i, whoever makes it.

    Args:
        diffusion: The process.
        n: Number of images over all ranks.
        state: accelerate's object that knows the ranks.
        cond: Conditions of all n images.
        first_index: Number of the first image.
        **options: Further arguments of `GaussianDiffusion.sample`.

    Returns:
        float32 (n, c, *spatial) in [0, 1], on every rank.
    """
    own = own_share(n, state.process_index, state.num_processes)
    part = {k: v[own.start : own.stop] for k, v in cond.items()} if cond else None
    shape = (diffusion.channels, *diffusion.image_size)
    if len(own):
        images = diffusion.sample(len(own), cond=part, first_index=first_index + own.start, **options)
    else:
        images = torch.zeros(0, *shape)
    if state.num_processes == 1:
        return images
    from accelerate.utils import gather

    size = math.ceil(n / state.num_processes)
    padded = torch.zeros(size, *shape, device=state.device)
    padded[: len(images)] = images.to(state.device)
    return gather(padded)[:n]
