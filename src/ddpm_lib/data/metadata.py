"""Labels that lie beside pictures in a table: metadata.jsonl of 🤗 imagefolder, dataset.json of
NVlabs, labels.csv.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ddpm_lib.core.registry import unknown_name
from ddpm_lib.data.columns import LABEL_NAMES, choose_column
from ddpm_lib.data.names import show

TABLES = (".csv", ".tsv", ".jsonl")
_FIRST = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "dataset.json")
_FILE_NAMES = (
    "file_name",
    "filename",
    "file",
    "image",
    "image_id",
    "image_path",
    "image_name",
    "img",
    "path",
    "filepath",
    "name",
    "id",
    "id_code",
    "picture",
    "photo",
)
_FOLDERS = 3
_LARGEST = 500_000_000
_DIGITS = 300
"""Digits of a whole number at most; more are text, and far beyond what floats hold."""
KINDS = (
    "metadata.jsonl, metadata.csv, metadata.parquet, dataset.json, or a .csv with a column of file"
    " names"
)


@dataclass
class Beside:
    """A table beside pictures: its name, columns, which column names the files, and the row of each
    picture or -1.
    """

    name: str
    columns: dict[str, list[Any]]
    files: str
    rows: list[int]

    @property
    def others(self) -> list[str]:
        """The columns that may hold labels."""
        return [column for column in self.columns if column != self.files]

    @property
    def known(self) -> int:
        """How many pictures it names."""
        return _count(self.rows)

    @property
    def strangers(self) -> list[str]:
        """Files that the table names and that are no pictures of the folder."""
        used = set(self.rows)
        return [str(value) for row, value in enumerate(self.columns[self.files]) if row not in used]

    def told_twice(self, column: str) -> str | None:
        """Return a picture of which several lines say different things in a column, if any."""
        used, cells = set(self.rows), self.columns[column]
        first: dict[bytes, int] = {}
        for row, value in enumerate(self.columns[self.files]):
            known = first.setdefault(_written(value) or b"", row)
            if known != row and known in used and repr(cells[row]) != repr(cells[known]):
                return str(value)
        return None

    def label_column(self, asked: str | None) -> str | None:
        """Return the column of the labels, the one asked for or one of a usual name.

        Raises:
            ValueError: If the one asked for is not there.
        """
        return choose_column("label", asked, LABEL_NAMES, self.others, self.name)


class TableFile(Protocol):
    """A file that may hold a table: a Path, or a member of an archive."""

    @property
    def name(self) -> str:
        """Its name without folders."""
        ...

    @property
    def suffix(self) -> str:
        """The end of its name, with the dot."""
        ...

    def read_bytes(self) -> bytes:
        """Return what it holds."""
        ...


def may_be_table(name: str, size: int) -> bool:
    """Say whether a file beside pictures may hold a table of them."""
    usual = name in _FIRST or os.path.splitext(name)[1].lower() in TABLES
    return usual and size <= _LARGEST


def tables_in(folder: Path) -> list[TableFile]:
    """Return the files directly in a folder that may hold tables."""
    return [
        entry
        for entry in folder.iterdir()
        if entry.is_file() and may_be_table(entry.name, entry.stat().st_size)
    ]


def find_table(
    tables: Sequence[TableFile], names: Sequence[bytes], image_column: str | None
) -> Beside | None:
    """Find the table beside pictures that names them, relative to where it lies; None if there is
    none.

    Raises:
        ValueError: If the usual one cannot be read.
    """
    there = {entry.name: entry for entry in tables}
    first = [there[name] for name in _FIRST if name in there]
    more = [
        there[name]
        for name in sorted(there)
        if there[name].suffix.lower() in TABLES and there[name] not in first
    ]
    best: Beside | None = None
    for path in [*first, *more]:
        try:
            found = open_table(path, names, image_column)
        except ValueError:
            if path in first:
                raise
            continue  # any other file may end in .csv
        if found is not None and (path in first or best is None or found.known > best.known):
            best = found
        if best is not None and path in first:
            return best
    return best


def open_table(path: TableFile, names: Sequence[bytes], image_column: str | None) -> Beside | None:
    """Read a table and find the column that names the pictures; None if no column names any.

    Raises:
        ValueError: If the file is damaged or of another kind.
    """
    columns = read_table(path)
    if not columns:
        return None
    if image_column is not None:
        tried = [str(choose_column("image", image_column, (), list(columns), path.name))]
    else:
        usual = [c for name in _FILE_NAMES for c in columns if str(c).lower() == name]
        tried = [*usual, *(column for column in columns if column not in usual)]
    best: Beside | None = None
    for column in tried:
        rows = match_names(columns[column], names)
        if max(rows, default=-1) >= 0 and (best is None or _count(rows) > best.known):
            best = Beside(path.name, columns, column, rows)
    return best


def column_beside(table: Beside | None, root: Path, name: str) -> list[Any]:
    """Return a column of the table beside pictures, None for those that the table does not name.

    Args:
        table: The table, None where there is none.
        root: Where the pictures are.
        name: Of the column.

    Raises:
        ValueError: If there is no table, or no such column in it.
    """
    if table is None:
        raise ValueError(
            f"The folder {str(root)!r} has no table that names its pictures ({KINDS}), to take the"
            f" column {name!r} from."
        )
    if name not in table.columns:
        raise ValueError(f"{table.name}: {unknown_name('column', name, table.others)}")
    refuse_twice(table, name)
    cells = table.columns[name]
    return [cells[row] if row >= 0 else None for row in table.rows]


def refuse_twice(table: Beside, column: str) -> None:
    """Refuse a column that says different things of one picture in several lines.

    Raises:
        ValueError: Naming the picture.
    """
    twice = table.told_twice(column)
    if twice is not None:
        raise ValueError(
            f"{table.name} has several lines for {twice[:80]}, with different values in"
            f" {column!r}. Leave one line per picture; several words for one belong into one cell,"
            " a|b."
        )


def whole_paths(
    path: Path, image_column: str | None, label_column: str | None
) -> tuple[list[Any], str | None, list[Any] | None] | None:
    """Return the files, the label column and its labels of a table with a column of absolute paths;
    None if it has none.

    Raises:
        ValueError: If the table cannot be read, or a column that is asked for is not there.
    """
    columns = read_table(path)
    asked = choose_column("image", image_column, (), list(columns), path.name)
    for name in [asked] if asked is not None else columns:
        first = next((value for value in columns[name] if value is not None), None)
        if isinstance(first, str) and os.path.isabs(os.path.expanduser(first)):
            others = [column for column in columns if column != name]
            label = choose_column("label", label_column, LABEL_NAMES, others, path.name)
            return columns[name], label, None if label is None else columns[label]
    return None


def column_of_names(columns: Mapping[str, Sequence[Any]], but: str) -> list[str] | None:
    """Return what names the pictures of a table, from a column of a usual name such as file_name.

    None where there is no such column, or it names two lines alike.

    Args:
        columns: The table.
        but: A column that holds something else.
    """
    usual = [c for name in _FILE_NAMES for c in columns if str(c).lower() == name and c != but]
    for column in usual:
        cells = columns[column]
        names = [str(cell).replace("\\", "/").removeprefix("./") for cell in cells]
        if all(isinstance(c, str | int) for c in cells) and len(set(names)) == len(names):
            return names
    return None


def _count(rows: Sequence[int]) -> int:
    return sum(row >= 0 for row in rows)


def read_table(path: TableFile) -> dict[str, list[Any]]:
    """Read a .csv, .tsv, .jsonl, .json or .parquet file as columns.

    Raises:
        ValueError: If it is damaged or holds no table.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

            raw = io.BytesIO(path.read_bytes())
            return dict(pq.read_table(raw, use_threads=False).to_pydict())
        text = path.read_bytes().decode("utf-8-sig")
        if suffix == ".jsonl":
            return _columns([json.loads(line) for line in text.split("\n") if line.strip()])
        if suffix == ".json":
            return _from_json(json.loads(text))
        head = text[: text.find("\n")] if "\n" in text else text
        mark = "\t" if suffix == ".tsv" else max(",;\t", key=head.count)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=mark))
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read as a table: {' '.join(str(error).split())[:200]}."
        ) from None
    lines = [line for line in lines if line]
    if not lines:
        return {}
    heads = [head.strip() for head in lines[0]]
    short = [k + 1 for k, line in enumerate(lines) if len(line) != len(heads)]
    if short:
        raise ValueError(
            f"{path} has {len(heads)} columns, but line {short[0]} has {len(lines[short[0] - 1])}."
        )
    columns: dict[str, list[Any]] = {}
    for k, head in enumerate(heads):
        cells = [number_or_text(line[k]) for line in lines[1:]]
        if head and columns.get(head, cells) != cells:
            raise ValueError(
                f"{path} has two columns {head!r}, which say different things. Rename one of them."
            )
        columns[head] = cells
    return columns


def number_or_text(text: str) -> Any:
    """Read whole numbers as such, but not "007", which is a name."""
    text = text.strip()
    digits = text.removeprefix("-")
    whole = digits.isdecimal() and len(digits) <= _DIGITS and str(int(text)) == text
    return int(text) if whole else (text or None)


def _columns(rows: Sequence[Any]) -> dict[str, list[Any]]:
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("its entries are not objects with keys")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {str(name): [row.get(name) for row in rows] for name in names}


def _from_json(data: Any) -> dict[str, list[Any]]:
    """Read {"labels": [[file, number], …]}, {file: label, …} or a list of objects."""
    if isinstance(data, dict) and "labels" in data:
        pairs = data["labels"] or []
        if isinstance(pairs, dict):
            pairs = list(pairs.items())
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            raise ValueError('"labels" must be a list of [file, label] pairs')
        return {"file_name": [p[0] for p in pairs], "label": [p[1] for p in pairs]} if pairs else {}
    if isinstance(data, list) and all(isinstance(row, dict) for row in data):
        return _columns(data)
    if isinstance(data, dict) and data and all(isinstance(v, (int, str)) for v in data.values()):
        return {"file_name": list(data), "label": list(data.values())}
    return {}  # dataset.json is a usual name for descriptions too


def _stem(name: bytes) -> bytes:
    """Return a name without its extension, of a packed volume without both."""
    stem = os.path.splitext(name)[0]
    return os.path.splitext(stem)[0] if name.lower().endswith(b".nii.gz") else stem


_KEYS: tuple[Callable[[bytes], bytes], ...] = (
    lambda name: name,
    _stem,
    os.path.basename,
    lambda name: _stem(os.path.basename(name)),
)


def _written(value: Any) -> bytes | None:
    """Return the name of a picture as a table writes it; None for what is none."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        return None
    return os.fsencode(str(value).replace("\\", "/").removeprefix("./"))


def match_names(values: Sequence[Any], names: Sequence[bytes]) -> list[int]:
    """Return the row of each picture, or -1, by the whole name, without extension, or without
    folders.
    """
    written: dict[bytes, int] = {}
    for row, value in enumerate(values):
        name = _written(value)
        if name is not None:
            written.setdefault(name, row)
    bare = {name: os.path.basename(name) for name in written}
    often = Counter(bare.values())
    # A name that two folders have does not say which of them is meant.
    short = {bare[name]: row for name, row in written.items() if often[bare[name]] == 1}
    best = [-1] * len(names)
    for key in _KEYS:
        made = [key(name) for name in names]
        if len(set(made)) < len(made):
            continue  # the same name in two folders: which one is meant is not known
        for their in (written, short):
            rows = [their.get(name, -1) for name in made]
            if _count(rows) > _count(best):
                best = rows
    return best


def names_from_above(names: Sequence[bytes], root: Path | None) -> Iterator[Sequence[bytes]]:
    """Yield the names of pictures below a folder, then with the last parts of its path in front:
    "00.png", "val/00.png", "photos/val/00.png", as a table of several folders calls them.
    """
    yield names
    parts = () if root is None else root.resolve().parts[1:]
    for k in range(1, min(len(parts), _FOLDERS) + 1):
        front = os.fsencode("/".join(parts[-k:])) + b"/"
        yield [front + name for name in names]


def some(names: Sequence[str] | Sequence[bytes], count: int = 3) -> str:
    """Name a few, and say that there are more."""
    shown = [show(name) if isinstance(name, bytes) else name[:80] for name in names[:count]]
    return ", ".join(shown) + (", …" if len(names) > count else "")
