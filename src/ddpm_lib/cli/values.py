"""From the words of a command line to values of the types of options."""

from __future__ import annotations

import math
import re
import types
import typing
from typing import Any, Literal

from ddpm_lib.core.errors import ConfigError

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
NUMBER = re.compile(r"-(\d|\.\d|inf\b)")
PAIR = re.compile(r"[A-Za-z_][\w-]*=")


class UsageError(ConfigError):
    """Words of a command line that cannot be read."""


def is_flag(word: str) -> bool:
    """Whether a word is a flag: it begins with a dash, is no number, and its name has no blank."""
    if len(word) < 2 or word[0] != "-" or NUMBER.match(word):
        return False
    return not any(letter.isspace() for letter in word.partition("=")[0])


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the types that a union allows, or the one type."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def is_list(annotation: Any) -> bool:
    """Say whether a type is a list, or may be one."""
    return any(typing.get_origin(kind) is tuple for kind in members(annotation))


def choices_of(kind: Any) -> tuple[Any, ...]:
    """Return the values of a `Literal`; none of other types."""
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def fits(word: str, kind: Any) -> bool:
    """Say whether a word reads as a value of a type."""
    try:
        _scalar(word, kind)
    except ValueError:
        return False
    return True


def is_plain(word: str) -> bool:
    """Say whether a word is a number or a switch rather than a name."""
    return word.lower() in (*TRUE, *FALSE) or fits(word, float)


def convert(words: list[str], annotation: Any, append: bool = False) -> Any:
    """Return the value that words have as a type.

    Raises:
        ValueError: With the word that does not fit.
    """
    kinds = members(annotation)
    if type(None) in kinds and len(words) == 1 and words[0].lower() == "none":
        return None
    many = next((k for k in kinds if typing.get_origin(k) in (tuple, dict)), None)
    named = [kind for kind in kinds if choices_of(kind)]
    if many is None or (len(words) == 1 and any(fits(words[0], kind) for kind in named)):
        return _one_of(words, kinds)
    if typing.get_origin(many) is dict:
        return _pairs(words)
    arguments = typing.get_args(many)
    element = arguments[0]
    if choices_of(element) and len(words) == 1 and words[0].lower() == "none":
        return ()
    if not append:
        words = [part for word in words for part in _split(word, element) if part]
    if arguments[-1] is not Ellipsis and len(words) != len(arguments):
        raise ValueError(" ".join(words))
    return tuple(_one_of([word], (element,)) for word in words)


def _split(word: str, element: Any) -> list[str]:
    if element is str and PAIR.match(word):  # a value may hold commas
        return re.split(r",(?=[A-Za-z_][\w-]*=)", word)
    return word.strip("[]()").split(",") if element is not str else word.split(",")


def _one_of(words: list[str], kinds: tuple[Any, ...]) -> Any:
    text = " ".join(words)
    for kind in sorted(kinds, key=lambda k: k is str):  # text takes everything
        if kind is not type(None) and words and fits(text, kind):
            return _scalar(text, kind)
    raise ValueError(text)


def _scalar(text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in TRUE:
            return True
        if text.lower() in FALSE:
            return False
    elif kind is int:
        number = (
            float(text) if re.fullmatch(r"[-+]?[\d.]+e\+?\d+", text) else int(text)
        )  # 2e4 steps
        if number == int(number):
            return int(number)
    elif kind is float:
        number = float(text)
        if math.isnan(number):
            raise ValueError(text)
        return number
    elif typing.get_origin(kind) is Literal:
        for choice in typing.get_args(kind):
            if str(choice) == text:
                return choice
    raise ValueError(text)


def _pairs(words: list[str]) -> dict[str, Any]:
    flat = [part for word in words for part in _split(word, str)]
    found: dict[str, Any] = {}
    place = 0
    while place < len(flat):
        name, equals, text = flat[place].partition("=")
        if not equals:
            place += 1
            if place == len(flat):
                raise ValueError(name)
            text = flat[place]
        if not is_plain(text):
            raise ValueError(flat[place])
        found[name.replace("-", "_")] = float(text) if fits(text, float) else _scalar(text, bool)
        place += 1
    return found


def wanted(annotation: Any) -> str:
    """Word what a type takes on a command line."""
    kinds = [kind for kind in members(annotation) if kind is not type(None)]
    return " or ".join(map(_wanted, kinds))


def _wanted(kind: Any) -> str:
    plural = {int: "whole numbers", float: "numbers", str: "words"}
    if typing.get_origin(kind) is tuple:
        element, *rest = typing.get_args(kind)
        many = plural.get(element, "values")
        return many if rest[-1:] == [Ellipsis] else f"{len(rest) + 1} {many}"
    if typing.get_origin(kind) is dict:
        return "name=number pairs"
    if choices_of(kind):
        return ("one of " if len(choices_of(kind)) > 1 else "") + ", ".join(
            map(repr, choices_of(kind))
        )
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}.get(
        kind, "a value"
    )
