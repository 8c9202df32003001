"""What a run writes besides checkpoints: metrics.jsonl, metrics.csv, status.json, train.log."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

from ddpm_lib.core.files import (
    NotAFileOfOursError,
    appending,
    flush,
    keep_aside,
    not_ours,
    sweep,
    write_atomically,
    write_in_place,
)
from ddpm_lib.runs.checkpoint import remove_half_written
from ddpm_lib.runs.run_status import parse_row


def _plain(value: Any) -> Any:
    # JSON knows no NaN; null keeps the file readable by every parser.
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """One JSON object per line in metrics.jsonl, mirrored in metrics.csv with one column per name.

    Args:
        run: The run directory.
    """

    def __init__(self, run: Path) -> None:
        self.jsonl, self.csv = run / "metrics.jsonl", run / "metrics.csv"
        self._columns: list[str] = []
        self._waiting: list[dict[str, Any]] = []

    def rows(self) -> list[dict[str, Any]]:
        """Read all rows; lines that are none are left out, so is a last line cut off by a crash."""
        return self._read()[0]

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """Return the rows, and how many other lines are damaged."""
        try:
            *whole, last = self.jsonl.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [], 0
        found = [parse_row(line) for line in whole]
        end = parse_row(last)
        return [row for row in [*found, end] if row is not None], found.count(None)

    def cut_back(self, step: int) -> str | None:
        """Drop the lines after `step`, so that a resumed run does not write them twice.

        Lines that are no rows are left out, and so are all rows of a run that begins anew; the file
        as it was is kept aside.

        Returns:
            What else than the lines after `step` was dropped, and where it is, or None.
        """
        rows, damaged = self._read()
        kept = [row for row in rows if row["step"] <= step]
        note = None
        if damaged:
            aside = keep_aside(self.jsonl, "damaged")
            lines = "line" if damaged == 1 else "lines"
            note = (
                f"{damaged} damaged {lines} in {self.jsonl.name} left out; the file as it was is"
                f" kept as {aside.name}."
            )
        elif rows and not step and not kept:
            aside = keep_aside(self.jsonl, "before")
            note = (
                f"Training begins at step 0; {self.jsonl.name} of the training before is kept as"
                f" {aside.name}."
            )
        write_atomically(self.jsonl, "".join(json.dumps(row) + "\n" for row in kept))
        self._rewrite_csv(kept)
        return note

    def append(self, row: dict[str, Any]) -> None:
        """Add one line and flush it to the disk's cache.

        Raises:
            OSError: If the disk refuses; no half line stays, and the next call writes this line
                too.
        """
        self._waiting.append({k: _plain(v) for k, v in row.items()})
        length = self.jsonl.stat().st_size if self.jsonl.exists() else 0
        try:
            with appending(self.jsonl) as file:
                file.write("".join(json.dumps(line) + "\n" for line in self._waiting))
        except OSError:
            if self.jsonl.is_file() and not self.jsonl.is_symlink():
                os.truncate(self.jsonl, length)
            raise
        rows, self._waiting = self._waiting, []
        known, self._columns = (
            self._columns,
            [],
        )  # a table that could not be completed is written anew next time
        if {name for line in rows for name in line} - set(known):
            self._rewrite_csv(self.rows())
        else:
            with appending(self.csv) as file:
                csv.DictWriter(file, known).writerows(rows)
            self._columns = known

    def flush(self) -> None:
        """Bring metrics.jsonl to the disk itself; called before a checkpoint, which must not be
        ahead of its curve.
        """
        if self.jsonl.exists():
            flush(self.jsonl)

    def _rewrite_csv(self, rows: list[dict[str, Any]]) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.csv, text.getvalue())
        self._columns = columns


_ROOM = 1024
"""Bytes of a status.json: padded, so that a full disk has room for the word that says so."""


def write_status(run: Path, **status: Any) -> None:
    """Write status.json: running | finished | stopped | failed, the step and the reason.

    Where no new file finds room, the old one is overwritten in its place, with a shorter reason if
    need be.

    Raises:
        OSError: If neither can be done.
    """
    path = run / "status.json"
    try:
        write_atomically(path, _padded(status))
    except NotAFileOfOursError:
        raise
    except OSError:
        room = path.stat().st_size if path.is_file() else 0
        reason = str(status.get("reason", ""))
        while len(_padded({**status, "reason": reason})) > room and reason:
            reason = reason[: len(reason) * 3 // 4]
        try:
            write_in_place(path, _padded({**status, "reason": reason}))
        except OSError as error:
            raise error from None


def _padded(status: dict[str, Any]) -> str:
    return (json.dumps(status, indent=1) + "\n").ljust(_ROOM - 1).rstrip("\n") + "\n"


_RECORDS = (
    "config.yaml",
    "about.json",
    "metrics.jsonl",
    "metrics.csv",
    "status.json",
    "train.log",
    "data.npz",
    "texts.safetensors",
)


def check_records(run: Path) -> None:
    """Refuse a run directory in which something else lies where a record belongs, before anything
    is written.

    Raises:
        NotAFileOfOursError: Naming it. A link in the place of what is written anew is no harm: it
            is replaced.
    """
    for name in (*_RECORDS, "STOP"):
        path = run / name
        wrong = path.exists() and not path.is_file()
        if wrong or (name == "train.log" and path.is_symlink()):
            raise not_ours(path)


def sweep_records(run: Path) -> None:
    """Remove what earlier processes of this run that were killed have left half-written; to be
    called under its lock.
    """
    for folder in (run, run / "samples", run / "posthoc"):
        sweep(folder)
    remove_half_written(run / "checkpoints")


def flat_scalars(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as plain scalars, which is all that TensorBoard's hyper-parameters take."""
    return {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in options.items()}
