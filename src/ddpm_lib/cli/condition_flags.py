"""What `--cond` and `--sweep` say, as values of the network's conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.text import digits_between
from ddpm_lib.diffusion import GaussianDiffusion
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.nn.data_conditions import DataCondition
from ddpm_lib.runs.loading import LoadedRun
from ddpm_lib.runs.run_conditions import fit_of
from ddpm_lib.runs.told_conditions import ToldConditions, Values, read_told
from ddpm_lib.runs.told_values import Frame, read_number, read_value

SWEEP_ROWS = 4
"""Rows of a sweep, where nobody says how many images there are."""
SWEPT = 8
"""Values of a number that a sweep shows, where nobody says how many."""


@dataclass(frozen=True)
class Sweep:
    """A condition that goes through values from column to column.

    Attributes:
        name: Of the condition.
        values: One per column, (columns, …).
        words: One per column, for the user.
    """

    name: str
    values: Tensor
    words: tuple[str, ...]


def read_cond(loaded: LoadedRun, given: Sequence[str], fit: str | None = None) -> ToldConditions:
    """Read `--cond NAME=VALUE`, a value of all images, and `--cond NAME=SOURCE`, one of each.

    Args:
        loaded: The run.
        given: The words.
        fit: How pictures are fitted; None: as the run fitted its images.

    Raises:
        ConfigError: For a condition that the network does not have, or a value that is none.
    """
    found = cond_words(loaded.diffusion, given)
    return read_told(loaded.diffusion, found, fit or fit_of(loaded))


def cond_words(diffusion: GaussianDiffusion, given: Sequence[str]) -> dict[str, str]:
    """Return the words of `--cond NAME=WORD` by name.

    Raises:
        ConfigError: For a condition that the network does not have, or that is named twice.
    """
    found: dict[str, str] = {}
    for written in given:
        name, _, value = _named(diffusion, written, "--cond")
        if name in found:
            raise ConfigError(f"--cond {name} is given twice. Give it once.")
        found[name] = value
    return found


def read_sweep(diffusion: GaussianDiffusion, written: str | None) -> Sweep | None:
    """Return the values of `--sweep NAME`, `NAME=LOW..HIGH` or `NAME=A,B,C`; None for no sweep.

    Raises:
        ConfigError: For a condition that cannot be swept, or values that are none.
    """
    if written is None:
        return None
    name, conditioner, value = _named(diffusion, written, "--sweep", bare=True)
    if conditioner.kind not in ("number", "angle", "label", "tags", "text"):
        raise ConfigError(
            f"--sweep goes through numbers, angles, labels, tags and texts; {name!r} is of the kind"
            f" {conditioner.kind}."
        )
    words = _swept(conditioner, value)
    each = [read_value(conditioner, word, Frame.of(diffusion)) for word in words]
    return Sweep(name, torch.cat(each), tuple(words))


def _named(
    diffusion: GaussianDiffusion, written: str, flag: str, bare: bool = False
) -> tuple[str, DataCondition, str]:
    name, equals, value = written.partition("=")
    known = data_conditions(diffusion.conditioners)
    if name == "class_label":
        raise ConfigError(
            f"{flag} is for conditions of the data; classes are named by --class-label."
        )
    if not known:
        raise ConfigError(
            f"{flag} {written} was given, but this network was trained without conditions of the"
            " data (--condition)."
        )
    if name not in known:
        raise ConfigError(unknown_name("condition", name, known))
    empty = equals and known[name].kind == "tags" and not bare  # none of the tags
    if not value and not empty and not (bare and not equals):
        raise ConfigError(
            f"{flag} is written NAME=VALUE, such as {_example(known)}; got {written!r}."
        )
    return name, known[name], value


def _example(known: Mapping[str, DataCondition]) -> str:
    name, first = next(iter(known.items()))
    words = {"label": first.spec.get("names", ["word"])[0] if first.kind == "label" else ""}
    usual = {"mask": "m.png", "image": "a.png", "vector": "v.npy", "text": "words", "tags": "a|b"}
    return f"{name}={words.get(first.kind) or usual.get(first.kind, '0.3')}"


def _swept(conditioner: DataCondition, value: str) -> list[str]:
    if ".." in value and conditioner.kind in ("number", "angle"):
        low, _, high = value.partition("..")
        ends = [read_number(conditioner, end) for end in (low, high)]
    elif words := [word.strip() for word in value.split(",") if word.strip()]:
        return words
    elif value:
        raise ConfigError(f"--sweep {conditioner.name}={value} names no value. Write A,B,C.")
    elif conditioner.kind in ("label", "tags"):
        return list(conditioner.spec["names"])
    elif conditioner.kind == "angle":
        period = conditioner.spec["period"]
        return [f"{period * k / SWEPT:g}" for k in range(SWEPT)]
    elif conditioner.kind == "number" and conditioner.fitted:
        ends = [conditioner.spec["low"], conditioner.spec["high"]]
    else:
        raise ConfigError(f"--sweep {conditioner.name} needs values: {conditioner.name}=A,B,C.")
    digits = digits_between(ends[0], ends[1])
    return [f"{v:.{digits}g}" for v in np.linspace(ends[0], ends[1], SWEPT)]


@dataclass(frozen=True)
class Told:
    """What the flags say about the conditions of the data.

    Attributes:
        values: Those of all images, and those of each.
        sweep: What changes from column to column, None for nothing.
    """

    values: Values
    sweep: Sweep | None = None

    @classmethod
    def none(cls) -> Told:
        """Return what no flag says."""
        return cls(Values({}, {}, {}))

    @classmethod
    def read(
        cls,
        loaded: LoadedRun,
        cond: Sequence[str],
        sweep: str | None,
        names: Sequence[str] | None = None,
    ) -> Told:
        """Read the flags.

        Args:
            loaded: The run.
            cond: The words of --cond.
            sweep: That of --sweep.
            names: Of the pictures that samples belong to, where there are some.

        Raises:
            ConfigError: For what the network does not take.
        """
        swept = read_sweep(loaded.diffusion, sweep)
        told = read_cond(loaded, cond)
        both = [swept.name for word in cond if swept and word.partition("=")[0] == swept.name]
        if both:
            raise ConfigError(f"--cond and --sweep both name {both[0]!r}. Give it once.")
        return cls(told.values(names), swept)

    @property
    def fixed(self) -> Mapping[str, Tensor]:
        """By name, a batch of one."""
        return self.values.fixed

    @property
    def columns(self) -> int | None:
        """Columns of the sweep."""
        return None if self.sweep is None else len(self.sweep.values)

    @property
    def count(self) -> int | None:
        """How many images there are, where nobody says it: one per entry, in every column of a
        sweep; None where neither says.
        """
        rows = self.values.count
        if rows is None and self.columns is None:
            return None
        return (rows or SWEEP_ROWS) * (self.columns or 1)

    def entries(self, n: int, first_index: int) -> Tensor:
        """Return the entries of n images, counted from `first_index`: in turn, in a sweep one per
        row.
        """
        turn = (torch.arange(n) + first_index) // (self.columns or 1)
        return turn % (self.values.count or 1)

    def conditions(self, n: int, first_index: int) -> dict[str, Tensor]:
        """Return the conditions of n images, counted from `first_index`."""
        cond = {name: value.expand(n, *value.shape[1:]) for name, value in self.fixed.items()}
        entries = self.entries(n, first_index)
        cond |= {name: values[entries] for name, values in self.values.many.items()}
        if self.sweep is not None:
            columns = (torch.arange(n) + first_index) % len(self.sweep.values)
            cond[self.sweep.name] = self.sweep.values[columns]
        return cond

    def seeds(self, n: int, first_index: int, seed: int) -> list[int] | None:
        """Return a seed per image of a sweep, the same in a row; None without a sweep."""
        if self.columns is None:
            return None
        return [seed + (first_index + i) // self.columns for i in range(n)]


def with_columns(command: Any, loaded: LoadedRun) -> Any:
    """Return the flags with as many columns of the grid as a sweep has, where nobody says how
    many.
    """
    if command.columns is not None or command.sweep is None:
        return command
    columns = Told.read(loaded, (), command.sweep).columns
    return dataclasses.replace(command, columns=columns)
