"""Everything that a run has written about itself, read once; loads no torch.

A run that is being trained, was cut off or has lost files is read as far as it goes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpm_lib.process.sampling_default import SamplingDefault
from ddpm_lib.runs.about import read_about
from ddpm_lib.runs.growth import Growth, growth_of_run
from ddpm_lib.runs.run_status import RunStatus, parse_row, run_status
from ddpm_lib.runs.stored_sampling import sampling_or_none

_GRID = re.compile(r"step-(\d+)\.png")


@dataclass(frozen=True)
class RunRecords:
    """What a run directory says.

    Attributes:
        run: The run directory.
        status: How the run stands.
        rows: The rows of metrics.jsonl in the order of their steps, one per step: of several, the
            one that was written last.
        config: The settings of config.yaml.
        about: What about.json says, see `read_about`.
        evaluations: The results of `ddpm evaluate`, oldest first, each with the name of its file
            as "file".
        grids: Step and file of the sample grids that training drew, in the order of their steps.
        sampling: How the run draws unless told otherwise, None for the library's way.
        grown: When images were added, see `Growth`.
    """

    run: Path
    status: RunStatus
    rows: tuple[dict[str, Any], ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    evaluations: tuple[dict[str, Any], ...] = ()
    grids: tuple[tuple[int, Path], ...] = ()
    sampling: SamplingDefault | None = None
    grown: tuple[Growth, ...] = ()

    def option(self, name: str, default: Any = None) -> Any:
        """Return an option of training from config.yaml, the default where it does not say."""
        value = self.config.get(name)
        return default if value is None else value


def read_records(run: Path) -> RunRecords:
    """Read what a run has written; what is missing or damaged is left out.

    Raises:
        FileNotFoundError: If there is no such directory.
        PermissionError: If it must not be read.
    """
    return RunRecords(
        run=run,
        status=run_status(run),
        rows=read_rows(run),
        config=_config(run),
        about=read_about(run),
        evaluations=_evaluations(run),
        grids=_grids(run),
        sampling=sampling_or_none(run),
        grown=growth_of_run(run),
    )


def read_rows(run: Path) -> tuple[dict[str, Any], ...]:
    """Return the rows of a run's metrics, one per step, in the order of the steps."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            found = (parse_row(line) for line in file)
            rows = {row["step"]: row for row in found if row is not None}
    except OSError:
        return ()
    return tuple(rows[step] for step in sorted(rows))


def _config(run: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _evaluations(run: Path) -> tuple[dict[str, Any], ...]:
    found = []
    for path in _files(run / "evaluations", "eval-*.json"):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            found.append({**values, "file": path.name})
    return tuple(found)


def _grids(run: Path) -> tuple[tuple[int, Path], ...]:
    named = ((_GRID.fullmatch(path.name), path) for path in _files(run / "samples", "step-*.png"))
    return tuple(sorted((int(match[1]), path) for match, path in named if match))


def _files(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    except OSError:
        return []
