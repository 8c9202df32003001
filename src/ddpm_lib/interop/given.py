"""What a user may say of a foreign file that the file does not say itself."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.validation import check_type, unknown_options

AttentionOrder = Literal["legacy", "new"]
Frequencies = Literal["learned", "random"]


@dataclass(frozen=True, kw_only=True)
class GivenOptions:
    """The options of all importers by our names; None leaves it to the file or to an assumption.

    Each reader takes those that `Reader.options` lists.
    """

    image_size: tuple[int, ...] | None = None
    """Size of the images: one number for squares, or height and width."""
    channels: int | None = None
    """Channels of the images, where the network's input could be that of others as well."""
    timesteps: int | None = None
    """Number of noise levels."""
    time_scale: float | None = None
    """Factor on the time that the network is shown."""
    schedule: str | None = None
    """Noise schedule by its name in ddpm_lib."""
    schedule_options: dict[str, float] | None = None
    """Options of the schedule."""
    parametrization: str | None = None
    """What the network predicts: eps, x0, v or edm."""
    variance: str | None = None
    """Variance of ancestral sampling: fixed_small, fixed_large or learned_range."""
    loss: str | None = None
    """simple, hybrid or vlb."""
    blocks_per_level: int | None = None
    """Residual blocks per level, where the shapes allow several numbers."""
    heads: int | None = None
    """Attention heads."""
    heads_up: int | None = None
    """Attention heads on the way up."""
    head_dim: int | None = None
    """Channels per attention head, instead of heads."""
    attention_order: AttentionOrder | None = None
    """Order of the channels of attention in files of OpenAI: legacy, or new
    (use_new_attention_order).
    """
    dropout: float | None = None
    """Dropout probability, for training on."""
    class_drop_prob: float | None = None
    """Probability of hiding the class label, for training on."""
    ema_decay: float | None = None
    """Decay per step of the averages, where the file does not say it."""
    low_res_factor: int | None = None
    """How many times smaller the image is that a super-resolution network enlarges."""
    time_features: Frequencies | None = None
    """Whether frequencies of the time that the file holds were learned or random."""
    time_base: float | None = None
    """The lowest frequency of the time embedding is one over this."""


def _at_least_one(value: int) -> bool:
    return value >= 1


def _positive(value: float) -> bool:
    return 0 < value < math.inf


_COUNTS = ("timesteps", "channels", "heads", "heads_up", "head_dim", "low_res_factor")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys((*_COUNTS, "blocks_per_level"), (_at_least_one, "at least 1")),
    **dict.fromkeys(("time_scale", "time_base"), (_positive, "a positive number")),
    "image_size": (
        lambda sizes: len(sizes) in (1, 2) and min(sizes) >= 1,
        "one number for squares, or height and width",
    ),
    "dropout": (lambda p: 0 <= p < 1, "in [0, 1)"),
    "class_drop_prob": (lambda p: 0 <= p <= 1, "in [0, 1]"),
    "ema_decay": (lambda decay: 0 <= decay < 1, "in [0, 1)"),
}
"""What is asked of values besides their type, and how it is said."""


def checked(given: Mapping[str, Any], known: tuple[str, ...], reader: str) -> dict[str, Any]:
    """Return the values that were given, of the types that they should have, image_size as height
    and width; None counts as not given.

    Args:
        given: By our names of options.
        known: Those that the reader takes.
        reader: Its name, for the message.

    Raises:
        ConfigError: For an option that this reader does not take, listing those it does, a wrong
            type, or a value out of range.
    """
    values = {name: value for name, value in given.items() if value is not None}
    if not known and values:
        raise ConfigError(f"The format {reader} says all of itself and takes no options.")
    unknown_options(values, list(known), f"the format {reader}")
    hints = typing.get_type_hints(GivenOptions)
    found = {name: check_type(name, value, hints[name]) for name, value in values.items()}
    for name, value in found.items():
        fits, words = _RANGES.get(name, (None, ""))
        if fits is not None and not fits(value):
            raise ConfigError(f"{option(name)} must be {words}; got {values[name]}.")
    if len(found.get("image_size", (0, 0))) == 1:
        found["image_size"] *= 2
    return found


def needed(given: Mapping[str, Any], name: str, why: str) -> Any:
    """Return a value that no file of this format says and nobody can assume.

    Args:
        given: What was given.
        name: The option.
        why: What the file says instead, for the message.

    Raises:
        ConfigError: If it was not given.
    """
    if name not in given:
        example = 64 if name == "image_size" else None
        raise ConfigError(f"{why}. Give {option(name, example)}.")
    return given[name]


def refuse_given(given: Mapping[str, Any], names: Sequence[str], why: str) -> None:
    """Refuse options that say something of what a file does not have, or says itself.

    Args:
        given: What was given.
        names: The options that would have no effect.
        why: What the file is, for the message.

    Raises:
        ConfigError: Naming the first of them that was given.
    """
    for name in names:
        if name in given:
            raise ConfigError(f"{why}, so {option(name, given[name])} means nothing. Leave it out.")


def heads_given(given: Mapping[str, Any]) -> dict[str, int]:
    """Return what was given of attention heads: their number, on the way up also, or their width.

    Raises:
        ConfigError: If both were.
    """
    said = {name: given[name] for name in ("heads", "heads_up", "head_dim") if name in given}
    if "head_dim" in said and len(said) > 1:
        other = next(name for name in said if name != "head_dim")
        raise ConfigError(
            f"{option(other, said[other])} and {option('head_dim', said['head_dim'])} both say how"
            " attention is divided. Give one of them."
        )
    return said


def option_names() -> tuple[str, ...]:
    """Return the names of all options that importers take."""
    return tuple(field.name for field in dataclasses.fields(GivenOptions))
