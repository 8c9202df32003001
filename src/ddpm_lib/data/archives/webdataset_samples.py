"""Samples of WebDataset: files of one key, such as 000017.jpg, 000017.cls and 000017.json.

The key of a file is its path up to the first dot of its name, the rest is what it is of the sample
(WebDataset's convention for .tar shards).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddpm_lib.core.spelling import option
from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.metadata import Beside, number_or_text

FILES = "file_name"
_TEXT = ("cls", "cls2", "txt", "text", "caption", "label", "id", "index")
_JSON = "json"


def key_of(name: bytes) -> tuple[bytes, bytes]:
    """Return the key of a file, and what it is of the sample, in lower case.

    >>> key_of(b"train/000017.seg.png")
    (b'train/000017', b'seg.png')
    """
    folder, _, base = name.rpartition(b"/")
    stem, _, ending = base.partition(b".")
    return (folder + b"/" + stem if folder else stem), ending.lower()


def is_label(ending: bytes) -> bool:
    """Whether a file of a sample may hold its label."""
    return os.fsdecode(ending) in (*_TEXT, _JSON)


def choose_kind(names: Sequence[bytes], asked: str | None) -> str | None:
    """Return which of several pictures of each sample is meant, as "jpg" or "seg.png".

    Args:
        names: All pictures.
        asked: The option image_column.

    Returns:
        None where every sample has one picture, and none is asked for.

    Raises:
        ValueError: If samples have several and none is chosen, or the one asked for is not there.
    """
    kinds = Counter(os.fsdecode(key_of(name)[1]) for name in names)
    if asked is not None:
        if asked.lower().lstrip(".") not in kinds:
            raise ValueError(
                f"No sample has a picture {asked!r}. There are:"
                f" {', '.join(kind for kind, _ in kinds.most_common(8))}."
            )
        return asked.lower().lstrip(".")
    if len({key_of(name)[0] for name in names}) == len(names):
        return None
    first = next((kind for kind, _ in kinds.most_common() if "." not in kind), None)
    first = first or kinds.most_common(1)[0][0]
    raise ValueError(
        "Samples hold several pictures each:"
        f" {', '.join(kind for kind, _ in kinds.most_common(8))}. Say which one with"
        f" {option('image_column', first)}."
    )


def beside_of(
    names: Sequence[bytes],
    there: Mapping[bytes, Mapping[str, bytes]],
    read: Callable[[bytes], bytes],
) -> Beside | None:
    """Read what lies beside pictures as a table with a row per picture.

    Args:
        names: The pictures.
        there: By key, the files of the sample by what they are of it.
        read: Gives what a file holds.

    Returns:
        The table: a column "cls" of .cls files, columns of the keys of .json files; None where
        there is nothing.

    Raises:
        ValueError: If a .json file is damaged, naming it.
    """
    kinds = {kind for files in there.values() for kind in files}
    texts = [kind for kind in _TEXT if kind in kinds]
    if not texts and _JSON not in kinds:
        return None
    rows: list[dict[str, Any]] = []
    for name in names:
        files = there[key_of(name)[0]]
        row: dict[str, Any] = {FILES: os.fsdecode(name)}
        if _JSON in files:
            row |= _fields(files[_JSON], read)
        row |= {kind: _word(files[kind], read) for kind in texts if kind in files}
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = {column: [row.get(column) for row in rows] for column in columns}
    of = " and ".join(f".{kind}" for kind in [*texts[:2], *([_JSON] if _JSON in kinds else [])])
    return Beside(f"the {of} files of the samples", table, FILES, list(range(len(names))))


def _fields(name: bytes, read: Callable[[bytes], bytes]) -> dict[str, Any]:
    try:
        value = json.loads(read(name))
    except (ValueError, ImageError) as error:
        raise ValueError(
            f"{os.fsdecode(name)} in the archive is no JSON: {str(error)[:200]}. Mend it, or leave"
            ' it out with labels="none" (--labels none).'
        ) from None
    if isinstance(value, dict):
        return {str(key): part for key, part in value.items() if str(key) != FILES}
    return {_JSON: value}


def _word(name: bytes, read: Callable[[bytes], bytes]) -> Any:
    try:
        return number_or_text(read(name).decode("utf-8", "backslashreplace"))
    except ImageError as error:
        raise ValueError(
            f"{os.fsdecode(name)} in the archive cannot be read: {error}. Mend it, or leave it out"
            ' with labels="none" (--labels none).'
        ) from None
