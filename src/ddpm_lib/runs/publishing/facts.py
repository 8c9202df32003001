"""What is known of a run that others may want to know, as values; the card words them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.text import printable
from ddpm_lib.runs.loading import LoadedRun
from ddpm_lib.runs.metrics_file import MetricsFile
from ddpm_lib.runs.names import step_of
from ddpm_lib.runs.publishing.measured import Measured, read_measured
from ddpm_lib.runs.run_status import number

if TYPE_CHECKING:
    from ddpm_lib.runs.state import RunState

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_GRID = re.compile(r"step-(\d{9,})\.png")


@dataclass(frozen=True)
class Source:
    """Something with a name: data or weights. Where it lies here concerns nobody else.

    Attributes:
        name: In the last part of its path, or on the hub.
        hub_id: Its name on the hub, None where it is not known to be there.
        local: Whether it is a path of this machine.
    """

    name: str
    hub_id: str | None = None
    local: bool = False

    @classmethod
    def of(cls, text: str) -> Source:
        """Take the path or the name that a run has noted.

        >>> Source.of("/home/me/secret/shapes.zip").name, Source.of("me/shapes").hub_id
        ('shapes.zip', 'me/shapes')
        """
        if os.path.isabs(text) or "\\" in text or text.count("/") > 1:
            parts = [part for part in re.split(r"[\\/]", text) if part not in ("", "*", "**")]
            return cls(printable(parts[-1]) if parts else "images", local=True)
        return cls(printable(text), text if HUB_NAME.fullmatch(text) else None)


@dataclass(frozen=True, kw_only=True)
class Base:
    """The weights that a training began with.

    Attributes:
        source: Where they came from.
        kind: "run", "pretrained", or the format of another library.
        step: Steps that they had been trained for, 0 where that is not known.
        data: What they were trained on, None where that is not known.
        notes: What was mapped, dropped or assumed, a line each.
    """

    source: Source
    kind: str
    step: int = 0
    data: Source | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A checkpoint of a run, and what its run directory says of it.

    Attributes:
        loaded: The checkpoint with the weights that are uploaded as the first.
        state: All that it says besides tensors.
        weights: What each file of weights holds, by the weights' names in config.json.
        data: What it was trained on.
        held_out: The images that were held out, where they came from elsewhere.
        validation: The last row of the metrics up to its step that has a held-out loss, or {}.
        measured: What evaluations of these weights measured.
        grid: The newest picture of samples up to its step, None where there is none.
        settings: config.yaml of the run, None where there is none.
        bases: The weights that it began with, the first ones last.
    """

    loaded: LoadedRun
    state: RunState
    weights: Mapping[str, str]
    data: Source | None
    held_out: Source | None
    validation: Mapping[str, float]
    measured: Measured
    grid: Path | None
    settings: Path | None
    bases: tuple[Base, ...]

    @property
    def training(self) -> Mapping[str, Any]:
        """The options of training, as far as they are known."""
        return self.state.training if isinstance(self.state.training, dict) else {}

    @property
    def grid_step(self) -> int | None:
        """The step of the picture."""
        return None if self.grid is None else step_of(self.grid.with_suffix(""))


def collect_facts(
    loaded: LoadedRun, weights: Mapping[str, str], data_name: str | None = None
) -> RunFacts:
    """Read what a run directory says of one of its checkpoints.

    Args:
        loaded: The checkpoint with the weights that count.
        weights: Labels by the name of the weights that are uploaded.
        data_name: What the training data are called; None for the last part of their path.
    """
    run, state, step = loaded.run, loaded.run_state, loaded.step
    settings = run / "config.yaml"
    source = data_name or state.trained_on.source
    held_out = state.training.get("val_data") if isinstance(state.training, dict) else None
    return RunFacts(
        loaded=loaded,
        state=state,
        weights=weights,
        data=Source.of(source) if source else None,
        held_out=Source.of(held_out) if isinstance(held_out, str) else None,
        validation=_validation(run, step),
        measured=read_measured(run, step, loaded.weights),
        grid=_newest_grid(run, step),
        settings=settings if settings.is_file() else None,
        bases=tuple(_bases(state)),
    )


def _validation(run: Path, step: int) -> dict[str, float]:
    rows = [row for row in MetricsFile(run).rows() if row["step"] <= step]
    for row in reversed(rows):
        values = {name: number(value) for name, value in row.items()}
        if values.get("val_loss") is not None:
            return {name: value for name, value in values.items() if value is not None}
    return {}


def _newest_grid(run: Path, step: int) -> Path | None:
    folder = run / "samples"
    grids = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [(path, _GRID.fullmatch(path.name)) for path in grids if path.is_file()]
    known = [(int(match[1]), path) for path, match in found if match]
    return max((pair for pair in known if pair[0] <= step), default=(0, None))[1]


def _bases(state: RunState) -> list[Base]:
    """Read `started_from`, the weights that training began with, and `origin`, those of another
    program that a run was made of.
    """
    found = []
    for name in ("started_from", "origin"):
        values = getattr(state, name, None) or state.extra.get(name)
        if not isinstance(values, dict) or not isinstance(values.get("source"), str):
            continue
        notes, step, data = values.get("notes"), values.get("step"), values.get("data")
        found.append(
            Base(
                source=Source.of(values["source"]),
                kind=str(values.get("kind") or values.get("format") or "weights"),
                step=step if isinstance(step, int) else 0,
                data=Source.of(data) if isinstance(data, str) and data else None,
                notes=tuple(map(str, notes)) if isinstance(notes, (list, tuple)) else (),
            )
        )
    return found
