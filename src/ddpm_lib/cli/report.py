"""`ddpm report RUN …`: the page of a run, or of several side by side; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ddpm_lib.cli import options
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import NotAFileOfOursError
from ddpm_lib.core.text import printable
from ddpm_lib.runs.run_status import is_run, no_run

DESCRIPTION = (
    "Write the page of a run: report.html in the run directory, one file that needs no network, and"
    " results.png, its curves. Training keeps both up to date by itself; this makes them later. Of"
    " several runs it makes one page: curves overlaid, options that differ, samples from the same"
    " noise, scores."
)

COMPARISON = "compare.html"
WORKBOOK = "results.xlsx"


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Options of `ddpm report`."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories."""
    output: str | None = None
    """Where to write the page; default: report.html in the run, compare.html here for several."""
    xlsx: bool = False
    """Write the numbers as a workbook too, a sheet per kind: steps, validations, evaluations,
    options. Default: results.xlsx in the run; another name may follow, as in --xlsx numbers.xlsx.
    """


def main(args: list[str]) -> int:
    """Run the command."""
    command: ReportCommand = options.parse(
        ReportCommand, args, ReportCommand(runs=tyro.MISSING), "ddpm report", DESCRIPTION
    )
    given = [Path(run) for run in command.runs]
    files = [path for path in given if command.xlsx and _names_a_workbook(path)]
    runs = [path for path in given if path not in files]
    if not runs or len(files) > 1:
        raise ConfigError(
            "Give one or several run directories, and at most one name of a workbook."
        )
    for run in runs:
        if not is_run(run):
            raise FileNotFoundError(no_run(run))
    if command.xlsx:
        _write_workbooks(runs, files[0] if files else None)
    from ddpm_lib.runs.report import PAGE, write_comparison, write_report

    first = runs[0] / PAGE if len(runs) == 1 else Path(COMPARISON)
    path = first if command.output is None else Path(command.output)
    _refuse_foreign(path)
    if len(runs) == 1:
        write_report(runs[0], path)
    else:
        write_comparison(runs, path)
    print(f"wrote {printable(path)} ({path.stat().st_size / 1000:,.0f} kB): open it in a browser")
    return 0


def _names_a_workbook(path: Path) -> bool:
    return path.suffix.lower() == ".xlsx" and not path.is_dir()


def _write_workbooks(runs: Sequence[Path], file: Path | None) -> None:
    from ddpm_lib.runs.records import read_records
    from ddpm_lib.runs.report.workbook import need_openpyxl, write_workbook

    need_openpyxl()
    if file is not None and len(runs) > 1:
        raise ConfigError(
            f"--xlsx {printable(file)} names one workbook for {len(runs)} runs. Give --xlsx without"
            f" a name: each run gets its {WORKBOOK}."
        )
    for run in runs:
        path = run / WORKBOOK if file is None else file
        write_workbook(read_records(run), path)
        print(f"wrote {printable(path)}")


def _refuse_foreign(path: Path) -> None:
    """Refuse to overwrite a file that is no page of ours.

    Raises:
        ConfigError: Saying where to write instead.
        NotAFileOfOursError: If no plain file lies there.
    """
    from ddpm_lib.runs.report.page_frame import is_page

    if path.is_dir():
        raise NotAFileOfOursError(
            f"{printable(path)} is a directory. Name a file in it: --output"
            f" {printable(path / COMPARISON)}."
        )
    if path.exists() and not is_page(path):
        raise ConfigError(
            f"{printable(path)} exists and is no page of ours. Choose another --output."
        )
