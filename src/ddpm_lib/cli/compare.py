"""`ddpm compare A B …`."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from ddpm_lib.cli import options
from ddpm_lib.evaluation.compare import compare

DESCRIPTION = (
    "Put evaluations side by side: the newest of each run, or the files named. Says what makes them incomparable."
)


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Options of `ddpm compare`."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Runs, or files evaluations/eval-….json."""


def main(args: list[str]) -> int:
    """Run the command."""
    command: CompareCommand = options.parse(
        CompareCommand, args, CompareCommand(runs=tyro.MISSING), "ddpm compare", DESCRIPTION
    )
    print(compare(command.runs))
    return 0
