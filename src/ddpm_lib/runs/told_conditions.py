"""What a user says of the conditions of many images: which value belongs to which image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.data.metadata import some
from ddpm_lib.nn.condition_table import data_conditions
from ddpm_lib.runs.told_entries import PICTURES, Entries, open_entries
from ddpm_lib.runs.told_values import Frame, Size, given_to, read_value

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion


@dataclass(frozen=True)
class Values:
    """Values of conditions by name.

    Attributes:
        fixed: A batch of one each: of all images.
        many: One per entry, (m, …), the same m for all.
        told: Where each of the m is from, by condition: a file, a cell, a place in an array.
        names: What the m are called; None where only their order tells.
    """

    fixed: Mapping[str, Tensor]
    many: Mapping[str, Tensor]
    told: Mapping[str, Sequence[str]]
    names: Sequence[str] | None = None

    @property
    def count(self) -> int | None:
        """How many entries there are; None where each value counts for all images."""
        return next((len(values) for values in self.many.values()), None)

    def pictures(self, conditioners: Mapping[str, Any] | None) -> str | None:
        """Return the first condition with a picture per entry, to show beside what is drawn."""
        known = data_conditions(conditioners)
        return next((name for name in self.many if known[name].kind in PICTURES), None)


@dataclass(frozen=True)
class ToldConditions:
    """Conditions as they were told: values, and sources of many, which are read when it is known
    what they belong to.
    """

    fixed: Mapping[str, Tensor]
    sources: Sequence[Entries] = ()

    def values(
        self,
        names: Sequence[str] | None = None,
        beside: Sequence[Size | None] | None = None,
        what: str = "picture",
    ) -> Values:
        """Read the sources.

        Args:
            names: Of the images that the values belong to. None: those of a folder among the
                sources, else of a table, else nothing but the order counts.
            beside: Sizes of the pictures of these names, in whose proportions masks and images may
                be.
            what: What the names are of.

        Raises:
            ConfigError: If an image has no entry, or sources are of different lengths.
        """
        if not self.sources:
            return Values(self.fixed, {}, {})
        leader = None if names is not None else _leader(self.sources)
        if leader is not None:
            names = leader.names
            what = "picture" if leader.kind_of_source == "folder" else "line"
        n = len(names) if names is not None else len(leader or ())
        many, told = {}, {}
        for source in self.sources:
            rows = list(range(n))
            if source is not leader:
                rows = _rows(source, names, n, leader, what)
            many[source.conditioner.name] = source.read(rows, beside)
            told[source.conditioner.name] = [source.told(row) for row in rows]
        return Values(self.fixed, many, told, names)


def read_told(
    diffusion: GaussianDiffusion, given: Mapping[str, Any], fit: str = "crop"
) -> ToldConditions:
    """Read what was said of conditions.

    Args:
        diffusion: What draws.
        given: By name: a word as for --cond, the path of a file or folder, or a value that needs no
            reading, such as a tensor.
        fit: How pictures are fitted.

    Raises:
        ConfigError: For a condition that the network does not have, or what is no value of it.
    """
    known, frame = data_conditions(diffusion.conditioners), Frame.of(diffusion, fit)
    fixed: dict[str, Any] = {}
    sources: list[Entries] = []
    for name, value in given.items():
        if name not in known:
            raise ConfigError(unknown_name("condition", name, known))
        conditioner = known[name]
        if not isinstance(value, str | Path):
            fixed[name] = conditioner.read(value)
            continue
        word = os.fspath(value)
        if word == "none" and "none" not in (conditioner.spec.get("names") or ()):
            if not conditioner.optional:
                raise ConfigError(
                    f"{given_to(name)}: the network knows no absence of {name!r}; it was trained"
                    " with drop=0."
                )
            continue
        source = open_entries(conditioner, word, frame)
        if source is None:
            fixed[name] = read_value(conditioner, word, frame)
        elif source.single:
            fixed[name] = source.read([0])
        else:
            sources.append(source)
    return ToldConditions(fixed, sources)


def _leader(sources: Sequence[Entries]) -> Entries:
    """Return the source whose order counts: a folder, else a table with names, else the first."""
    order = {"folder": 0, "table": 1, "array": 2}
    return min(sources, key=lambda one: (order[one.kind_of_source], one.names is None))


def _rows(
    source: Entries, names: Sequence[str] | None, n: int, leader: Entries | None, what: str
) -> list[int]:
    """Return the entries of a source for n images, by their names, or by their order."""
    said = given_to(source.conditioner.name)
    if names is not None and source.names is not None:
        rows = source.rows_of(names)
        lone = [name for name, row in zip(names, rows) if row < 0]
        if not lone:
            return rows
        of = f"a {what}" if leader is None else f"a {what} of {leader.source}"
        raise ConfigError(
            f"{said}: {source.source} has no entry named like {of} for {len(lone):,} of"
            f" {len(names):,}: {some(lone)}. It has: {some(source.names)}. Their names must be the"
            " same, but for the extension."
        )
    if names is not None and source.kind_of_source == "table":
        raise ConfigError(
            f"{said}: no column of {source.source} names the images, such as {some(names, 1)}. A"
            " column file_name with their names is needed, each once."
        )
    if len(source) != n:
        other = f"{n:,} pictures" if leader is None else f"{n:,} entries of {leader.source}"
        raise ConfigError(
            f"{said}: {source.source} has {len(source):,} entries for {other}. It must have one"
            " each, in their order."
        )
    return list(range(n))
