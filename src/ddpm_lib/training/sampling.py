"""Sampling shared over the ranks: every rank makes its part, every rank gets the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.nn import LowRes
from ddpm_lib.process.conditions import class_count, find_conditioner, guidable
from ddpm_lib.runtime.processes import Processes

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.training.config import TrainingConfig


def default_condition(diffusion: GaussianDiffusion, n: int) -> dict[str, Tensor] | None:
    """Return labels that go through the classes in turn for a class-conditional network, else
    None.
    """
    classes = class_count(diffusion.conditioners)
    return None if classes is None else {"class_label": torch.arange(n) % classes}


def check_grids(diffusion: GaussianDiffusion, config: TrainingConfig) -> None:
    """Refuse at the start what would end a run at its first grid of samples.

    Raises:
        ConfigError: If there is no such sampler, or guidance is asked of a network that never
            trains without its condition, or by a condition that no grid is given.
    """
    from ddpm_lib.samplers import SAMPLERS

    if config.sample_sampler not in SAMPLERS:
        raise ConfigError(unknown_name("sampler", config.sample_sampler, SAMPLERS))
    jumps = diffusion.denoiser.jumps
    if jumps != SAMPLERS[config.sample_sampler].jumps:
        fits = "consistency" if jumps else "ddim"
        also = f", {option('sample_steps', 2)}" if jumps else ""
        raise ConfigError(
            f"The grids of samples cannot be drawn by {config.sample_sampler!r}: this process is"
            f" {'' if jumps else 'not '}one that is tuned for consistency. Set"
            f" {option('sample_sampler', fits)}{also}."
        )
    scale, able = config.sample_guidance_scale, guidable(diffusion.conditioners)
    if scale == 1:
        return
    asked = option("sample_guidance_scale", int(scale) if scale.is_integer() else scale)
    if not able:
        raise ConfigError(
            f"{asked} needs a condition that is sometimes hidden in training. Train with classes"
            " (class_drop_prob > 0), or leave it at 1."
        )
    low_res = find_conditioner(diffusion.conditioners, LowRes)
    if not {"class_label", low_res.name if low_res else ""} & set(able):
        raise ConfigError(
            f"{asked} strengthens {' and '.join(map(repr, able))}, which the samples of a training"
            " are not given: they go through the classes. Leave it at 1, and guide with"
            " trainer.sample(cond=…)."
        )


def _rows(value: Any, rows: range) -> Any:
    """Return a condition's entries for some images; a single entry counts for all."""
    single = isinstance(value, str) or np.ndim(value) == 0 or len(value) == 1
    return value if single else value[rows.start : rows.stop]


def sample_shared(
    diffusion: GaussianDiffusion,
    n: int,
    state: Accelerator | PartialState,
    *,
    cond: Mapping[str, Any] | None = None,
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

    Raises:
        ValueError: If `seeds` or `x_T` are not n, or a trajectory is asked of several processes.
    """
    processes = Processes.of(state)
    own = processes.share(n)
    if processes.rank:
        options["progress"] = False  # one bar is enough
    if processes.count > 1 and options.get("return_trajectory"):
        raise ValueError(
            "return_trajectory works with one process only. Use diffusion.sample on one of them."
        )
    for name in ("seeds", "x_T"):
        given = options.get(name)
        if given is not None:
            if len(given) != n:
                raise ValueError(
                    f"{name} has {len(given)} entries for {n} images. Make them agree."
                )
            options[name] = given[own.start : own.stop]
    if options.get("seeds") is None:  # a seed of its own already names the image
        first_index += own.start
    part = {k: _rows(v, own) for k, v in cond.items()} if cond else None
    shape = (diffusion.channels, *diffusion.image_size)
    if len(own):
        images = diffusion.sample(len(own), cond=part, first_index=first_index, **options)
    else:
        images = torch.zeros(0, *shape)
    if processes.count == 1:
        return images
    size = math.ceil(n / processes.count)
    padded = torch.zeros(size, *shape, device=state.device)
    padded[: len(images)] = images.to(state.device)
    return processes.gather(padded)[:n]
