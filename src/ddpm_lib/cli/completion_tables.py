"""What can follow on a command line, as values: read off the commands' dataclasses."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tyro

from ddpm_lib.cli import COMMANDS, help
from ddpm_lib.cli.arguments import Option, options_of
from ddpm_lib.cli.values import is_list, members

RUNS = ("run", "runs", "base", "init_from")
"""Names of options and words that take a run directory."""


@dataclass(frozen=True)
class Flag:
    """An option of a command.

    Attributes:
        names: Its spellings, the long one first.
        about: What it does, in a few words.
        takes: "nothing", "value", "list", or "run" for a run directory.
        choices: Its values, where they are known; else files are offered.
    """

    names: tuple[str, ...]
    about: str
    takes: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A command.

    Attributes:
        name: It.
        about: What it does.
        flags: Its options.
        words: Choices of its first positional word, where they are known.
        runs: Whether its positional words may be run directories.
    """

    name: str
    about: str
    flags: tuple[Flag, ...]
    words: tuple[str, ...]
    runs: bool


def entries() -> list[Entry]:
    """Return all commands."""
    named = choices_by_name()
    return [entry_of(name, about, named) for name, about in COMMANDS.items()]


def command_class(name: str) -> type:
    """Return the dataclass of a command's options: the one of its module."""
    module = importlib.import_module(f"ddpm_lib.cli.{name}")
    return next(
        value
        for key, value in vars(module).items()
        if key.endswith("Command") and getattr(value, "__module__", "") == module.__name__
    )


def options_of_command(name: str) -> tuple[type, list[Option]]:
    """Return the dataclass of a command and its options."""
    cls = command_class(name)
    missing: dict[str, Any] = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return cls, options_of(cls, cls(**missing))


def entry_of(name: str, about: str, named: Mapping[str, tuple[str, ...]]) -> Entry:
    """Return one command.

    Args:
        name: It.
        about: What it does.
        named: Choices of options by their names, see `choices_by_name`.
    """
    cls, options = options_of_command(name)
    said = help.docs_of(cls)
    flags: list[Flag] = []
    for option in options:
        if option.positional:
            continue
        about_it = short(option.help or said.get(option.path[-1], ""))
        kinds = [kind for kind in members(option.annotation) if kind is not type(None)]
        choices = _choices(kinds) or named.get(option.path[-1], ())
        takes = "list" if is_list(option.annotation) else "value"
        if option.path[-1] in RUNS:
            takes = "run"
        if bool in kinds:
            takes = "nothing"
            flags.append(Flag((option.negation,), f"not: {about_it}", takes))
        names = (option.flag, *option.aliases)
        flags.append(Flag(names, about_it, takes, () if takes == "nothing" else choices))
    flags += [Flag(("--help", "-h"), "show examples and options", "nothing")]
    if name in {key.removeprefix("ddpm ") for key in help.COMMON}:
        flags.append(Flag(("--help-all",), "show all options", "nothing"))
    words = [option for option in options if option.positional]
    first = _choices(members(words[0].annotation)) if words else ()
    runs = bool(words) and words[0].path[-1] in RUNS
    if not runs and words:
        first = first or named.get(words[0].path[-1], ())
    return Entry(name, about, tuple(flags), first, runs)


def short(text: str) -> str:
    """Return the beginning of a help text, for a list beside others.

    >>> short("Learn the classes of the data (sets model.num_classes). More.")
    'Learn the classes of the data'
    """
    text = " ".join(text.split())
    for stop in (";", ". ", " (", ":"):
        text = text.split(stop, maxsplit=1)[0]
    return text.rstrip(".")[:70]


def _choices(kinds: Any) -> tuple[str, ...]:
    found: list[str] = []
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            kind = typing.get_args(kind)[0]
        if typing.get_origin(kind) is typing.Literal:
            found += map(str, typing.get_args(kind))
    return tuple(found)


def choices_by_name() -> dict[str, tuple[str, ...]]:
    """Return the values of options that are names of a registry, by the option's name."""
    from ddpm_lib.core.validation import DEVICES
    from ddpm_lib.evaluation import METRICS
    from ddpm_lib.metrics import FEATURES
    from ddpm_lib.nn import PRESETS
    from ddpm_lib.parametrization import PARAMETRIZATIONS
    from ddpm_lib.samplers import SAMPLERS
    from ddpm_lib.schedules import SCHEDULES
    from ddpm_lib.spacing import SPACINGS
    from ddpm_lib.time_sampling import TIME_SAMPLERS
    from ddpm_lib.variance import VARIANCES
    from ddpm_lib.weighting import WEIGHTINGS

    registries: dict[str, Any] = {
        "sampler": SAMPLERS,
        "sample_sampler": SAMPLERS,
        "schedule": SCHEDULES,
        "parametrization": PARAMETRIZATIONS,
        "weighting": WEIGHTINGS,
        "variance": VARIANCES,
        "time_sampler": TIME_SAMPLERS,
        "spacing": SPACINGS,
        "preset": PRESETS,
        "metrics": ("auto", *METRICS),
        "features": ("auto", *FEATURES),
        "device": DEVICES,
        "checkpoint": ("latest", "best", "all"),
    }
    return {name: tuple(map(str, values)) for name, values in registries.items()}
