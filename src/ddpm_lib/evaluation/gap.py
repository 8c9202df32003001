"""Over-fitting in numbers: loss and bits/dim of training images beside those of held-out ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.core.spread import evenly
from ddpm_lib.data import ImageDataset
from ddpm_lib.evaluation.scores import Score, mean_score
from ddpm_lib.evaluation.tasks import ModelTask
from ddpm_lib.metrics import bootstrap_interval
from ddpm_lib.time_sampling import spread_levels

FEW_FOR_GAP = 20
"""Below so many images two sets differ by chance more than intervals of so few can say."""
LEVELS_OF_GAP = 10
"""Levels per image from which the bound is estimated; the same for both sets."""


def gap(task: ModelTask) -> list[Score]:
    """Held-out minus training images: the training loss, and bits/dim by the bound, with the same
    noise for both.

    Positive is over-fitting. The k-th images of both sets share their noise and their levels, and
    each set is spread evenly.
    """
    return [*loss_gap(task), *_gap(task, "nll", "bits/dim", _bits)]


def loss_gap(task: ModelTask) -> list[Score]:
    """Held-out minus training images: the training loss alone, at a tenth of the price of `gap`."""
    return _gap(task, "loss", "training loss", _loss)


def _gap(
    task: ModelTask,
    name: str,
    unit: str,
    columns: Callable[[ModelTask, ImageDataset], Callable[[range], Tensor]],
) -> list[Score]:
    train, held_out = task.own("train"), task.own("held-out")
    n = min(len(train), len(held_out), task.options.num or 1000)
    scores: list[Score] = []
    found = {}
    for word, dataset in (("train", train), ("heldout", held_out)):
        images = dataset.subset(evenly(n, len(dataset)))
        values = task.over(
            n,
            f"{name} of {word}",
            1,
            task.options.batch_size,
            columns(task, images),
            images.fingerprint,
        )[:, 0]
        found[word] = values
        scores.append(mean_score(f"{name}_{word}_{n}", values, unit))
    gap = difference(task, f"{name}_gap_{n}", found["heldout"], found["train"], unit)
    return [*scores, dataclasses.replace(gap, remark=_overfits(gap, n))]


def _overfits(gap: Score, n: int) -> str:
    """Word a gap that chance does not explain; of few images, only that nothing can be said."""
    if n < FEW_FOR_GAP:
        return f"of {n:,} images each: too few to tell"
    if gap.interval is not None and gap.interval[0] > 0:
        return "over-fitting: training images are fitted better than new ones"
    return ""


def difference(task: ModelTask, name: str, a: Tensor, b: Tensor, unit: str) -> Score:
    """Return mean a − mean b of two independent sets, with its standard error and interval."""
    value = float(a.mean() - b.mean())
    of_a = bootstrap_interval(float(a.mean()), a, seed=task.options.seed)
    of_b = bootstrap_interval(float(b.mean()), b, seed=task.options.seed + 1)
    if of_a is None or of_b is None:  # fewer than two images
        return Score(name, value, None, unit)
    error = math.sqrt(float(a.var()) / len(a) + float(b.var()) / len(b))
    # Half-widths of independent intervals add as standard errors do.
    half = [math.hypot(of_a[i] - float(a.mean()), of_b[1 - i] - float(b.mean())) for i in (0, 1)]
    return Score(name, value, error, unit, interval=(value - half[0], value + half[1]))


def _loss(task: ModelTask, images: ImageDataset) -> Callable[[range], Tensor]:
    diffusion = task.model()
    shape = (diffusion.channels, *diffusion.image_size)

    def score(rows: range) -> Tensor:
        pixels, cond = task.batch(rows, images)
        t = spread_levels(np.arange(rows.start, rows.stop), diffusion.timesteps)
        noise = torch.stack(
            [
                torch.randn(shape, generator=keys.generator("cpu", i, task.options.seed, "gap"))
                for i in rows
            ]
        )
        device = task.state.device
        here = {name: value.to(device) for name, value in cond.items()} if cond else None
        with torch.inference_mode():
            losses = diffusion(
                pixels.to(device), here, t=t, noise=noise.to(device), reduction="none"
            )
        return losses.cpu().double()[:, None]

    return score


def _bits(task: ModelTask, images: ImageDataset) -> Callable[[range], Tensor]:
    options, diffusion = task.options, task.model()
    levels = options.num_levels or min(LEVELS_OF_GAP, diffusion.timesteps)

    def score(rows: range) -> Tensor:
        pixels, cond = task.batch(rows, images)
        bits = diffusion.bits_per_dim(
            pixels,
            num_levels=levels,
            num_steps=options.num_steps,
            seed=options.seed,
            first_index=rows.start,
            cond=cond,
            batch_size=options.batch_size,
        )
        return bits.total[:, None]

    return score
