"""Options as config files, command lines and notebooks spell them: plain values, and named things
built from a table.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch

from ddpm_lib.core.registry import Registry, unknown_name

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., None])


def plain(value: Any) -> Any:
    """Return the Python value that a number, a list or a member of an enumeration of another
    library stands for.

    >>> plain(np.int64(3)), plain(torch.tensor(0.5)), plain(range(3)), plain([np.float64(0.25)])
    (3, 0.5, (0, 1, 2), [0.25])
    """
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        if value.ndim == 0:
            return value.item()
        return tuple(value.tolist()) if value.ndim == 1 else value
    if isinstance(value, range):
        return tuple(value)
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    return value


def takes_plain(init: F) -> F:
    """Let a constructor take numbers and lists of NumPy and torch, and one number for a list of
    them.

    What it keeps as its config is then plain, so that checkpoints can hold it.
    """
    parameters = inspect.signature(init).parameters
    lists = {
        name for name, p in parameters.items() if str(p.annotation).startswith("tuple[int, ...]")
    }

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        names = [name for name in parameters if name != "self"]
        given = {name: plain(value) for name, value in zip(names, args)}
        named = {name: plain(value) for name, value in kwargs.items()}
        for known in (given, named):
            for name in lists & set(known):
                if isinstance(known[name], int) and not isinstance(known[name], bool):
                    known[name] = (known[name],)
        init(self, *given.values(), *args[len(given) :], **named)

    return wrapped  # type: ignore[return-value]


def option_names(entry: Callable[..., object]) -> list[str]:
    """Return the names of the options of a table's entry: its parameters that are not
    positional-only.
    """
    parameters = inspect.signature(entry).parameters.values()
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def build(
    registry: Registry[Any], name: str, options: Mapping[str, Any] | None = None, *args: object
) -> Any:
    """Call the entry `name` of a table with `args` and the options, refusing options it does not
    have.

    Raises:
        ValueError: If the name or an option is unknown, or a required option is missing.
    """
    entry = registry[name]
    given, known = dict(options or {}), option_names(entry)
    what = f"{registry.kind} {name!r}"
    for key in given:
        if not known:
            raise ValueError(f"The {what} takes no options; got {key!r}. Leave it out.")
        if key not in known:
            raise ValueError(unknown_name(f"option of the {what}", key, known))
    parameters = inspect.signature(entry).parameters
    for key in known:
        if parameters[key].default is inspect.Parameter.empty and key not in given:
            raise ValueError(f"The {what} needs the option {key!r}. Pass it in the options.")
    return entry(*args, **given)


def registered_name(registry: Registry[Any], thing: object) -> str:
    """Return the name under which the class of `thing` stands in a table.

    Raises:
        ValueError: If it stands in none: a checkpoint could not name it.
    """
    for name, entry in registry.items():
        if type(thing) is entry:
            return name
    cls = type(thing).__name__
    raise ValueError(
        f"The {registry.kind} {cls} is not in the table of choices, so that a checkpoint could not"
        " rebuild it. "
        f'Add the class first, with .add("my_name", {cls}); choices now: {", ".join(registry)}.'
    )
