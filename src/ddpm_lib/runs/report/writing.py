"""Writing pages: the richest one that is small enough, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddpm_lib.core.files import write_atomically
from ddpm_lib.runs.records import RunRecords, read_records
from ddpm_lib.runs.report.comparison_page import comparison_page
from ddpm_lib.runs.report.curve_picture import write_curve_picture
from ddpm_lib.runs.report.run_page import run_page

PAGE = "report.html"
PICTURE = "results.png"
LARGEST_PAGE = 1_500_000
"""Bytes of a page at most."""
_BUDGETS = (
    (1500, 800_000),
    (1000, 550_000),
    (600, 350_000),
    (300, 180_000),
    (120, 60_000),
    (40, 12_000),
)
"""Points per line and bytes of pictures, tried in turn until the page is small enough."""


def small_enough(make: Callable[[int, int], str]) -> str:
    """Return the richest page that has at most `LARGEST_PAGE` bytes.

    Args:
        make: Makes the page from points per line and bytes for pictures.
    """
    for points, pictures in _BUDGETS:
        made = make(points, pictures)
        if len(made.encode("utf-8", "backslashreplace")) <= LARGEST_PAGE:
            break
    return made


def write_report(
    run: str | Path,
    path: str | Path | None = None,
    *,
    word: str | None = None,
    reason: str | None = None,
    stopped_by: str = "",
    picture: bool = True,
) -> Path:
    """Write report.html and results.png of a run from what lies in its directory.

    Args:
        run: The run directory.
        path: Where to write the page, default: report.html in the run.
        word: How the run stands, one of `run_status.WORDS`, where the caller knows it better than
            the files: whoever trains holds the lock until the very end.
        reason: Why it stopped, known by the same caller.
        stopped_by: What it stopped by itself for, if it did.
        picture: Whether to draw results.png too.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If there is no such directory.
        OSError: If the disk refuses; what was there before stays whole.
    """
    run = Path(run)
    records = read_records(run)
    if word is not None:
        why = records.status.reason if reason is None else reason
        known: dict[str, Any] = {"word": word, "reason": why, "stopped_by": stopped_by}
        records = replace(records, status=replace(records.status, **known))
    path = run / PAGE if path is None else Path(path)
    write_atomically(path, small_enough(lambda points, most: run_page(records, points, most)))
    if picture:
        write_curve_picture(records, run / PICTURE)
    return path


def write_picture(run: Path, fewest: int = 1) -> None:
    """Draw results.png of a run, unless fewer rows than some number were logged.

    Args:
        run: The run directory.
        fewest: Rows of metrics.jsonl.

    Raises:
        OSError: If the disk refuses.
    """
    records = read_records(run)
    if len(records.rows) >= fewest:
        write_curve_picture(records, run / PICTURE)


def write_comparison(runs: Sequence[str | Path], path: str | Path) -> Path:
    """Write one page about several runs: their curves, options that differ, grids side by side.

    Args:
        runs: Run directories.
        path: Where to write the page.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If one is no directory.
        OSError: If the disk refuses.
    """
    every = named_runs([read_records(Path(run)) for run in runs])
    path = Path(path)
    write_atomically(path, small_enough(lambda points, most: comparison_page(every, points, most)))
    return path


def named_runs(every: Sequence[RunRecords]) -> list[tuple[str, RunRecords]]:
    """Give each run the shortest name by which it is told from the others."""
    names = [records.run.resolve() for records in every]
    for depth in range(1, max(len(name.parts) for name in names) + 1):
        short = ["/".join(name.parts[-depth:]) for name in names]
        if len(set(short)) == len(set(names)):
            break
    return list(zip(short, every))
