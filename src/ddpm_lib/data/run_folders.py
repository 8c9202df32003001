"""Run directories where data are looked for: what training wrote there is no data."""

from __future__ import annotations

import shlex
from collections.abc import Sequence, Set
from pathlib import Path

from ddpm_lib.core.spelling import in_flags
from ddpm_lib.core.text import printable
from ddpm_lib.data.names import show

_MARKS = (
    frozenset((b"checkpoints", b"config.yaml")),
    frozenset((b"status.json", b"train.log")),
    frozenset((b"metrics.jsonl", b"train.log")),
)


def is_run_directory(names: Set[bytes]) -> bool:
    """Say whether these are the entries of a run directory.

    >>> is_run_directory({b"checkpoints", b"config.yaml", b"samples"}), is_run_directory({b"cats"})
    (True, False)
    """
    return any(names >= marks for marks in _MARKS)


def left_runs(runs: Sequence[bytes]) -> str:
    """Word which run directories below a folder were left out."""
    names = ", ".join(show(name) for name in sorted(runs)[:3])
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return f"left out run directories of this library, whose pictures are samples: {names}{more}"


def is_a_run(root: Path) -> str:
    """Word that a run directory was given as data, and what may have been meant."""
    run = shlex.quote(printable(root))
    go_on = f"ddpm train --config {shlex.quote(printable(root / 'config.yaml'))}"
    way = f"To go on with it: {go_on}. To score it: ddpm evaluate {run}."
    start = f"--init-from {run}" if in_flags() else f"init_from={printable(root)!r}"
    return (
        f"{printable(root)!r} is a run directory: the pictures in it are samples, not data. {way}"
        f" To begin other data with its weights: {start}."
    )
