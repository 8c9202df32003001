"""Conditions of what is added to a run: each image needs its own value, and may not get that of
another image of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import in_flags, option

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.condition_words import ConditionWords


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
        twice = next((i for i in range(len(data)) if data.names.raw(i) in names), None)
        if twice is not None:
            raise ConfigError(
                f"{option('add_data')} {source}: {data.names[twice]} is the name of an image of the"
                f" training data too, so that {shared[0].source} cannot tell the condition"
                f" {shared[0].name!r} of both. {remedy(shared[0].name)}"
            )


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
