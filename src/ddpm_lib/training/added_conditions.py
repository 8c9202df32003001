"""Conditions of what is added to a run, and of what it holds out: each image needs its own value,
and may not get that of another image of the same name.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import in_flags, option
from ddpm_lib.core.validation import is_path

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.condition_words import ConditionWords
    from ddpm_lib.data.contents import Origin


def words_of_additions(
    conditions: Sequence[str], more_conditions: Sequence[str], added: Sequence[Any]
) -> list[tuple[str, ...]]:
    """Return the words of the conditions of each addition.

    Args:
        conditions: Those of the training data.
        more_conditions: Where those of additions are: for a name as many as there are additions, in
            their order; open sets with a condition of that name do not count.
        added: What is added, in order.

    Raises:
        ConfigError: If a name is not that of a condition, or there are too few or too many.
    """
    from ddpm_lib.data.condition_words import read_all_words, read_words

    asked = read_all_words(conditions)
    given: dict[str, list[ConditionWords]] = {words.name: [] for words in asked}
    for written in more_conditions:
        one = read_words(written)
        if one.name not in given:
            what = f"name in {option('add_condition')}"
            raise ConfigError(unknown_name(what, one.name, list(given)))
        given[one.name].append(one)
    found: list[list[str]] = [[] for _ in added]
    for words in asked:
        lacking = [k for k, more in enumerate(added) if words.name not in own_conditions(more)]
        theirs = given[words.name]
        if theirs and len(theirs) != len(lacking):
            raise ConfigError(
                f"{option('add_condition')} names {len(theirs)} sources of the condition"
                f" {words.name!r}, and {option('add_data')} adds {len(lacking)} without values of"
                " it: name one for each, in their order."
            )
        for place, k in enumerate(lacking):
            found[k].append(_with_options(theirs[place], words) if theirs else words.written)
    return [tuple(each) for each in found]


def own_conditions(added: Any) -> Iterable[str]:
    """Return the names of the conditions that an addition, being an open set, has already."""
    return getattr(added, "conditions", None) or ()


def _with_options(words: ConditionWords, first: ConditionWords) -> str:
    """Return words with what was said of the condition of the training data, such as its kind."""
    missing = {k: v for k, v in first.options.items() if k not in words.options}
    return words.written + "".join(f",{name}={value}" for name, value in missing.items())


def refuse_others_values(
    source: str,
    more: ImageDataset,
    words: Sequence[str],
    first: Sequence[str],
    before: Sequence[ImageDataset],
) -> None:
    """Refuse conditions that would be read from where those of other images are.

    Args:
        source: How the addition is called.
        more: The addition.
        words: Of its conditions.
        first: The words of the conditions of the training data.
        before: The images so far: trained on, held out and added.

    Raises:
        ConfigError: If a table or folder outside of the data knows the addition by names that other
            images have.
    """
    from ddpm_lib.data.condition_words import read_words

    shared = [one for one in map(read_words, words) if one.source and one.written in first]
    if not shared:
        return
    names = {more.names.raw(i) for i in range(len(more))}
    for data in before:
        if all(_are_apart(more, data, one.name) for one in shared):
            continue
        twice = next((i for i in range(len(data)) if data.names.raw(i) in names), None)
        if twice is not None:
            raise ConfigError(
                f"{option('add_data')} {source}: {data.names[twice]} is the name of an image of the"
                f" training data too, so that {shared[0].source} cannot tell the condition"
                f" {shared[0].name!r} of both. {remedy(shared[0].name)}"
            )


def words_of_held_out(
    conditions: Sequence[str], val_conditions: Sequence[str], val_data: Any
) -> tuple[str, ...]:
    """Return the words of the conditions of val_data: its own where they are named or where it is
    an open set that has them, else those of the training data.

    Raises:
        ConfigError: If a name is not that of a condition.
    """
    from ddpm_lib.data.condition_words import read_all_words

    asked = read_all_words(conditions)
    given = {words.name: words for words in read_all_words(val_conditions)}
    for name in given:
        if name not in [words.name for words in asked]:
            what = f"name in {option('val_condition')}"
            raise ConfigError(unknown_name(what, name, [words.name for words in asked]))
    own = own_conditions(val_data)
    return tuple(
        _with_options(given[words.name], words) if words.name in given else words.written
        for words in asked
        if words.name in given or words.name not in own
    )


def refuse_values_of_others(
    held_out: ImageDataset, train: ImageDataset, val_data: Any, data: Any
) -> None:
    """Refuse held-out images whose conditions are the entries of training images.

    An image that is trained on as well, with the same contents, has its own entry.

    Args:
        held_out: The held-out images, of another source than the training images.
        train: The training images.
        val_data: What the held-out images were opened from.
        data: What the training images were opened from.

    Raises:
        ConfigError: Naming one of each, and what both have their values from.
    """
    for name, values in held_out.conditions.items():
        other = train.conditions.get(name)
        one, two = values.taken, None if other is None else other.taken
        if one is None or two is None or one.path != two.path:
            continue
        place = {int(entry): i for i, entry in enumerate(two.entries) if entry >= 0}
        pairs = [(i, place[int(e)]) for i, e in enumerate(one.entries) if int(e) in place]
        new, old = contents(held_out), contents(train)
        if new is not None and old is not None:
            pairs = [(i, j) for i, j in pairs if not new[i] == old[j] != 0]
        if pairs:
            first, second = pairs[0]
            pair = (
                f"{_within(val_data)}{held_out.names[first]} and for the training image"
                f" {_within(data)}{train.names[second]}"
            )
            raise ConfigError(
                f"{option('val_data')}: {one.path} has one value of the condition {name!r} for"
                f" {pair}, which is another image. {_remedy_held_out(name)}"
            )


def _within(data: Any) -> str:
    """Return what stands before the name of an image of a source."""
    return f"{os.fspath(data).rstrip('/')}/" if is_path(data) else ""


def refuse_values_of_training(
    data: ImageDataset, given: Any, trained_on: Origin | None, apart: Collection[str] = ()
) -> None:
    """Refuse images that a run did not see whose conditions are those of images that it did.

    Args:
        data: Images that are opened as the run opens its own.
        given: What they were opened from.
        trained_on: What the run noted of its images; None where it did not.
        apart: Conditions that are known to be read from elsewhere.

    Raises:
        ConfigError: Naming an image, and what its value is read from.
    """
    if trained_on is None or data.origin is None:
        return
    if data.origin.fingerprint == trained_on.fingerprint:
        return
    place = {trained_on.names.raw(i): i for i in range(len(trained_on.names))}
    new, old = contents(data), trained_on.content
    for name, values in data.conditions.items():
        taken = values.taken
        if taken is None or taken.by == "path" or name in apart:
            continue
        for i in range(len(data)) if taken.by == "name" else [0]:
            j = place.get(data.names.raw(i), -1)
            same = j >= 0 and new is not None and old is not None and new[i] == old[j] != 0
            if (j >= 0 or taken.by == "order") and not same and taken.entries[i] >= 0:
                raise ConfigError(
                    f"The condition {name!r} of {_within(given)}{data.names[i]} would be read from"
                    f" {taken.path}, which has the value of another image there: one that the run"
                    f" was trained on. Say where theirs are: {_said_of(name)}. Or let a table name"
                    " each image by its folder and name (val/00.png)."
                )


def _said_of(name: str) -> str:
    return f"--condition {name}=FILE" if in_flags() else f'condition=("{name}=FILE",)'


def _remedy_held_out(name: str) -> str:
    place = "Let a table name each by its folder and name (val/00.png)"
    if in_flags():
        return (
            f"Say where the values of the held-out images are: --val-condition {name}=FILE. Or"
            f" {place[0].lower()}{place[1:]}."
        )
    return (
        "Say where the values of the held-out images are:"
        f' val_condition=("{name}=FILE",); or give an open set that has them:'
        f' val_data=open_dataset(…, conditions="{name}=FILE"). {place}, and no more is needed.'
    )


def contents(data: ImageDataset | None) -> np.ndarray | None:
    """Return a hash of each image, int64 (n,); None where contents are not compared."""
    origin = None if data is None else data.origin
    if data is None or origin is None or origin.content is None:
        return None
    place = {origin.names.raw(i): i for i in range(len(origin.names))}
    rows = [place.get(data.names.raw(i), -1) for i in range(len(data))]
    return None if min(rows, default=-1) < 0 else origin.content[rows]


def _are_apart(more: ImageDataset, data: ImageDataset, name: str) -> bool:
    """Whether two sets are known to have different entries of what a condition is read from."""
    both = [each.conditions.get(name) for each in (more, data)]
    taken = [None if values is None else values.taken for values in both]
    if taken[0] is None or taken[1] is None:
        return False
    entries = np.intersect1d(taken[0].entries, taken[1].entries)
    return taken[0].path != taken[1].path or not bool((entries >= 0).any())


def refuse_arrays(source: str, words: Sequence[str], first: Sequence[str]) -> None:
    """Refuse to take the entries of an array, which belong to the training images, for others.

    Raises:
        ConfigError: Naming the condition.
    """
    from ddpm_lib.data.condition_words import ARRAY, read_words

    for one in map(read_words, words):
        if one.source and Path(one.source).suffix.lower() == ARRAY and one.written in first:
            raise ConfigError(
                f"{option('add_data')} {source}: the condition {one.name!r} is read from"
                f" {one.source}, whose entries are those of the training data."
                f" {remedy(one.name)}"
            )


def remedy(name: str) -> str:
    """Say how the values of a condition are given for what is added."""
    if in_flags():
        return f"Say where its values are: --add-condition {name}=FILE."
    return (
        f'Say where its values are: add_condition=("{name}=FILE",); or add an open set that has'
        f' them: open_dataset(…, conditions="{name}=FILE").'
    )
