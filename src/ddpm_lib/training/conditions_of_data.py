"""The conditions of the data and those of the network: they must be the same, and are measured on
the training part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import in_flags, option
from ddpm_lib.nn.condition_table import data_conditions, keep_in_config, learn_texts
from ddpm_lib.nn.data_conditions import DataCondition
from ddpm_lib.nn.text_encoders import same_encoder
from ddpm_lib.nn.text_vectors import TextVectors
from ddpm_lib.runs.stored_texts import read_texts
from ddpm_lib.training.batches import flip_rows

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.diffusion import GaussianDiffusion
    from ddpm_lib.runs.state import RunState
    from ddpm_lib.training.config import TrainingConfig


def suited(
    dataset: ImageDataset, diffusion: GaussianDiffusion, log: Callable[[str], None] | None = None
) -> ImageDataset:
    """Return a dataset with the conditions that the network takes, labels and tags numbered as it
    numbers them.

    Args:
        dataset: Training or held-out images.
        diffusion: The process.
        log: Gets a line on conditions that the network does not take.

    Raises:
        ConfigError: If a condition is missing, or is another one than the network was built for.
    """
    known = data_conditions(diffusion.conditioners)
    others = [name for name in dataset.conditions if name not in known]
    if others and log:
        log(
            f"The data have the condition {', '.join(others)}, which this network does not take:"
            " build it with conditions=dataset.condition_table."
        )
    if not known and not others:
        return dataset
    same = copy.copy(dataset)
    same.conditions = {name: _fit(name, c, dataset) for name, c in known.items()}
    return same


def _fit(name: str, conditioner: DataCondition, dataset: ImageDataset) -> Any:
    found = dataset.conditions.get(name)
    if found is None:
        way = (
            f"{option('condition')} {name}=FILE:COLUMN"
            if in_flags()
            else f'condition=("{name}=FILE:COLUMN",), or dataset.with_conditions({{"{name}": …}})'
        )
        raise ConfigError(
            f"The network was built for the condition {name!r} ({conditioner.kind}), which the data"
            f" lack. Give it: {way}."
        )
    alike = {found.kind, conditioner.kind} <= {"vector", "text"}
    if found.kind != conditioner.kind and not alike:
        raise ConfigError(
            f"The condition {name!r} of the data is of the kind {found.kind}; the network was built"
            f" for {conditioner.kind}. Say {name}=…,kind={conditioner.kind}."
        )
    if conditioner.spec.get("names") and found.names:
        try:
            found = found.renamed(conditioner.spec["names"], f"The condition {name!r} of the data")
        except ValueError as error:
            raise ConfigError(str(error)) from None
    for field in ("size", "channels", "factor", "encoder"):
        ours, theirs = conditioner.spec.get(field), found.more.get(field)
        if field == "encoder" and (same_encoder(ours, theirs) or _is_gone(ours, theirs)):
            continue
        if ours is not None and theirs is not None and ours != theirs:
            raise ConfigError(
                f"The condition {name!r} of the data has {field} {theirs}; the network was built"
                f" for {ours}."
            )
    if found.more.get("classes", 0) > conditioner.spec.get("classes", 0):
        raise ConfigError(
            f"The condition {name!r} of the data has {found.more['classes']} classes; the network"
            f" knows {conditioner.spec['classes']}."
        )
    known = conditioner.spec.get("classes", 0)
    if found.white and known > 2:
        raise ConfigError(
            f"The masks of the condition {name!r} hold 0 and 255 alone, and the network knows"
            f" {known} classes, beside which 255 is unknown. Give each pixel the number of its"
            f" class; or say {name}=…,classes={known}, if 255 is to be unknown."
        )
    return found


def _is_gone(ours: Any, theirs: Any) -> bool:
    """Whether the folder of a text encoder is written as the network's was, and not here any more:
    vectors are then those that the run keeps.
    """
    absolute = isinstance(ours, str) and ours.startswith("/")
    here = not isinstance(theirs, str) or Path(theirs).expanduser().is_dir()
    return absolute and not here and Path(ours).name == Path(theirs).name


def measure(diffusion: GaussianDiffusion, train: ImageDataset) -> None:
    """Measure on training images what the network's conditions do not know yet, such as means, and
    keep it in the network's config.
    """
    open_ones = [
        (name, c) for name, c in data_conditions(diffusion.conditioners).items() if not c.fitted
    ]
    for name, conditioner in open_ones:
        values = train.conditions[name].values
        assert isinstance(values, np.ndarray)
        if np.isnan(values.reshape(len(values), -1)).any(1).all():
            raise ConfigError(
                f"The condition {name!r} has no value for any of the {len(values):,} images that"
                " are trained on; those of held-out images teach nothing. Give more of them values."
            )
        conditioner.fit(values)
    if open_ones:
        keep_in_config(diffusion.model)


def adopt(
    diffusion: GaussianDiffusion, saved: RunState | None, run: Path, say: Callable[[str], None]
) -> None:
    """Take what a checkpoint has measured, where the network of this program does not say it, and
    the vectors of texts that its run keeps; forget how weights were sampled that now change.
    """
    if diffusion.sampling_default is not None:
        origin = diffusion.sampling_default.origin()
        say(f"Sampling is the library's again: what {origin} chose was for other weights.")
        diffusion.sampling_default = None
    conditions = data_conditions(diffusion.conditioners)
    if saved is not None and conditions:
        learn_texts(diffusion.conditioners, read_texts(run))
    if saved is None or all(c.fitted for c in conditions.values()):
        return
    config = saved.model.get("config")
    table = (config.get("conditions") if isinstance(config, Mapping) else None) or {}
    for name, conditioner in conditions.items():
        entry = table.get(name)
        if not conditioner.fitted and isinstance(entry, Mapping):
            conditioner.take({field: entry.get(field) for field in conditioner.fits})
    keep_in_config(diffusion.model)


def know_texts(diffusion: GaussianDiffusion, *images: ImageDataset | None) -> None:
    """Let the network know the vectors of the texts of its images, which then need no encoder."""
    for data in images:
        for name, values in {} if data is None else data.conditions.items():
            if values.texts is not None and isinstance(values.values, np.ndarray):
                more = TextVectors.none().with_more(values.texts, values.values)
                learn_texts(diffusion.conditioners, {name: more})


def flipped(
    cond: dict[str, Tensor] | None, conditioners: Mapping[str, Any] | None, flip: Tensor
) -> dict[str, Tensor] | None:
    """Mirror the masks and images among the conditions of those samples whose images are."""
    pictures = [k for k, c in data_conditions(conditioners).items() if c.axes >= 2]
    made = {k: flip_rows(v, flip) for k, v in (cond or {}).items() if k in pictures}
    return {**(cond or {}), **made} or None


def refuse_augmented(diffusion: GaussianDiffusion) -> None:
    """Refuse to turn and shift images whose masks stay where they are.

    Raises:
        ConfigError: Naming the condition.
    """
    for name, conditioner in data_conditions(diffusion.conditioners).items():
        if conditioner.axes >= 2:
            raise ConfigError(
                f"{option('augment')} turns and shifts images, but not the condition {name!r}"
                f" ({conditioner.kind}). Leave it out; {option('horizontal_flip')} mirrors both."
            )


def with_condition_words(data: ImageDataset, config: TrainingConfig) -> ImageDataset:
    """Return an open dataset with the conditions that the options name, if it lacks them or has
    them from elsewhere.
    """
    from ddpm_lib.data.condition_words import read_words

    there = data.opened_with.get("conditions", ()) if data.conditions else ()
    if {read_words(words).written for words in config.condition} <= set(there):
        return data
    if data.normalization is not None:
        raise ConfigError(
            f"{option('condition')} names conditions that these measured values were opened"
            " without. Open them with: open_dataset(…, normalize=…, conditions=…), or hand values"
            " over: dataset.with_conditions({name: values})."
        )
    if len(data.image_size) != 2:
        raise ConfigError(
            f"{option('condition')} names files of conditions for images; hand those of sequences"
            " and volumes over: dataset.with_conditions({name: values})."
        )
    from ddpm_lib.data import open_dataset

    way: dict[str, Any] = {"cache": config.cache, "num_workers": config.num_workers}
    way["fit"] = data.opened_with.get("fit", "crop")
    size, channels = data.image_size, data.channels
    return open_dataset(
        data, image_size=size, channels=channels, conditions=config.condition, **way
    )


def made_up(diffusion: GaussianDiffusion, n: int) -> dict[str, Any]:
    """Return conditions of n images that do not exist, for measuring what a step costs."""
    from ddpm_lib.data.condition_values import ConditionValues

    like = torch.zeros(1, 1, *diffusion.image_size)
    found = {}
    for name, conditioner in data_conditions(diffusion.conditioners).items():
        null = torch.zeros_like(conditioner.null_for(like))
        if conditioner.kind == "image":
            null = null.to(torch.uint8)
        values = np.broadcast_to(null.numpy(), (n, *null.shape[1:]))
        found[name] = ConditionValues(conditioner.kind, values)
    return found
