"""Which run directories lie below a folder; loads no torch, and never walks far."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddpm_lib.runs.run_status import is_run, newest_checkpoint

DEPTH = 4
"""How many folders deep runs are looked for; one named `runs` does not count."""

_MOST = 3000
"""Entries of one folder that are looked at: one of a million pictures costs no second."""

_MOST_FOLDERS = 2000

_PARTS = frozenset(
    ["checkpoints", "samples", "evaluations", "posthoc", "report", "trackers", "snapshots"]
)
"""What a run makes inside itself: no runs are in there."""

_RECORDS = frozenset(["status.json", "metrics.jsonl", ".lock", "config.yaml", "cell.json"])


@dataclass(frozen=True)
class FoundRun:
    """A run directory.

    Attributes:
        path: Where it is.
        ablation: The folder of the ablation that it is a cell of; None for a run of its own.
    """

    path: Path
    ablation: Path | None = None


def find_runs(folder: Path, known: bool = False) -> list[FoundRun]:
    """Return the runs below a folder, by name.

    In folders named `runs` every directory with a record of a training counts; elsewhere two are
    wanted, as a `metrics.jsonl` or a `.lock` may be anybody's. Hidden folders and virtual
    environments are left out, links to folders are not followed.

    Args:
        folder: Where to begin.
        known: One record is also enough directly in `folder`, as the user has named it.
    """
    found = [FoundRun(path, _ablation_of(path)) for path in _walk(folder, DEPTH, known, [0])]
    return sorted(found, key=lambda run: _natural(run.path))


def _walk(folder: Path, depth: int, known: bool, seen: list[int]) -> Iterator[Path]:
    seen[0] += 1
    folders, files = _entries(folder) if seen[0] <= _MOST_FOLDERS else ([], set())
    if "pyvenv.cfg" in files:
        return
    known = known or "runs" in folder.parts
    for name in folders:
        path = folder / name
        if is_run(path) and (known or _records(path) > 1):
            yield path
        if depth > 1:
            yield from _walk(path, depth if name == "runs" else depth - 1, False, seen)


def _entries(folder: Path) -> tuple[list[str], set[str]]:
    """Return the names of the folders to look into, and of the files, in a folder."""
    folders, files = [], set()
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, _MOST):
                if not entry.is_dir(follow_symlinks=False):
                    files.add(entry.name)
                elif not entry.name.startswith(".") and entry.name not in _PARTS:
                    folders.append(entry.name)
    except OSError:  # not ours to read
        return [], set()
    return sorted(folders), files


def _records(path: Path) -> int:
    """Count the kinds of records of a training that lie in a folder."""
    checkpoints = newest_checkpoint(path) is not None
    return checkpoints + sum((path / name).is_file() for name in _RECORDS)


def _ablation_of(path: Path) -> Path | None:
    above = path.parents
    is_cell = len(above) > 2 and above[1].name == "runs" and (path / "cell.json").is_file()
    return above[2] if is_cell else None


def _natural(path: Path) -> list[tuple[int, str]]:
    """Put `seed-10` behind `seed-9`."""
    pieces = re.split(r"(\d+)", "/".join(path.parts), flags=re.ASCII)
    return [(int(p), "") if k % 2 else (-1, p) for k, p in enumerate(pieces)]
