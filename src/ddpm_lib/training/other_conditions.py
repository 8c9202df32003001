"""Where the conditions of images are that a run is scored on, and that are not its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.nn.data_conditions import DataCondition

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion

_OF_NETWORK = ("kind", "period", "encoder", "classes", "channels", "factor")
"""What a network knows of a condition that its values are read by."""


def words_of_others(
    diffusion: GaussianDiffusion, conditions: Sequence[str], given: Sequence[str]
) -> tuple[str, ...]:
    """Return the words of the conditions of images that the network was not trained on.

    Args:
        diffusion: The process.
        conditions: The words of the training images.
        given: Where those of the others are; what they leave open is as the network has it.

    Raises:
        ConfigError: If a name is not that of a condition of the network, or comes twice.
    """
    from ddpm_lib.data.condition_words import read_all_words

    known = data_conditions(diffusion.conditioners)
    try:
        said = {words.name: words for words in read_all_words(given)}
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for name in said:
        if not known:
            raise ConfigError(
                f"{option('condition')} {name}=… was given, but this network was trained without"
                " conditions of the data."
            )
        if name not in known:
            raise ConfigError(unknown_name(f"name in {option('condition')}", name, known))
    first = {words.name: words for words in read_all_words(conditions)}
    found = [words.written for name, words in first.items() if name not in said]
    for name, words in said.items():
        options = {} if name not in first else {**first[name].options}
        options |= _read_by(known[name])
        more = {k: v for k, v in options.items() if k not in words.options}
        found.append(words.written + "".join(f",{key}={value}" for key, value in more.items()))
    return tuple(found)


def _read_by(conditioner: DataCondition) -> dict[str, Any]:
    spec = conditioner.spec
    found = {name: spec[name] for name in _OF_NETWORK if spec.get(name) is not None}
    if found.get("classes", 0) > 2:
        del found["classes"]  # masks of 0 and 255 alone are refused, where nobody says it
    return {**found, "drop": conditioner.drop_prob}


def elsewhere(conditions: Sequence[str], others: Sequence[str]) -> set[str]:
    """Return the conditions whose source is another one than that of the training images."""
    from ddpm_lib.data.condition_words import read_all_words

    first = {words.name: _place(words.source) for words in read_all_words(conditions)}
    theirs = {words.name: _place(words.source) for words in read_all_words(others)}
    return {name for name, place in theirs.items() if first.get(name) != place}


def _place(source: str | None) -> str | None:
    return None if source is None else os.path.realpath(Path(source).expanduser())
