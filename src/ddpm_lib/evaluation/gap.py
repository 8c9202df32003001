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
from ddpm_lib.evaluation.network_conditions import identity_of
from ddpm_lib.evaluation.scores import Score, mean_score
from ddpm_lib.evaluation.tasks import ModelTask
from ddpm_lib.metrics import bootstrap_interval
from ddpm_lib.time_sampling import spread_levels
from ddpm_lib.training.adjusted_gap import SPECTRUM_IMAGES, LinearDenoiser, adjusted_gap

FEW_FOR_GAP = 20
"""Below so many images two sets differ by chance more than intervals of so few can say."""
Z95 = 1.96
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
    """Held-out minus training images: the training loss alone, at a tenth of the price of `gap`.

    `adjusted` is the gap without what the two sets differ by anyway (`training/adjusted_gap.py`),
    and `linear` the loss of the best linear denoiser, which learns no shapes.
    """
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
            identity_of(images),
        )[:, 0]
        found[word] = values
        scores.append(mean_score(f"{name}_{word}_{n}", values, unit))
    gap = difference(task, f"{name}_gap_{n}", found["heldout"], found["train"], unit)
    rest: list[Score] = []
    if name == "loss":
        linear = _linear(task, train, held_out, n)
        if task.model().loss == "simple":  # else the loss has parts that it has not
            text = "training loss, of the best linear denoiser"
            scores.append(mean_score(f"{scores[-1].name}/linear", linear["heldout"], text))
        rest = _adjusted(task, gap.name, found, linear)
    judged = rest[0] if rest else gap
    return [*scores, dataclasses.replace(gap, remark=_overfits(judged, n)), *rest]


def _linear(
    task: ModelTask, train: ImageDataset, held_out: ImageDataset, n: int
) -> dict[str, Tensor]:
    """Return the errors (n,) of the linear denoiser on both sets, under the noise of the losses."""
    process, batch = task.model(), task.options.batch_size
    known = evenly(min(SPECTRUM_IMAGES, len(train)), len(train))
    denoiser = LinearDenoiser.of(train.batch(known.tolist())["image"])
    found = {}
    for word, dataset in (("train", train), ("heldout", held_out)):
        rows = evenly(n, len(dataset))
        parts = []
        for start in range(0, n, batch):
            here = range(start, min(n, start + batch))
            images = dataset.batch(rows[start : here.stop].tolist())["image"]
            t = spread_levels(np.arange(start, here.stop), process.timesteps)
            noise = _noise(here, tuple(images.shape[1:]), task.options.seed)
            parts.append(denoiser.errors(process, images, t, noise))
        found[word] = torch.cat(parts)
    return found


def _adjusted(
    task: ModelTask, name: str, losses: dict[str, Tensor], linear: dict[str, Tensor]
) -> list[Score]:
    """Return the gap without what the two sets differ by, where that can be told."""
    reference = linear["heldout"] - linear["train"]
    timesteps = task.model().timesteps
    found = adjusted_gap(losses["heldout"], losses["train"], reference, timesteps)
    if found is None:
        return []
    ends = (found.gap - Z95 * found.error, found.gap + Z95 * found.error)
    unit = "training loss, without what the two sets differ by anyway"
    return [Score(f"{name}/adjusted", found.gap, found.error, unit, interval=ends)]


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
        noise = _noise(rows, shape, task.options.seed)
        device = task.state.device
        here = {name: value.to(device) for name, value in cond.items()} if cond else None
        with torch.inference_mode():
            losses = diffusion(
                pixels.to(device), here, t=t, noise=noise.to(device), reduction="none"
            )
        return losses.cpu().double()[:, None]

    return score


def _noise(rows: range, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.stack(
        [torch.randn(shape, generator=keys.generator("cpu", i, seed, "gap")) for i in rows]
    )


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
