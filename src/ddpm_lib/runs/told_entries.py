"""Files that hold a value of a condition per image: folders of pictures, columns of tables, arrays
of many rows.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.lost_paths import lost
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.data.condition_cells import make_values
from ddpm_lib.data.condition_values import black_and_white, images_of_array, mask_values
from ddpm_lib.data.condition_words import ARRAY, TABLE_FILES
from ddpm_lib.data.folders import FolderSource
from ddpm_lib.data.metadata import column_of_names, match_names, read_table
from ddpm_lib.nn.data_conditions import DataCondition, TextCondition
from ddpm_lib.nn.text_vectors import known_texts
from ddpm_lib.runs.told_values import (
    Frame,
    Size,
    given_to,
    is_number_of_name,
    load_array,
    read_picture,
)

PICTURES = ("mask", "image")


class Entries(ABC):
    """Values of a condition, one per entry of a source.

    Attributes:
        conditioner: The condition.
        source: As the user wrote it.
        names: What the entries are called, as images are; None where only their order tells.
        single: Whether it is one value, for all images.
    """

    kind_of_source = "source"

    def __init__(self, conditioner: DataCondition, source: str, names: list[str] | None) -> None:
        self.conditioner, self.source, self.names = conditioner, source, names
        self.single = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, rows: Sequence[int], beside: Sequence[Size | None] | None = None) -> Tensor:
        """Return the values of some entries (len(rows), …).

        Args:
            rows: Their numbers.
            beside: For pictures, the sizes of those that they belong to, where these are known.

        Raises:
            ConfigError: For a value that the condition does not take, naming it.
        """

    @abstractmethod
    def told(self, row: int) -> str:
        """Say what an entry is: the file, the cell, or the place in the array."""

    def rows_of(self, wanted: Sequence[str]) -> list[int]:
        """Return the entry of each image by its name, −1 for none; extensions may differ.

        Raises:
            ConfigError: If two entries have the name of one.
        """
        written, asked = self.names or [], [os.fsencode(name) for name in wanted]
        stems = [os.path.splitext(name)[0] for name in written]
        both = match_names(written, asked), match_names(stems, asked)
        best = max(both, key=lambda rows: sum(row >= 0 for row in rows))
        often = Counter(stems)
        for name, row in zip(wanted, best):
            if row >= 0 and often[stems[row]] > 1 and written[row] != name:
                twice = [one for one, stem in zip(written, stems) if stem == stems[row]][:2]
                raise ConfigError(
                    f"{given_to(self.conditioner.name)}: {self.source} has {twice[0]} and"
                    f" {twice[1]}, and which of them belongs to {name} is not known. Leave one."
                )
        return best

    def checked(self, values: Tensor, rows: Sequence[int]) -> Tensor:
        """Return values that the condition takes.

        Raises:
            ConfigError: If it does not, or needs one that is missing.
        """
        try:
            self.conditioner.validate(values, len(rows))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{given_to(self.conditioner.name)}: {self.source}: {error}"
            ) from None
        if not self.conditioner.optional and self.conditioner.kind not in PICTURES:
            null = self.conditioner.null_like(values)
            gone = ((values == null) | (values != values)).reshape(len(values), -1).any(1)
            if bool(gone.any()):
                row = rows[int(gone.nonzero()[0])]
                raise ConfigError(
                    f"{given_to(self.conditioner.name)}: {self.place(row)} has no value, and the"
                    " network knows no absence of it; it was trained with drop=0."
                )
        return values

    def place(self, row: int) -> str:
        """Name an entry in a message."""
        return f"entry {row} of {self.source}"


class _Folder(Entries):
    """A folder of pictures, in the order of their names."""

    kind_of_source = "folder"

    def __init__(self, conditioner: DataCondition, source: str, frame: Frame) -> None:
        try:
            found = FolderSource(Path(source).expanduser(), "none")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{given_to(conditioner.name)}: {error}") from None
        self.paths, self.frame = found.paths(), frame
        super().__init__(conditioner, source, [found.names[row] for row in range(len(found))])

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: Sequence[int], beside: Sequence[Size | None] | None = None) -> Tensor:
        sizes = beside or [None] * len(rows)
        frame, one = self.frame, self.conditioner
        return torch.stack(
            [read_picture(one, self.paths[row], frame, size) for row, size in zip(rows, sizes)]
        )

    def told(self, row: int) -> str:
        return str(self.paths[row])


class _Column(Entries):
    """A column of a table, in the order of its lines."""

    kind_of_source = "table"

    def __init__(self, conditioner: DataCondition, source: str, column: str | None) -> None:
        path, said = Path(source).expanduser(), given_to(conditioner.name)
        try:
            columns: Mapping[str, list[Any]] = read_table(path)
        except ValueError as error:
            raise ConfigError(f"{said}: {error}") from None
        self.column = column or conditioner.name
        if self.column not in columns:
            raise ConfigError(
                f"{said}: {path.name}: {unknown_name('column', self.column, columns)}"
            )
        self.cells = list(columns[self.column])
        if not self.cells:
            raise ConfigError(f"{said}: {source} has a heading and no lines.")
        names = column_of_names(columns, self.column)
        super().__init__(conditioner, source, names)

    def __len__(self) -> int:
        return len(self.cells)

    def read(self, rows: Sequence[int], beside: Sequence[Size | None] | None = None) -> Tensor:
        cells = [self.cells[row] for row in rows]
        return self.checked(_of_cells(self, cells, rows), rows)

    def told(self, row: int) -> str:
        cell = self.cells[row]
        if isinstance(cell, list):
            return ("|" if self.conditioner.kind == "tags" else ",").join(map(str, cell))
        return "" if cell is None else str(cell)

    def place(self, row: int) -> str:
        return f"entry {row + 1} of {self.source}:{self.column}"


class _Array(Entries):
    """The rows of an array."""

    kind_of_source = "array"

    def __init__(
        self, conditioner: DataCondition, source: str, array: np.ndarray, frame: Frame
    ) -> None:
        self.array, self.frame = array, frame
        super().__init__(conditioner, source, None)

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: Sequence[int], beside: Sequence[Size | None] | None = None) -> Tensor:
        some, one = np.array(self.array[list(rows)]), self.conditioner
        try:
            values = torch.from_numpy(self._values(some, rows))
        except ValueError as error:
            raise ConfigError(f"{given_to(one.name)}: {self.source}: {error}") from None
        self._check_size(values)
        return self.checked(values, rows)

    def _values(self, some: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        one = self.conditioner
        if one.kind == "mask":
            each = [black_and_white(mask, one.spec["classes"]) for mask in some]
            found: Any = mask_values(one.name, np.stack(each), {"classes": 255}, 0.0).values
        elif one.kind == "image":
            found = images_of_array(one.name, some, {}, 0.0).values
        elif one.axes:
            if some.dtype.kind not in "fiub":
                raise ValueError(f"holds {some.dtype}, no numbers.")
            found = some.astype(np.float32)
        else:
            found = _of_cells(self, some.tolist(), rows).numpy()
        return np.asarray(found)

    def _check_size(self, values: Tensor) -> None:
        factor = self.conditioner.spec.get("factor", 1)
        wanted = tuple(side // factor for side in self.frame.image_size)
        if self.conditioner.kind in PICTURES and tuple(values.shape[-2:]) != wanted:
            height, width = values.shape[-2:]
            raise ConfigError(
                f"{given_to(self.conditioner.name)}: {self.source} holds pictures of"
                f" {width}×{height}, and the network takes {wanted[1]}×{wanted[0]}."
            )

    def told(self, row: int) -> str:
        return f"{self.source}[{row}]"


def _of_cells(entries: Entries, cells: Sequence[Any], rows: Sequence[int]) -> Tensor:
    """Read numbers, words and lists as training reads a column of them."""
    one = entries.conditioner
    options = {"kind": one.kind, "missing": "null"}
    options |= {k: one.spec[k] for k in ("period", "encoder") if k in one.spec}
    names = one.spec.get("names")
    if one.kind == "label":
        cells = [_named(cell, names or ()) for cell in cells]
    known = [one.known] if isinstance(one, TextCondition) and one.known is not None else []
    if all(cell is None or cell == "" for cell in cells):
        place = entries.place(rows[0])
        raise ConfigError(f"{given_to(one.name)}: {place} has no value, nor has any other image.")
    try:
        with known_texts(known):
            made = make_values(one.name, cells, lambda k: entries.place(rows[k]), options)
        if names is not None:
            made = made.renamed(names, entries.source)
    except ValueError as error:
        raise ConfigError(f"{given_to(one.name)}: {error}") from None
    return torch.from_numpy(np.asarray(made.values))


def _named(cell: Any, names: Sequence[str]) -> Any:
    """Return the name of a label for its number, where numbers are no names themselves; None for
    −1, which is no label.
    """
    if isinstance(cell, int) and cell < 0:
        return cell if str(cell) in names or cell < -1 else None
    number = isinstance(cell, int) or (isinstance(cell, str) and is_number_of_name(cell))
    if number and str(cell) not in names and int(cell) < len(names):
        return names[int(cell)]
    return cell


def open_entries(conditioner: DataCondition, word: str, frame: Frame) -> Entries | None:
    """Return the source of many values that a word names; None where it is a single value.

    Args:
        conditioner: The condition.
        word: FOLDER or FILE.npy, or FILE:COLUMN or FILE of a table.
        frame: What pictures are laid on.

    Raises:
        ConfigError: If the source is not there, or holds nothing for the condition.
    """
    kind, said = conditioner.kind, given_to(conditioner.name)
    if kind in ("label", "tags") and word in conditioner.spec["names"]:
        return None
    path = Path(word).expanduser()
    if kind in PICTURES and path.is_dir():
        return _Folder(conditioner, word, frame)
    table = _table_in(word)
    if table is not None:
        source, column = table
        if kind in PICTURES:
            raise ConfigError(
                f"{said}: a table holds no {kind}s. Name a picture, a folder of pictures or a .npy"
                f" file; got {word!r}."
            )
        if not Path(source).expanduser().is_file():
            raise ConfigError(f"{said}: {lost(source)} Columns are named FILE:COLUMN.")
        return _Column(conditioner, source, column)
    if path.suffix.lower() != ARRAY:
        return None
    array = load_array(conditioner, word)
    axes = conditioner.axes
    single = 0 < array.ndim == axes or (axes == 1 and array.ndim == 2 and len(array) == 1)
    if single and kind in ("vector", "text"):
        return None
    array = array[None] if array.ndim == axes > 0 else array
    shape = {0: "(n,)", 1: "(n, d)", 2: "(n, h, w)", 3: "(n, c, h, w)"}[axes]
    if array.ndim != axes + 1 or not len(array):
        raise ConfigError(
            f"{said}: {word} has the shape {tuple(array.shape)}; one {kind} per image is an array"
            f" of shape {shape}."
        )
    found = _Array(conditioner, word, array, frame)
    found.single = single
    return found


def _table_in(word: str) -> tuple[str, str | None] | None:
    """Return the file and the column that a word names, None where it names no table."""
    if _is_table(word):
        return word, None
    source, colon, column = word.rpartition(":")
    if colon and column and _is_table(source):
        return source, column
    return None


def _is_table(word: str) -> bool:
    """Whether a word is the path of a table; a text that only ends like one is none."""
    path = Path(word).expanduser()
    return path.suffix.lower() in TABLE_FILES and (path.is_file() or " " not in word)
