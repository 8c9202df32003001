"""Runs that go on with more images: what is added, and what a checkpoint was trained on before."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.validation import is_path
from ddpm_lib.runs.state import DataDescription, RunState
from ddpm_lib.training.added_conditions import (
    contents,
    refuse_arrays,
    refuse_others_values,
    words_of_additions,
)
from ddpm_lib.training.option_values import describe_object

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.training.config import TrainingConfig


LOOKED_AT = 400
"""Entries of an addition whose values are compared with the range that a run began with."""


def grown(
    train: ImageDataset,
    held_out: ImageDataset | None,
    config: TrainingConfig,
    open_more: Callable[[Any, tuple[str, ...]], ImageDataset],
    log: Callable[[str], None],
    needs_labels: bool,
) -> ImageDataset:
    """Return training images with more of them behind; what is held out stays as it is.

    Args:
        train: The training images so far.
        held_out: The held-out images, copies of which are left out of what is added.
        config: Its `add_data` is what is added, in order: paths and names, or objects of Python.
        open_more: Opens an addition as the training images were opened, with these conditions.
        log: Gets lines for the user.
        needs_labels: Whether the network reads labels.

    Raises:
        ConfigError: If an addition does not fit.
    """
    added = config.add_data
    words = words_of_additions(config.condition, config.add_condition, added)
    if not added:
        return train
    from ddpm_lib.data.joining import join

    parts, ends = [train], [(train.fingerprint, len(train), digests(train))]
    opened_so_far = [train]
    for given, theirs in zip(added, words, strict=True):
        source = name_of(given)
        refuse_arrays(source, theirs, config.condition)
        try:
            opened = open_more(given, theirs)
        except ValueError as error:
            raise ConfigError(f"{option('add_data')} {source}: {error}") from None
        before = [*opened_so_far, *([] if held_out is None else [held_out])]
        refuse_others_values(source, opened, theirs, config.condition, before)
        opened_so_far.append(opened)
        more = _in_its_range(source, opened, train, log)
        more = _alike(source, more, train, needs_labels)
        more = _without_held_out(source, more, held_out, log)
        parts.append(more)
        try:
            whole = join(parts)
        except ValueError as error:
            raise ConfigError(f"{option('add_data')} {source}: {error}") from None
        ends.append((whole.fingerprint, len(whole), digests(whole)))
        log(f"Added {len(more):,} images of {source}: {len(whole):,} are trained on.")
    whole.grown_from = tuple(ends[:-1])
    return whole


def name_of(added: Any) -> str:
    """Return how an addition is called in records and messages."""
    return os.fspath(added) if is_path(added) else describe_object(added)


def _in_its_range(
    source: str, more: ImageDataset, train: ImageDataset, log: Callable[[str], None]
) -> ImageDataset:
    """Return measured values normalized as the run began with; pictures as they are."""
    if bool(more.measured) != bool(train.measured):
        kinds = (
            ("measured values", "pictures") if more.measured else ("pictures", "measured values")
        )
        raise ConfigError(
            f"{option('add_data')} {source} holds {kinds[0]}, and the training data {kinds[1]}."
            " Add what is read in the same way."
        )
    if not train.measured:
        return more
    from ddpm_lib.data.measurements.opening_measured import normalized

    units = [data.measured.get("unit") for data in (more, train)]
    if units[0] != units[1]:
        raise ConfigError(
            f"{option('add_data')} {source} is in {units[0] or 'no unit'}, and the training data in"
            f" {units[1] or 'no unit'}. Convert it, so that a number means the same in both."
        )
    spacings = [(data.measured.get("geometry") or {}).get("spacing") for data in (more, train)]
    if spacings[0] != spacings[1]:
        log(
            f"{source} has voxels of {spacings[0]}, the training data of {spacings[1]}: samples get"
            " the geometry of the first."
        )
    try:
        more = normalized(more, train.normalization)
    except ValueError as error:
        raise ConfigError(f"{option('add_data')} {source}: {error}") from None
    outside = _share_outside(more)
    if outside:
        log(
            f"Of the values of {source}, {100 * outside:.2g} % lie outside the range that the run"
            " began with, and are cut to it. A new run takes the range of all."
        )
    return more


def _share_outside(data: ImageDataset) -> float:
    """Return the share of measured values that a normalization cuts, of 400 entries at most."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(len(data), LOOKED_AT)).astype(np.int64))
    values = data.stored_values(rows)
    shape = (1, -1, *[1] * (values.ndim - 2))
    low, high = (
        np.asarray(ends, dtype=np.float64).reshape(shape)
        for ends in (data.normalization.low, data.normalization.high)
    )
    return float(((values < low) | (values > high)).mean())


def _alike(
    source: str, more: ImageDataset, train: ImageDataset, needs_labels: bool
) -> ImageDataset:
    """Return an addition with labels numbered as those of the training images."""
    names, own = train.class_names, more.class_names
    if names is None or (own is None and not needs_labels):
        return more
    if own is None:
        raise ConfigError(
            f"{option('add_data')} {source} has no labels, which the network reads. Sort its images"
            " as the training images are."
        )
    if own == names:
        return more
    unknown = sorted(set(own) - set(names))
    if unknown and needs_labels:
        raise ConfigError(
            f"{option('add_data')} {source} has the class {', '.join(unknown[:5])}, which the"
            f" training images have not: {', '.join(names)}."
        )
    assert more.labels is not None
    numbers = np.array([names.index(name) if name in names else 0 for name in own])
    return more.relabelled(numbers[more.labels.numpy()], names)


def _without_held_out(
    source: str,
    more: ImageDataset,
    held_out: ImageDataset | None,
    log: Callable[[str], None],
) -> ImageDataset:
    """Leave out copies of held-out images: trained on, they would say nothing of new ones."""
    kept, new = contents(held_out), contents(more)
    if kept is None or new is None:
        return more
    copies = np.isin(new, kept[kept != 0])
    if copies.all():
        raise ConfigError(f"All images of {source} are copies of held-out images.")
    if copies.any():
        log(f"Left out {int(copies.sum()):,} images of {source}: copies of held-out images.")
        return more.subset(np.flatnonzero(~copies))
    return more


def digests(data: ImageDataset) -> dict[str, str]:
    """Return a hash of the values of each condition."""
    return {name: values.digest() for name, values in data.conditions.items()}


def growth(data: ImageDataset, described: DataDescription) -> int | None:
    """Return how many of the training images a checkpoint was trained on before others were added;
    None where these are not what it was trained on.

    Args:
        data: The training images.
        described: The checkpoint's description of its data.
    """
    for fingerprint, images, _ in data.grown_from:
        if fingerprint == described.fingerprint:
            return images
    return None


def events_of(
    data: ImageDataset,
    state: RunState,
    options: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return when the run has grown, now included where it grows.

    Args:
        data: The training images now.
        state: The checkpoint that the run goes on from.
        options: Those of training, with paths that mean the same everywhere.
        say: Gets a line where it grows.
    """
    events = [dict(one) for one in state.trained_on.grown or []]
    before = growth(data, state.trained_on)
    if before is None:
        return events
    number = [images for _, images, _ in data.grown_from].index(before)
    event = {
        "step": state.step,
        "images_seen": state.images_seen,
        "images_before": before,
        "images": len(data),
        "added": list(options["add_data"])[number:],
    }
    say(f"Growing at step {state.step:,}: from {before:,} to {len(data):,} training images.")
    return [*events, event]


def described_as(
    described: DataDescription, events: Sequence[Mapping[str, Any]]
) -> DataDescription:
    """Return a description with the events of growth."""
    return dataclasses.replace(described, grown=[dict(one) for one in events] or None)


def reminder(described: DataDescription, added: Sequence[Any]) -> list[str]:
    """Say in a line what a run had grown by, where that is not named again."""
    before = [source for one in described.grown or [] for source in one.get("added", [])]
    names = [name_of(one) for one in added]
    named = {*names, *(os.path.abspath(os.path.expanduser(name)) for name in names)}
    missing = [source for source in before if source not in named]
    if not missing:
        return []
    return [
        f"data: it has grown by {', '.join(missing)}, which"
        f" {option('add_data')} names again ({option('add_data', missing[0])})"
    ]
