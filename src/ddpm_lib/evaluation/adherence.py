"""Whether samples have what was asked for: conditions are read back from them, and compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lib.core import keys
from ddpm_lib.core.digests import digest_of
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.spread import evenly
from ddpm_lib.evaluation.image_sets import as_pictures, refuse_not_finite
from ddpm_lib.evaluation.network_conditions import identity_of
from ddpm_lib.evaluation.scores import Score, mean_score
from ddpm_lib.evaluation.tasks import ModelTask
from ddpm_lib.evaluation.told_drawing import computing_in, drawing_network, named_partner
from ddpm_lib.images import to_uint8
from ddpm_lib.metrics.condition_readers import Reader, target_of
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.nn.data_conditions import VectorCondition

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.nn.data_conditions import DataCondition

READ = 4096
"""Training images that a reader learns from."""
SAMPLES = 256
"""Samples whose conditions are read, where nobody says how many."""


def adherence(task: ModelTask) -> list[Score]:
    """Error of each condition of the data, read back from samples that were drawn for it.

    For each image a sample is drawn with the image's conditions. A small network, trained on the
    training images to say the condition of an image, then reads it: numbers and angles are
    regressed, labels and tags classified, masks segmented. `/real` is its error on the images
    themselves, which samples cannot be expected to beat, `/chance` its error when samples are
    paired with the conditions of other images.

    Raises:
        ConfigError: If the network takes no condition of the data, or no image has a value of one.
    """
    conditions = data_conditions(task.model().conditioners)
    if conditions and len(task.model().image_size) != 2:
        raise ConfigError(
            "adherence reads conditions back from images of two dimensions; this run draws"
            f" {'×'.join(map(str, task.model().image_size))}. Leave it out of"
            f" {option('metrics')}."
        )
    if not conditions:
        raise ConfigError(
            "adherence reads conditions of the data back from images (--condition), and this"
            " network takes none."
        )
    images = _told(task.images, conditions, task.options.num or SAMPLES)
    known = _told(task.own("train"), conditions, READ)
    both = [known.conditions, images.conditions]
    told = {k: c for k, c in conditions.items() if all(each[k].known.any() for each in both)}
    if not told:
        raise ConfigError(
            f"adherence compares values of conditions, and of {', '.join(conditions)} the"
            f" {len(task.images):,} images that are looked at, or those that were trained on, have"
            f" none (missing=null). Leave it out of {option('metrics')}, or hold out more images."
        )
    samples = _samples(task, images)
    scores: list[Score] = []
    for name, conditioner in told.items():
        scores += _scores(task, name, conditioner, known, images, samples)
    return scores


def has_values(images: ImageDataset, names: Iterable[str]) -> np.ndarray:
    """Return which images have a value of one of some conditions at least, bool (n,)."""
    known = [images.conditions[name].known for name in names if name in images.conditions]
    return np.any(known, axis=0) if known else np.zeros(len(images), dtype=bool)


def _told(images: ImageDataset, names: Iterable[str], most: int) -> ImageDataset:
    """Return images with a value of some condition, at most so many, spread over the set."""
    rows = np.flatnonzero(has_values(images, names))
    return images.subset(rows[evenly(min(most, len(rows)), len(rows))])


def _samples(task: ModelTask, images: ImageDataset) -> Tensor:
    """Draw a sample for each image, by its conditions; uint8 (n, c, h, w) on every rank."""
    diffusion, options = task.model(), task.options
    device = task.state.device
    partner = named_partner(task.run, options, device)
    network, precision = drawing_network(diffusion.model, options, device)
    how: dict[str, Any] = {
        "sampler": options.sampler,
        "num_steps": options.sample_steps,
        "spacing": options.spacing,
        "eta": options.eta,
        "guidance_scale": options.guidance_scale,
        "guide_by": None if partner is None else partner.diffusion,
        "guide_scale": options.guide_scale,
    }
    shape = (diffusion.channels, *diffusion.image_size)

    def draw(rows: range) -> Tensor:
        _, cond = task.batch(rows, images)
        with computing_in(precision, device):
            drawn = diffusion.sample(
                len(rows),
                **how,
                seed=options.seed,
                first_index=rows.start,
                cond=cond,
                device=device,
                model=network,
                progress=False,
            )
        refuse_not_finite(drawn, precision)
        return (drawn.clamp(0, 1) * 255).round().flatten(1).cpu().double()

    default, kept = diffusion.sampling_default, identity_of(images)
    if default is not None:  # what was begun before another was chosen is of no use
        kept = digest_of("samples", kept, [default.to_json()])
    if partner is not None:
        kept = digest_of("samples", kept, [partner.weights_sha256, partner.weights])
    found = task.over(
        len(images),
        "samples by their conditions",
        math.prod(shape),
        options.batch_size,
        draw,
        kept,
    )
    return found.to(torch.uint8).view(-1, *shape)


def _scores(
    task: ModelTask,
    name: str,
    conditioner: DataCondition,
    train: ImageDataset,
    images: ImageDataset,
    samples: Tensor,
) -> list[Score]:
    target = target_of(name, conditioner.spec)
    learned = train.batch(np.arange(len(train)))
    values = _standardised(conditioner, learned[name], learned["image"])
    units = train.normalization
    seen_as = as_pictures if units is None else to_uint8  # no channel is one of transparency
    reader = Reader(target, seen_as(learned["image"]), values, task.state.device, task.options.seed)
    truth = images.batch(np.arange(len(images)))
    asked = _standardised(conditioner, truth[name], truth["image"])
    others = of_other_images(asked, task.options.seed)
    pictures = seen_as(samples)
    pairs = {
        "": (pictures, asked),
        "/real": (seen_as(truth["image"]), asked),
        "/chance": (pictures, others),
    }
    found = {}
    for word, (seen, wanted) in pairs.items():
        errors = reader.errors(seen, wanted)
        found[word] = mean_score(f"adherence_{name}{word}", errors[~errors.isnan()], target.unit)
    alike = torch.equal(asked.nan_to_num(), others.nan_to_num())
    return [_judged(found[""], found["/chance"], alike), found["/real"], found["/chance"]]


def of_other_images(values: Tensor, seed: int) -> Tensor:
    """Return values (n, …) of which each image has that of another one, at random: by a fixed
    distance, images that come class by class would get none of their own class, or all.
    """
    order = torch.from_numpy(keys.permutation(len(values), seed, "chance of adherence"))
    others = torch.empty_like(values)
    others[order] = values[order.roll(1)]
    return others


def _judged(score: Score, chance: Score, alike: bool) -> Score:
    """Say where samples are no nearer to what was asked for than to what was not; `alike`: all were
    asked for the same.
    """
    if alike:
        return dataclasses.replace(score, remark="all were asked for the same: says nothing")
    ends = score.interval
    if ends is None or chance.value > ends[1]:
        return score
    return dataclasses.replace(score, remark="not obeyed: no better than chance")


def _standardised(conditioner: DataCondition, values: Tensor, images: Tensor) -> Tensor:
    """Return vectors as the network sees them, and small images in the size of the images."""
    if isinstance(conditioner, VectorCondition):  # texts too
        gone = values.isnan()
        seen = conditioner.features(values.nan_to_num())
        return seen.masked_fill(gone, math.nan)
    if conditioner.kind == "image" and values.shape[2:] != images.shape[2:]:
        large = F.interpolate(
            values.float(), size=images.shape[2:], mode="bilinear", align_corners=False
        )
        return large.round().to(torch.uint8)
    return values
