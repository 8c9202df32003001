"""Conditions from files for a loaded run, in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def fit_of(run: Any) -> str:
    """Return how a loaded run fitted its images."""
    return str(run.state.get("training", {}).get("fit", "crop"))


def conditions(self: Any, names: Sequence[str] | None = None, /, **given: Any) -> dict[str, Tensor]:
    """Read conditions from files, as `ddpm sample --cond` does: what `cond` of `sample`, `edit`,
    `inpaint` and `restore` takes.

    Args:
        self: The run.
        names: Of the images that are redrawn: folders and tables are looked up by them; None: the
            entries come in the order of a folder's names, else of a table's lines.
        **given: By name of the condition, a value, or where values are: the path of a picture, a
            folder of pictures, "FILE.npy", "FILE:COLUMN" of a table.

    Returns:
        By name, a batch of one for a single value, (m, …) for m entries.

    Raises:
        ConfigError: For a condition that the network does not have, a source that is not there, or
            an image without an entry.

    >>> run = load_run("runs/mine")  # doctest: +SKIP
    >>> cond = run.conditions(mask="masks", age="meta.csv:age")  # doctest: +SKIP
    >>> images = run.diffusion.sample(len(cond["mask"]), cond=cond)  # doctest: +SKIP
    """
    from ddpm_lib.runs.told_conditions import read_told

    found = read_told(self.diffusion, given, fit_of(self)).values(names)
    return {**found.fixed, **found.many}
