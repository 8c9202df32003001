"""`ddpm compare A B …`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from ddpm_lib.cli import options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.evaluation.comparison import column_of, table_of, to_dict

DESCRIPTION = (
    "Put evaluations side by side: the newest value of each metric from all evaluations of a run,"
    " or the files named. Says what makes numbers incomparable."
)


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Options of `ddpm compare`."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Runs, or files evaluations/eval-….json."""
    output: str | None = None
    """Write the numbers to this .json too, which must not exist."""


def main(args: list[str]) -> int:
    """Run the command."""
    command: CompareCommand = options.parse(
        CompareCommand, args, CompareCommand(runs=tyro.MISSING), "ddpm compare", DESCRIPTION
    )
    columns = [column_of(path) for path in command.runs]
    if command.output is not None:  # before anything is printed
        text = json.dumps(to_dict(columns), indent=1) + "\n"
        try:
            with Path(command.output).open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise ConfigError(
                f"{command.output} exists, and nothing is overwritten. Choose another --output."
            ) from None
    print(table_of(columns))
    return 0
