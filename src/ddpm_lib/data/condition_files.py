"""From the words of a condition to its values: tables, arrays, folders and the data's own
columns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import span
from ddpm_lib.data.condition_cells import make_values, missing_words
from ddpm_lib.data.condition_images import OpenFolder, PictureSize, paired_pictures
from ddpm_lib.data.condition_values import ConditionValues, TakenFrom
from ddpm_lib.data.condition_words import ARRAY, TABLE_FILES, ConditionWords
from ddpm_lib.data.dataset import ImageDataset
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.metadata import (
    Beside,
    names_from_above,
    open_table,
    refuse_twice,
    some,
)
from ddpm_lib.data.source import Source
from ddpm_lib.nn.condition_table import DROP_PROB


@dataclass(frozen=True)
class KnownOfData:
    """What is known of the data that conditions are read for.

    Attributes:
        spec: How its images are fitted.
        open_folder: Opens a folder of paired images.
        column: Returns a column of its own, by row of the store; None where it has none.
        root: Its folder, where relative sources are looked for too.
        size: The stored size of the picture of a row of the store.
    """

    spec: DecodeSpec
    open_folder: OpenFolder
    column: Callable[[str], Sequence[Any] | np.ndarray] | None = None
    root: Path | None = None
    size: Callable[[int], tuple[int, int] | None] = lambda row: None


def add_conditions(
    data: ImageDataset, conditions: Sequence[ConditionWords], known: KnownOfData
) -> ImageDataset:
    """Return a dataset with the conditions that are asked for and that it was not opened with.

    Args:
        data: The images.
        conditions: What was asked for.
        known: What is known of the data.

    Raises:
        FileNotFoundError: If a source is not there.
        ValueError: If a column is not there, images have no value, or values make no condition.
    """
    there = data.opened_with.get("conditions", ()) if data.conditions else ()
    new = [words for words in conditions if words.written not in there]
    if not new:
        return data
    same = data.with_conditions({words.name: _read(data, words, known) for words in new})
    same.opened_with = {**data.opened_with, "conditions": tuple(w.written for w in conditions)}
    same.notes = [*data.notes, *(said_of(words.name, same) for words in new)]
    return same


def said_of(name: str, data: ImageDataset) -> str:
    """Say in a line what a condition is."""
    found = data.conditions[name]
    sort = {
        "mask": f"{found.more.get('classes')} classes",
        "vector": f"{found.more.get('size')} numbers",
    }
    more = sort.get(found.kind, "")
    if found.names is not None:
        more = f"{len(found.names)}: {', '.join(found.names[:6])}{', …' * (len(found.names) > 6)}"
    if found.kind == "number":
        values: Any = found.values
        more = span(float(np.nanmin(values)), float(np.nanmax(values)))
    return f"condition {name}: {found.kind}{f' ({more})' if more else ''}"


def _read(data: ImageDataset, words: ConditionWords, known: KnownOfData) -> ConditionValues:
    name, options = words.name, words.options

    def place(row: int) -> str:
        return f"image {data.names[row]}"

    if words.own_column is not None:
        return make_values(name, _own_column(data, words, known), place, options)
    path = _found(words, known.root)
    if path.is_dir():
        if len(known.spec.image_size) != 2:
            raise ValueError(
                f"The condition {name!r}: {str(path)!r} is a folder of pictures, which have two"
                f" dimensions; the data have {len(known.spec.image_size)}. Learn slices of volumes"
                f" ({option('slice_axis')}), or take a number, vector or label of each volume."
            )
        raw = [data.names.raw(row) for row in range(len(data))]
        drop = options.get("drop", DROP_PROB)
        sizes: PictureSize = lambda row: known.size(int(data.rows[row]))  # noqa: E731
        spec, open_folder = known.spec, known.open_folder
        above = names_from_above(raw, known.root)
        return paired_pictures(name, path, above, spec, options, drop, sizes, open_folder)
    suffix = path.suffix.lower()
    if suffix == ARRAY:
        array, entries = _array(data, words, path)
        made = make_values(name, array, place, options)
        return replace(made, taken=TakenFrom(str(path.resolve()), entries, "order"))
    if suffix in TABLE_FILES:
        cells, taken = _column_of(data, words, path, known.root)
        return replace(make_values(name, cells, place, options), taken=taken)
    raise ValueError(
        f"The condition {name!r}: {str(path)!r} is none of the sources that are known: a table"
        f" ({', '.join(TABLE_FILES)}), an array ({ARRAY}), or a folder of pictures."
    )


def _found(words: ConditionWords, root: Path | None) -> Path:
    """Find a source here, or in the folder of the data.

    Raises:
        FileNotFoundError: If it is in neither.
    """
    path = Path(str(words.source)).expanduser()
    tried = [path] if root is None or path.is_absolute() else [path, root / path]
    for one in tried:
        if one.exists():
            return one
    places = " nor ".join(repr(os.fspath(one)) for one in tried)
    raise FileNotFoundError(
        f"The condition {words.name!r}: there is {'no' if len(tried) == 1 else 'neither'} {places}."
        f" Write {option('condition')} {words.name}=FILE:COLUMN, or {words.name}=:COLUMN for a"
        " column of the data itself."
    )


def _own_column(data: ImageDataset, words: ConditionWords, known: KnownOfData) -> Any:
    column = str(words.own_column)
    if known.column is None:
        raise ValueError(
            f"The condition {words.name!r} asks for the column {column!r} of the data, which has no"
            f" columns here. Name a file ({words.name}=FILE:COLUMN), or in Python hand the values"
            " over: open_dataset(…).with_conditions({name: values})."
        )
    values = known.column(column)
    if len(values) == len(data):
        return values
    if isinstance(values, np.ndarray):
        return values[data.rows]
    return [values[row] for row in data.rows.tolist()]


def _column_of(
    data: ImageDataset, words: ConditionWords, path: Path, root: Path | None
) -> tuple[list[Any], TakenFrom]:
    """Return the cells of a table for the images, which it names, and their lines."""
    raw = [data.names.raw(row) for row in range(len(data))]
    table: Beside | None = None
    by: Literal["name", "path"] = "name"
    for k, names in enumerate(names_from_above(raw, root)):
        found = open_table(path, names, None)
        if found is not None and (table is None or found.known > table.known):
            table, by = found, "path" if k else "name"
        if table is not None and table.known == len(raw):
            break
    if table is None:
        raise ValueError(
            f"The condition {words.name!r}: no column of {str(path)!r} names the images, such as"
            f" {some(raw, 1)}. A column file_name with their names is needed."
        )
    column = words.column or words.name
    if column not in table.columns:
        raise ValueError(
            f"The condition {words.name!r}: {path.name}:"
            f" {unknown_name('column', column, table.others)}"
        )
    lone = [row for row, line in enumerate(table.rows) if line < 0]
    if lone and words.options.get("missing") != "null":
        first = f"image {data.names[lone[0]]} (no line in {path.name})"
        raise ValueError(missing_words(words.name, len(lone), len(raw), first))
    try:
        refuse_twice(table, column)
    except ValueError as error:
        raise ValueError(f"The condition {words.name!r}: {error}") from None
    cells = table.columns[column]
    taken = TakenFrom(str(path.resolve()), np.array(table.rows, dtype=np.int64), by)
    return [cells[line] if line >= 0 else None for line in table.rows], taken


def _array(data: ImageDataset, words: ConditionWords, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries of an array for the images, and which these are."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"The condition {words.name!r}: {str(path)!r} cannot be read as an array:"
            f" {' '.join(str(error).split())[:200]}."
        ) from None
    if words.column is not None:
        raise ValueError(
            f"The condition {words.name!r}: an array has no columns; got {words.column!r}."
        )
    whole = data.stored_rows
    if array.ndim == 0 or len(array) not in (len(data), whole):
        size = f"{len(array):,} entries" if array.ndim else "one number"
        other = "" if whole == len(data) else f" (or {whole:,}, with those that are left out)"
        raise ValueError(
            f"The condition {words.name!r}: {path.name} has {size} for {len(data):,} images{other}."
            " It must have one per image, in the order of their names."
        )
    entries = data.rows if len(array) == whole else np.arange(len(data), dtype=np.int64)
    return np.array(array[entries]), entries


def known_of(source: Source) -> dict[str, Any]:
    """Return what a source knows beside its images, as arguments of `KnownOfData`."""
    root = getattr(source, "root", None)
    root = root if isinstance(root, Path) else None
    return {"column": source.column, "root": root, "size": source.picture_size}
