"""When images were added to a run, as its checkpoints keep it; loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_lib.core.text import printable
from ddpm_lib.runs.started_from import newest_state

_COUNTS = ("step", "images_seen", "images_before", "images")


@dataclass(frozen=True, kw_only=True)
class Growth:
    """An event: more images were added to those that a run is trained on.

    Attributes:
        step: Optimizer steps done before.
        images_seen: Images that those steps have taken.
        images_before: Number of training images before.
        images: Number of training images since.
        added: Names of what was added, in order.
    """

    step: int
    images_seen: int
    images_before: int
    images: int
    added: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a line that names no path of the machine."""
        return f"from {self.images_before:,} to {self.images:,} images at step {self.step:,}"

    def words(self) -> str:
        """Return a line with what was added."""
        return printable(f"{self}: {', '.join(self.added)}" if self.added else str(self))

    def to_json(self) -> dict[str, Any]:
        """Return an entry of `grown` in state.json."""
        return {**dataclasses.asdict(self), "added": list(self.added)}


def events_in(values: Any) -> tuple[Growth, ...]:
    """Read the entry `grown` of a description of data or of an evaluation; what is not legible is
    left out.
    """
    listed = values if isinstance(values, list | tuple) else ()
    found = []
    for one in listed:
        counts: dict[str, Any] = (
            {name: one.get(name) for name in _COUNTS} if isinstance(one, Mapping) else {}
        )
        if counts and all(type(count) is int for count in counts.values()):
            added = one.get("added")
            names = tuple(map(str, added)) if isinstance(added, list | tuple) else ()
            found.append(Growth(**counts, added=names))
    return tuple(found)


def growth_of_run(run: Path) -> tuple[Growth, ...]:
    """Return when a run has grown, as its newest checkpoint says; nothing where none is legible."""
    data = newest_state(run).get("data")
    return events_in(data.get("grown")) if isinstance(data, Mapping) else ()
