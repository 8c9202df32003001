"""Build a named thing from a table and a dict of options, as a config file or a command line spells it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ddpm_lib.registry import Registry, unknown_name

T = TypeVar("T")


def option_names(entry: Callable[..., object]) -> list[str]:
    """Return the names of the options of a table's entry: its parameters that are not positional-only."""
    parameters = inspect.signature(entry).parameters.values()
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def build(registry: Registry[Any], name: str, options: Mapping[str, Any] | None = None, *args: object) -> Any:
    """Call the entry `name` of a table with `args` and the options, refusing options it does not have.

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
        f"The {registry.kind} {cls} is not in the table of choices, so that a checkpoint could not rebuild it. "
        f'Add the class first, with .add("my_name", {cls}); choices now: {", ".join(registry)}.'
    )
