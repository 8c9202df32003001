"""The words that name a condition of the data: NAME=SOURCE[:COLUMN][,kind=…,drop=…]."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.data.metadata import TABLES
from ddpm_lib.nn.condition_table import KINDS, check_name
from ddpm_lib.nn.text_encoders import encoder_at

TABLE_FILES = (*TABLES, ".json", ".parquet")
ARRAY = ".npy"
OPTIONS: dict[str, type] = {
    "kind": str,
    "drop": float,
    "missing": str,
    "classes": int,
    "channels": int,
    "factor": int,
    "period": float,
    "encoder": str,
}
"""What may follow a source, with its type."""
_PAIR = re.compile(r"([a-z_]+)=(.*)")


@dataclass(frozen=True)
class ConditionWords:
    """A condition as it was asked for.

    Attributes:
        name: Of the condition.
        source: A table, an array or a folder; None for the data's own columns.
        column: Of the table, None for the one that is called like the condition.
        options: Those of `OPTIONS` that were given.
        written: All of it.
    """

    name: str
    source: str | None
    column: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    written: str = ""

    @property
    def own_column(self) -> str | None:
        """The column of the data itself that is meant, None where it is from elsewhere."""
        return (self.column or self.name) if self.source is None else None


def read_words(written: str) -> ConditionWords:
    """Read the words of one condition.

    >>> read_words("age=meta.csv:years,drop=0.2")  # doctest: +ELLIPSIS
    ConditionWords(name='age', source='meta.csv', column='years', options={'drop': 0.2}, ...)

    Raises:
        ValueError: If they cannot be read, saying how they are written.
    """
    name, equals, rest = written.partition("=")
    if not equals or not rest:
        way = option("condition")
        raise ValueError(
            f"{way} is written NAME=SOURCE[:COLUMN], such as age=meta.csv:age, style=:style for a"
            f" column of the data itself, or mask=path/to/masks; got {written!r}."
        )
    check_name(name)
    source, options = _options(name, rest)
    if "encoder" in options:
        options["encoder"] = encoder_at(options["encoder"])
    column: str | None = None
    if not Path(source).expanduser().exists() and ":" in source:
        source, _, column = source.rpartition(":")
    if column == "":
        raise ValueError(f"The condition {name!r} names no column after the colon: {written!r}.")
    if column is None and _is_column(source):
        source, column = "", source
    return ConditionWords(name, source or None, column, options, written)


def read_all_words(conditions: Sequence[str] | str | None) -> list[ConditionWords]:
    """Read the words of several conditions.

    Raises:
        ValueError: If they cannot be read, or a name comes twice.
    """
    each = [conditions] if isinstance(conditions, str) else list(conditions or ())
    found = [read_words(written) for written in each]
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"The condition {twice!r} is named twice. Give it once.")
    return found


def portable_words(written: str) -> str:
    """Return the words of a condition with the path of a source that is here made absolute."""
    written = _with_encoder(written)
    name, _, rest = written.partition("=")
    source = read_words(written).source
    path = None if source is None else Path(source).expanduser()
    if source is None or path is None or not path.exists():
        return written
    return f"{name}={path.absolute()}{rest.removeprefix(source)}"


def _with_encoder(written: str) -> str:
    """Return the words of a condition with the folder of a text encoder made absolute."""
    name, _, rest = written.partition("=")
    encoder = _options(name, rest)[1].get("encoder")
    if encoder is None:
        return written
    return written.replace(f"encoder={encoder}", f"encoder={encoder_at(encoder)}")


def _is_column(source: str) -> bool:
    path = Path(source).expanduser()
    known = path.suffix.lower() in (*TABLE_FILES, ARRAY)
    return not known and "/" not in source and not path.exists()


def _options(name: str, rest: str) -> tuple[str, dict[str, Any]]:
    """Take `,word=value` from the end of a source."""
    parts, options = rest.split(","), dict[str, Any]()
    while len(parts) > 1 and (found := _PAIR.fullmatch(parts[-1].strip())):
        word, value = found.groups()
        if word not in OPTIONS:
            raise ValueError(unknown_name(f"word of the condition {name!r}", word, OPTIONS))
        try:
            options[word] = OPTIONS[word](value)
        except ValueError:
            wanted = {int: "a whole number", float: "a number"}[OPTIONS[word]]
            raise ValueError(
                f"{word} of the condition {name!r} must be {wanted}; got {value!r}."
            ) from None
        parts.pop()
    if options.get("kind", "number") not in KINDS:
        raise ValueError(unknown_name(f"kind of the condition {name!r}", options["kind"], KINDS))
    if options.get("missing", "error") not in ("error", "null"):
        got = options["missing"]
        raise ValueError(unknown_name(f"missing of the condition {name!r}", got, ("error", "null")))
    return ",".join(parts), options
