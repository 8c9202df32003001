"""From what a column, a list or an array holds to the values of a condition."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ddpm_lib.core.text import short
from ddpm_lib.data.condition_values import (
    ConditionValues,
    black_and_white,
    check_options,
    images_of_array,
    mask_values,
)
from ddpm_lib.data.labels import Odd, plain_label
from ddpm_lib.data.source import content_hash
from ddpm_lib.nn.condition_table import DROP_PROB
from ddpm_lib.nn.pixel_conditions import UNKNOWN
from ddpm_lib.nn.text_encoders import encode_texts, split_tags
from ddpm_lib.nn.text_vectors import text_keys

MOST_NAMES = 1000
_MOST_LOST = 1e-3
"""How far off float32 may be, as a share of the standard deviation of the images' values."""
_PLAIN = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")
"""Numbers that name the same however they are written: 1 and 1.0, but not 007, 1e5 or inf."""
Place = Callable[[int], str]
"""Words for the image of a row."""


def make_values(
    name: str,
    raw: Sequence[Any] | np.ndarray,
    place: Place,
    options: Mapping[str, Any],
) -> ConditionValues:
    """Make the values of a condition from what a column, an array or a caller holds.

    Args:
        name: Of the condition.
        raw: One per image; None, NaN or "" where there is none.
        place: Words for the image of a row.
        options: kind, drop, missing, … as `condition_words.OPTIONS` says.

    Raises:
        ValueError: If they make no condition, naming the image, what is wrong and what to do.
    """
    may_miss = options.get("missing") == "null"
    drop = options.get("drop", DROP_PROB)
    if isinstance(raw, np.ndarray) and raw.ndim > 1:
        made = _from_array(name, raw, options, drop)
    else:
        made = _from_list(name, list(raw), place, options, drop)
    check_options(name, made.kind, options)
    values = made.values
    if isinstance(values, np.ndarray):
        gone = _missing_rows(made.kind, values)
        if len(gone) and not may_miss:
            raise ValueError(_missing(name, len(gone), len(values), place(int(gone[0]))))
        if len(gone) == len(values):
            raise ValueError(f"The condition {name!r} has no value for any image.")
        if len(gone) and drop == 0:
            raise ValueError(
                f"The condition {name!r} has no value for {len(gone):,} images, which needs a"
                " network that knows its absence: drop must be above 0."
            )
        infinite = np.isinf(values).reshape(len(values), -1).any(1) if _floats(values) else None
        if infinite is not None and infinite.any():
            where = place(int(np.flatnonzero(infinite)[0]))
            raise ValueError(f"The condition {name!r} is infinite for {where}. Correct it.")
    return made


def missing_words(name: str, count: int, total: int, first: str) -> str:
    """Word that images have no value of a condition, and what can be done."""
    return _missing(name, count, total, first)


def _missing(name: str, count: int, total: int, first: str) -> str:
    return (
        f"The condition {name!r} has no value (missing or NaN) for {count:,} of {total:,} images,"
        f" the first is {first}. Fill it in, leave these images out (files, --files), or let them"
        f" count as not known: {name}=…,missing=null."
    )


def _floats(values: np.ndarray) -> bool:
    return values.dtype.kind == "f"


def _missing_rows(kind: str, values: np.ndarray) -> np.ndarray:
    if kind == "label":
        return np.flatnonzero(values == -1)
    if kind == "mask" or not _floats(values):
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.isnan(values).reshape(len(values), -1).any(1))


def _from_array(
    name: str, raw: np.ndarray, options: Mapping[str, Any], drop: float
) -> ConditionValues:
    """Make vectors (n, d), masks (n, h, w) and images (n, c, h, w) of an array."""
    usual = {2: "vector", 3: "mask", 4: "image"}
    kind = options.get("kind") or usual.get(raw.ndim)
    fits = {"vector": 2, "text": 2, "tags": 2, "mask": 3, "image": 4}
    if kind is None or fits.get(kind) != raw.ndim or raw.dtype.kind not in "fiub":
        raise ValueError(
            f"The condition {name!r} is an array of {raw.dtype} of shape {raw.shape}: vectors have"
            " shape (n, d), masks (n, h, w), images (n, c, h, w), numbers (n,)."
        )
    if kind == "mask":
        read = black_and_white(raw, options.get("classes"))
        white = read is not raw and bool((raw == UNKNOWN).any())
        return replace(mask_values(name, read, options, drop), white=white)
    if kind == "image":
        return images_of_array(name, raw, options, drop)
    more: dict[str, Any] = {"size": raw.shape[1]}
    if kind == "tags":
        more = {"names": [str(k) for k in range(raw.shape[1])]}
    if kind == "text":
        more["encoder"] = _encoder(name, options)
    return ConditionValues(kind, _narrow(name, raw), drop, more)


def _narrow(name: str, values: np.ndarray) -> np.ndarray:
    """Return numbers (n, …) in float32.

    Raises:
        ValueError: If differences between the images are lost: times in seconds since 1970 are off
            by a minute.
    """
    wide = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow: np.ndarray = wide.astype(np.float32)
        apart = np.abs(wide - narrow)
    known = np.isfinite(narrow)  # what is not is missing, or refused elsewhere
    off = np.where(known, apart, 0.0).max(0, initial=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without a value
        spread = np.nanstd(np.where(known, wide, math.nan), axis=0)
    lost = np.atleast_1d(off > _MOST_LOST * spread) & np.atleast_1d(spread > 0)
    if lost.any():
        column = int(np.flatnonzero(lost)[0])
        one = wide.reshape(len(wide), -1)[:, column]
        low, high = float(np.nanmin(one)), float(np.nanmax(one))
        raise ValueError(
            f"The condition {name!r} has values from {low:.15g} to {high:.15g}, whose differences"
            f" float32 cannot hold (it is off by {np.atleast_1d(off)[column]:.3g}). Subtract the"
            " smallest of them."
        )
    return narrow


def _from_list(
    name: str, raw: list[Any], place: Place, options: Mapping[str, Any], drop: float
) -> ConditionValues:
    cells = [_plain(cell) for cell in raw]
    kind = options.get("kind") or _kind_of(name, cells, options)
    if kind in ("label", "tags", "text"):
        cells = [_named(cell, one, kind) for cell, one in zip(raw, cells, strict=True)]
    if kind in ("number", "angle"):
        numbers = [_number(name, cell, place, row) for row, cell in enumerate(cells)]
        more = {"period": options.get("period", 360.0)} if kind == "angle" else {}
        return ConditionValues(kind, _narrow(name, np.array(numbers, dtype=np.float64)), drop, more)
    if kind in ("vector", "text") and any(isinstance(cell, list) for cell in cells):
        return _vectors(name, cells, kind, options, place, drop)
    if kind == "text":
        return _texts(name, cells, options, drop)
    if kind == "label":
        return _labels(name, cells, place, drop)
    if kind == "tags":
        return _tags(cells, drop)
    raise ValueError(
        f"The condition {name!r} is a column of {_sort(cells)}, which is no {kind}. Masks and"
        " images come from folders of pictures or .npy files, vectors from .npy files or lists of"
        " numbers."
    )


def _plain(cell: Any) -> Any:
    """Return a number, a word, a list, or None where there is none."""
    if isinstance(cell, np.ndarray | Tensor) and cell.ndim == 1:
        cell = cell.tolist()
    if isinstance(cell, list | tuple):
        return list(cell)
    if isinstance(cell, bool | np.bool_):
        return "yes" if cell else "no"
    found = plain_label(cell)
    if isinstance(found, str):
        text = found.strip()
        return None if not text else _read_number(text)
    return found


def _named(cell: Any, plain: Any, kind: str) -> Any:
    """Return what is a name or a text, though it could be read as a number, as it is written."""
    if not isinstance(cell, str) or not isinstance(plain, float):
        return plain
    return cell.strip() if kind == "text" else _one_name(cell.strip())


def _one_name(text: str) -> str:
    """Return the name that a number has however it is written, digit by digit: 1 for 1.0; other
    words stay.
    """
    if not _PLAIN.fullmatch(text):
        return text
    short = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if short == "-0" else short


def _read_number(text: str) -> Any:
    try:
        number = float(text) if "_" not in text else None  # "1_2" is a name, though not to Python
    except ValueError:
        return text
    return text if number is None else None if math.isnan(number) else number


def _kind_of(name: str, cells: list[Any], options: Mapping[str, Any]) -> str:
    """Say what kind the cells of a column are."""
    if "encoder" in options:
        return "text"
    if "period" in options:
        return "angle"
    known = [cell for cell in cells if cell is not None]
    lists = [cell for cell in known if isinstance(cell, list)]
    if lists and all(isinstance(v, int | float) for cell in lists for v in cell) and any(lists):
        return "vector"
    if lists:
        return "tags"
    words = [cell for cell in known if isinstance(cell, str)]
    if not words:
        return "number"
    tags = any("|" in word or ";" in word for word in words)
    each = [tag for word in words for tag in split_tags(word)] if tags else known
    distinct = len(set(map(str, each)))
    if distinct > max(20, len(known) // 2) or distinct > MOST_NAMES:
        sort = "tags" if tags else "label"
        raise ValueError(
            f"The condition {name!r} has {distinct:,} different texts for {len(known):,} images,"
            f" such as {short(words[0], 60)}: these are no {sort.rstrip('s')}s. A sentence encoder"
            f" makes vectors of them: {name}=…,encoder=NAME. Or say kind={sort}."
        )
    return "tags" if tags else "label"


def _number(name: str, cell: Any, place: Place, row: int) -> float:
    if cell is None:
        return math.nan
    if isinstance(cell, int | float):
        try:
            return float(cell)
        except OverflowError:
            return math.inf  # which is refused, with the image's name
    said = cell.what if isinstance(cell, Odd) else short(cell, 40)
    raise ValueError(
        f"The condition {name!r} must be numbers; that of {place(row)} is {said}. Correct it, or"
        " say kind=label."
    )


def _vectors(
    name: str, cells: list[Any], kind: str, options: Mapping[str, Any], place: Place, drop: float
) -> ConditionValues:
    lengths = {len(cell) for cell in cells if isinstance(cell, list)}
    if len(lengths) != 1:
        raise ValueError(
            f"The condition {name!r} must be vectors of one length; got lengths"
            f" {', '.join(map(str, sorted(lengths)))}."
        )
    size = lengths.pop()
    rows = np.full((len(cells), size), math.nan)
    for row, cell in enumerate(cells):
        if isinstance(cell, list):
            rows[row] = [_number(name, _plain(v), place, row) for v in cell]
        elif cell is not None:
            raise ValueError(f"The condition {name!r} of {place(row)} is no vector: {short(cell)}.")
    more: dict[str, Any] = {"size": size}
    if kind == "text":
        more["encoder"] = _encoder(name, options)
    return ConditionValues(kind, _narrow(name, rows), drop, more)


def _texts(name: str, cells: list[Any], options: Mapping[str, Any], drop: float) -> ConditionValues:
    encoder = _encoder(name, options)
    texts = ["" if cell is None else _word(cell) for cell in cells]
    found = encode_texts(texts, encoder)
    found[[row for row, cell in enumerate(cells) if cell is None]] = math.nan
    written = np.array([content_hash(repr(cell).encode()) for cell in cells], dtype=np.int64)
    more = {"size": found.shape[1], "encoder": encoder}
    named = [None if cell is None else text for cell, text in zip(cells, texts, strict=True)]
    return ConditionValues("text", found, drop, more, written, text_keys(named, encoder))


def _encoder(name: str, options: Mapping[str, Any]) -> str:
    encoder = options.get("encoder")
    if encoder is None:
        raise ValueError(
            f"The condition {name!r} is text, which needs a sentence encoder: {name}=…,encoder=NAME"
            " (docs/conditions.md)."
        )
    return str(encoder)


def _word(cell: Any) -> str:
    """Return a number as a name of its own, all its digits; that of 1 and 1.0 is the same."""
    if not isinstance(cell, float) or not math.isfinite(cell):
        return str(cell)
    return np.format_float_positional(cell + 0.0, trim="-")


def _labels(name: str, cells: list[Any], place: Place, drop: float) -> ConditionValues:
    for row, cell in enumerate(cells):
        if isinstance(cell, list | Odd):
            said = cell.what if isinstance(cell, Odd) else f"a list of {len(cell)} values"
            raise ValueError(
                f"The condition {name!r} must be one word; that of {place(row)} is {said}."
            )
    words = [None if cell is None else _word(cell) for cell in cells]
    known = sorted({word for word in words if word is not None}, key=_by_number)
    if len(known) > MOST_NAMES:
        raise ValueError(
            f"The condition {name!r} has {len(known):,} different labels, more than {MOST_NAMES:,}."
        )
    numbers = [-1 if word is None else known.index(word) for word in words]
    return ConditionValues("label", np.array(numbers, dtype=np.int64), drop, {"names": known})


def _by_number(word: str) -> tuple[float, str]:
    number = _read_number(word)
    return (number, word) if isinstance(number, float) else (math.inf, word)


def _tags(cells: list[Any], drop: float) -> ConditionValues:
    each = [None if cell is None else _tags_of(cell) for cell in cells]
    names = sorted({word for words in each for word in words or ()})
    values = np.zeros((len(each), len(names)), dtype=np.float32)
    for row, words in enumerate(each):
        if words is None:
            values[row] = math.nan
        else:
            values[row, [names.index(word) for word in words]] = 1.0
    return ConditionValues("tags", values, drop, {"names": names})


def _tags_of(cell: Any) -> list[str]:
    written = cell if isinstance(cell, list) else split_tags(_word(cell))
    return [_one_name(_word(tag)) for tag in written if tag is not None]


def _sort(cells: list[Any]) -> str:
    first = next((cell for cell in cells if cell is not None), None)
    if isinstance(first, Odd):
        return first.what
    return {str: "words", float: "numbers", int: "numbers", list: "lists"}.get(
        type(first), type(first).__name__
    )
