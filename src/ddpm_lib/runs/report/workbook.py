"""A run's numbers as a workbook: a sheet each for steps, validations, evaluations and options."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import write_aside
from ddpm_lib.core.text import printable
from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.report.page_facts import option_rows, run_facts
from ddpm_lib.runs.run_status import number

_VALIDATION = re.compile(r"(val_|train_fixed_loss|sample_)")
_WHERE = ("step", "epoch", "images", "seconds")
_LONGEST = 30_000  # a cell of a workbook holds 32,767 letters
MOST_ROWS = 1_048_575
"""A sheet has 1,048,576 rows, the first of which names the columns."""

Table = tuple[list[str], list[list[Any]]]


def need_openpyxl() -> None:
    """Refuse where workbooks cannot be written.

    Raises:
        ConfigError: Saying how to install openpyxl, and what there is without.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise ConfigError(
            "Workbooks are written by openpyxl, which is not installed. Install it with: pip"
            ' install "ddpm-lib[xlsx]", or open metrics.csv of the run, which holds the same'
            " numbers."
        )


def sheets_of(records: RunRecords) -> dict[str, Table]:
    """Return names of columns and rows of a run's workbook, by the name of the sheet."""
    validations = [row for row in records.rows if any(_VALIDATION.match(name) for name in row)]
    steps = [row for row in records.rows if any(_of_steps(name) for name in row)]
    options = [[name, value] for name, value in option_rows(records.config)]
    facts = [[name, value] for name, value in run_facts(records) if value not in (None, "")]
    command = records.about.get("command")
    about = [["command", command]] if command else []
    return {
        "steps": _table(steps, lambda name: not _VALIDATION.match(name)),
        "validations": _table(validations, lambda name: name in _WHERE or _VALIDATION.match(name)),
        "evaluations": _evaluations(records.evaluations),
        "options": (["option", "value"], [*options, *about, *facts]),
    }


def _of_steps(name: str) -> bool:
    return name not in _WHERE and not _VALIDATION.match(name)


def _table(rows: Sequence[dict[str, Any]], wanted: Any) -> Table:
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if wanted(name)]
    ordered = [name for name in _WHERE if name in names]
    columns = ordered + [name for name in names if name not in _WHERE]
    return columns, [[row.get(name) for name in columns] for row in rows]


def _evaluations(evaluations: Iterable[dict[str, Any]]) -> Table:
    head = [
        "file",
        "created",
        "checkpoint",
        "weights",
        "score",
        "value",
        "standard error",
        "95 % from",
        "95 % to",
        "unit",
        "remark",
    ]
    rows = []
    for one in evaluations:
        scores = one.get("scores")
        for score in scores if isinstance(scores, list) else ():
            if not isinstance(score, dict):
                continue
            ends = score.get("interval")
            low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
            which = [one.get(name) for name in ("file", "created", "checkpoint", "weights")]
            names = ("value", "standard_error")
            values = [number(score.get(name)) for name in names]
            told = [score.get("unit"), score.get("remark")]
            rows.append([*which, score.get("name"), *values, number(low), number(high), *told])
    return head, rows


def write_workbook(records: RunRecords, path: Path) -> None:
    """Write a run's numbers as .xlsx.

    Args:
        records: What the run says.
        path: The file, which is replaced.

    Raises:
        ConfigError: If openpyxl is not installed.
        OSError: If the disk refuses; what was there stays.
    """
    need_openpyxl()
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.styles import Font

    book = Workbook(write_only=True)
    for name, (head, rows) in sheets_of(records).items():
        sheet = book.create_sheet(name)
        sheet.freeze_panes = "A2"
        for k, title in enumerate(head):
            sheet.column_dimensions[_letter(k)].width = max(12, min(40, len(title) + 3))
        named = [WriteOnlyCell(sheet, value=title) for title in map(printable, head)]
        for cell in named:
            cell.font = Font(bold=True)
        sheet.append(named)
        for row in rows[:MOST_ROWS]:
            sheet.append([_cell(sheet, value) for value in row])
    write_aside(path, book.save)


def _letter(k: int) -> str:
    from openpyxl.utils import get_column_letter

    return str(get_column_letter(k + 1))


def _cell(sheet: Any, value: Any) -> Any:
    """Return a value for a cell; a text that begins with "=" stays one."""
    from openpyxl.cell import WriteOnlyCell

    found = number(value)
    if found is not None:
        return value
    cell = WriteOnlyCell(sheet, value=None if value is None else printable(value)[:_LONGEST])
    if value is not None:
        cell.data_type = "s"
    return cell
