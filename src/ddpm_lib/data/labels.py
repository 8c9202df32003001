"""Class labels from whatever a column, a list or the items of a Dataset hold: made where they can
be, or a note says why not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ddpm_lib.core.spelling import option

_SHOWN = 60
_MANY = 20


class Odd(NamedTuple):
    """What a value is that can be no label, in words."""

    what: str


Label = int | float | str | Odd | None


class LabelError(ValueError):
    """These values make no classes; the message is the reason."""


def plain_label(value: Any) -> Label:
    """Turn one value into a whole number, a fraction, a word, None where it is missing, or
    `Odd`.
    """
    if isinstance(value, Odd):
        return value
    if isinstance(value, (torch.Tensor, np.ndarray)):
        if (value.numel() if isinstance(value, torch.Tensor) else value.size) != 1:
            return Odd(f"{_article(type(value).__name__)} of shape {tuple(value.shape)}")
        value = value.item()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return plain_label(value[0])
    if isinstance(value, (list, tuple, set, frozenset)):
        return Odd(f"{_article(type(value).__name__)} of {len(value)} values")
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() else value
    return Odd(_article(type(value).__name__))


def make_labels(
    values: Sequence[Any] | np.ndarray,
    class_names: Sequence[str] | None,
    insist: bool,
    notes: list[str],
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Turn labels into int64 numbers and class names.

    Whole numbers count as class numbers; words are sorted. Values that make no classes leave the
    set without labels, with a note, unless labels were asked for. These are: measurements, several
    values for one image, masks, captions (nearly every value its own), and missing ones (None, NaN
    or negative).

    Args:
        values: One per image.
        class_names: Names of the classes 0, 1, …, where the data knows them.
        insist: Whether labels were asked for, so that they are an error where they cannot be made.
        notes: Gets the note.
        names: Names of the images, for messages; default: their row numbers.

    Raises:
        ValueError: If they cannot be made and `insist` is set.
    """
    try:
        return _numbered(values, class_names, insist, names)
    except LabelError as error:
        if insist:
            raise ValueError(
                f"{error} A label is one class number (from 0) or one word per image. Correct the"
                f" labels, name others ({option('label_column')}), or train without classes."
            ) from None
        notes.append(
            f"no labels: {_lower(str(error))} Only a network with classes needs them "
            '(labels="none", --labels none, leaves them out)'
        )
        return None, None


def _numbered(
    values: Sequence[Any] | np.ndarray,
    class_names: Sequence[str] | None,
    insist: bool,
    names: Sequence[str] | None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu":
        plain: list[Any] = values.tolist()
    else:
        plain = [plain_label(value) for value in values]
    place = _Place(names)
    for row, value in enumerate(plain):
        if isinstance(value, Odd):
            raise LabelError(f"The label of {place(row)} is {value.what}.")
    fraction = next((row for row, value in enumerate(plain) if isinstance(value, float)), None)
    if fraction is not None:
        raise LabelError(
            f"Labels must be whole numbers or words; that of {place(fraction)} is"
            f" {plain[fraction]:g}, a measurement."
        )
    _check_missing(plain, place)
    words = [value for value in plain if isinstance(value, str)]
    if words and len(words) < len(plain):
        row = next(row for row, value in enumerate(plain) if isinstance(value, str))
        raise LabelError(
            f"The label of {place(row)} is the word {_short(words[0])}, others are numbers."
        )
    if words:
        _check_captions(words, insist, place)
        found, numbers = np.unique(np.array(words), return_inverse=True)
        return numbers.astype(np.int64), tuple(found.tolist())
    return _class_numbers(plain, class_names, insist, place)


def _class_numbers(
    plain: list[Any], class_names: Sequence[str] | None, insist: bool, place: _Place
) -> tuple[np.ndarray, tuple[str, ...]]:
    n, highest = len(plain), max(plain)
    if class_names is not None and highest >= len(class_names):
        row = plain.index(highest)
        raise LabelError(
            f"Label {highest} of {place(row)} is out of range: there are {len(class_names)}"
            " classes."
        )
    if class_names is None and highest >= max(1000, 2 * n):
        row = plain.index(highest)
        raise LabelError(
            f"Labels must be class numbers from 0 on; that of {place(row)} is {highest}. Number"
            " them without gaps."
        )
    if class_names is None and not insist and n >= 50 and len(set(plain)) > 0.9 * n:
        raise LabelError(f"{len(set(plain)):,} different numbers for {n:,} images are no classes.")
    return np.array(plain, dtype=np.int64), tuple(
        class_names or (str(k) for k in range(highest + 1))
    )


def _check_missing(plain: list[Any], place: _Place) -> None:
    numbers = [value for value in plain if isinstance(value, int)]
    lowest = min(numbers, default=0)
    if lowest < -1:
        raise LabelError(
            f"The label of {place(plain.index(lowest))} is {lowest}; class numbers are not"
            " negative."
        )
    missing = [row for row, value in enumerate(plain) if value is None or value == -1]
    if missing:
        raise LabelError(
            f"{len(missing):,} of {len(plain):,} images have no label, the first is"
            f" {place(missing[0])}."
        )


def _check_captions(words: list[str], insist: bool, place: _Place) -> None:
    """Refuse captions and names: nearly every value is its own."""
    n, kinds = len(words), len(set(words))
    sentences = sorted(len(word.split()) for word in words)[n // 2] >= 3
    if kinds <= (0.9 * n if insist and not sentences else 0.5 * n):
        return
    if n < _MANY and not sentences and (insist or kinds < n):
        return  # of few images even classes are nearly all different
    raise LabelError(
        f"{n:,} images have {kinds:,} different labels, such as {_short(words[0])} of {place(0)}:"
        " these are captions or names, not classes."
    )


class _Place:
    """Words for the image of a row."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = names

    def __call__(self, row: int) -> str:
        name = str(row) if self._names is None else self._names[row]
        return f"row {name}" if name.isdigit() else f"image {name}"


def _short(word: str) -> str:
    return repr(word if len(word) <= _SHOWN else word[: _SHOWN - 1] + "…")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _article(name: str) -> str:
    name = {"ndarray": "array", "Tensor": "tensor"}.get(name, name)
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
