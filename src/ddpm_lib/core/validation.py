"""The type of an option: what is taken for it, and the sentence that anything else earns."""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.options import plain
from ddpm_lib.core.registry import nearest, suggestion
from ddpm_lib.core.text import short

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


def check_type(name: str, value: Any, annotation: Any) -> Any:
    """Return `value` as its annotation wants it, or raise.

    Numbers and lists of NumPy and torch count as Python's; a path or a `torch.device` as text; one
    number or word as a list of one; any list as a tuple; a whole float (1e5) as a whole number.

    Raises:
        ConfigError: If the value has another type.
    """
    try:
        return _fitted(name, plain(value), annotation)
    except _Unfit:
        raise ConfigError(
            f"{name} must be {describe_type(annotation)}; got {shown(value)}."
        ) from None


class _Unfit(Exception):
    """A value that is not what the annotation says; whoever asked knows the option's name."""


def _fitted(name: str, value: Any, annotation: Any) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _fitted(name, value, args[0])
    if origin in (typing.Union, types.UnionType):
        return _first_fit(name, value, args)
    if origin is Literal:
        return _choice(name, value, args, annotation)
    if origin is tuple:
        return _items(name, value, args)
    if origin is Sequence and isinstance(value, list | tuple):
        return _items(name, value, (args[0], ...))
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        # Options of parts are numbers or switches, such as {"zero_terminal_snr": True}.
        return {
            str(k): v if isinstance(v, bool) else check_type(f"{name}[{short(k, 60)}]", v, args[1])
            for k, v in value.items()
        }
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # a whole number that no float holds
            raise _Unfit from None
        if number != number:  # no option means NaN; everything that it touches would be
            raise _Unfit
        return number
    if annotation is int and isinstance(value, int | float) and not isinstance(value, bool):
        if value == int(value) if abs(value) < 2**53 else isinstance(value, int):
            return int(value)
        raise _Unfit
    if annotation is str and (is_path(value) or isinstance(value, torch.device)):
        return os.fsdecode(value) if is_path(value) else str(value)
    if annotation is Any or (annotation in (None, type(None)) and value is None):
        return value
    if (
        isinstance(annotation, type)
        and annotation not in (int, float)
        and isinstance(value, annotation)
    ):
        return value
    raise _Unfit


def _first_fit(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        try:
            return _fitted(name, value, choice)
        except (ConfigError, _Unfit):
            continue
    raise _Unfit


def _choice(name: str, value: Any, choices: tuple[Any, ...], annotation: Any) -> Any:
    if value in choices and type(value) in {type(a) for a in choices}:
        return value
    if isinstance(value, str):
        hint = nearest(value, [str(a) for a in choices])
        also = f" Did you mean {hint!r}?" if hint else ""
        raise ConfigError(f"{name} must be {describe_type(annotation)}; got {short(value)}.{also}")
    raise _Unfit


def _items(name: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    any_length = kinds[-1] is Ellipsis
    if isinstance(value, int | float | str) and not isinstance(value, bool) and any_length:
        try:
            return (_fitted(name, value, kinds[0]),)
        except _Unfit:
            raise ConfigError(
                f"{name} must be a list of {_plural(kinds[0])}; got {shown(value)}."
            ) from None
    if not isinstance(value, list | tuple):
        raise _Unfit
    wanted = [kinds[0]] * len(value) if any_length else list(kinds)
    if len(wanted) != len(value):
        raise _Unfit
    return tuple(
        check_type(f"{name}[{i}]", v, kind) for i, (v, kind) in enumerate(zip(value, wanted))
    )


def is_path(value: Any) -> bool:
    """Say whether a value is a text or something that stands for a path."""
    return isinstance(value, str | os.PathLike)


def describe_type(annotation: Any) -> str:
    """Word an annotation for a message."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return describe_type(args[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(a) for a in args)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(repr(a) for a in args)
    if origin is tuple:
        if args[-1] is not Ellipsis:
            return f"a list of {len(args)} {_plural(args[0])}"
        return f"a list of {_plural(args[0])}"
    if annotation is type(None):
        return "none"
    if origin in (dict, Mapping):
        return "options by name"
    if origin is Sequence:
        return f"a list of {_plural(args[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(annotation, str(getattr(annotation, "__name__", annotation)))


def _plural(annotation: Any) -> str:
    names = {int: "whole numbers", float: "numbers", str: "texts"}
    return names.get(annotation) or f"entries, each {describe_type(annotation)}"


def shown(value: Any) -> str:
    """Write a value for a message, short whatever it is: an array by its shape, an object by its
    class.

    >>> shown("64"), shown(torch.zeros(2, 3)), shown(list(range(99)))
    ("'64' (str)", 'a Tensor of shape (2, 3)', '[0, 1, 2, 3, 4, 5, 6, 7, ...] (list)')
    """
    kind = type(value).__name__
    if value is None or isinstance(value, bool | int | float | str | bytes | os.PathLike):
        return f"{short(value)} ({kind})"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"a {kind} of shape {tuple(shape)}" if shape else f"{short(plain(value))} ({kind})"
    if isinstance(value, list | tuple | dict | set | frozenset | range):
        inner = value.values() if isinstance(value, dict) else value
        if all(v is None or isinstance(v, bool | int | float | str | os.PathLike) for v in inner):
            return f"{short(value)} ({kind})"
        return f"a {kind} of {len(value)} entries"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return f"an object of the class {kind}"


def check_device_name(name: str, value: str) -> str:
    """Return the name of a device in the library's spelling, or raise.

    Args:
        name: The option, for the message.
        value: "auto", a kind of device, or a kind and a number such as "cuda:1".

    Raises:
        ConfigError: For other names, naming the nearest right one.
    """
    kind, colon, index = value.partition(":")
    if kind in ("cpu", "mps") and index == "0":
        return kind  # torch writes them so; there is one of each
    if kind in ("cuda", "xpu") and colon and re.fullmatch("[0-9]+", index):
        return f"{kind}:{int(index)}"
    if value in DEVICES:
        return value
    also = ""
    if re.fullmatch("[0-9]+", value):
        also = f" GPU {value} is 'cuda:{value}'."
    elif value.lower().startswith(("gpu", "nvidia", "cuda")):
        also = " Did you mean 'cuda'? GPU 1 is 'cuda:1'."
    else:
        hint = nearest(value, DEVICES)
        also = f" Did you mean {hint!r}?" if hint else ""
    raise ConfigError(
        f"{name} must be 'auto', 'cpu', 'cuda', 'mps' or 'xpu', or one GPU by its number such as"
        f" 'cuda:1'; got {short(value)}.{also}"
    )


def unknown_options(given: Mapping[str, Any] | set[str], known: list[str], where: str) -> None:
    """Raise for option names that do not exist, naming the nearest right ones.

    Raises:
        ConfigError: If there is any.
    """
    wrong = [name for name in given if name not in known]
    if wrong:
        parts = []
        for name in wrong[:10]:
            hint = suggestion(str(name), known)
            parts.append(short(name, 80) + (f" ({hint.removesuffix('.')})" if hint else ""))
        parts += [f"and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        raise ConfigError(
            f"Unknown option of {where}: {', '.join(parts)}. Known: {', '.join(sorted(known))}."
        )
