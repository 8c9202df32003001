"""Tables of named things, and the sentence that a wrong name earns."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

_LONGEST = 200
"""Characters of a wrong name that are looked at."""

T = TypeVar("T")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that is meant by `name`: another library's word for it, or what looks most
    like it; else None.

    >>> nearest("cosin", ["linear", "cosine"])
    'cosine'
    >>> nearest("lr", ["lr_schedule", "learning_rate"])
    'learning_rate'
    """
    import difflib

    from ddpm_lib.core import peers_names

    name, names = str(name)[:_LONGEST], list(choices)
    same = peers_names.same_name(name, names)
    if same is not None:
        return same
    found = difflib.get_close_matches(name, names, n=4, cutoff=0.55)
    return min(
        found, key=lambda choice: _edits(name, choice), default=None
    )  # the first of equal ones


def _edits(a: str, b: str) -> int:
    """Count the edits from one word to another, two letters that changed places being one (Damerau,
    restricted).
    """
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        above, row = row, [i + 1]
        for j, y in enumerate(b):
            best = min(above[j] + (x != y), above[j + 1] + 1, row[j] + 1)
            if i and j and x == b[j - 1] and y == a[i - 1]:
                best = min(best, before[j - 1] + 1)
            row.append(best)
        before = above
    return row[-1]


def unknown_name(kind: str, name: object, choices: Iterable[str]) -> str:
    """Word the error for an unknown name: what, got, the nearest one, all choices."""
    from ddpm_lib.core.text import short

    names = list(choices)
    hint = suggestion(str(name), names)
    also = f" {hint[0].upper()}{hint[1:]}" if hint else ""
    return f"Unknown {kind} {short(name)}.{also} Choices: {', '.join(names)}."


def suggestion(name: str, choices: Iterable[str]) -> str | None:
    """Word what may have been meant by an unknown name of an option or a value, without a capital;
    None for no idea.

    >>> suggestion("cosin", ["linear", "cosine"])
    "did you mean 'cosine'?"
    """
    from ddpm_lib.core import peers_names

    names = list(choices)
    told = peers_names.hint(name, names)
    if told is not None:
        return told if told.endswith(("?", ")")) else f"{told}."
    like = nearest(name, names)
    return f"did you mean {like!r}?" if like else None


class _Later(NamedTuple):
    """An entry that is imported when somebody asks for it."""

    module: str
    name: str


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping from name to object whose missing keys name the nearest one.

    Args:
        kind: What the entries are, for messages ("schedule", "sampler").
        entries: The initial entries.
    """

    def __init__(self, kind: str, entries: Mapping[str, T] | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, T | _Later] = dict(entries or {})

    def add(self, name: str, entry: T, *, again: bool = False) -> T:
        """Add one entry; a name can be taken once.

        Args:
            name: Its name.
            entry: The entry.
            again: Replace the entry that has the name.

        Raises:
            ValueError: If the name is taken.
        """
        if name in self._entries and not again:
            raise ValueError(
                f"The {self.kind} {name!r} is already registered. Choose another name."
            )
        self._entries[name] = entry
        return entry

    def add_later(self, name: str, module: str) -> None:
        """Announce an entry that its module, once imported, has under the same name.

        Args:
            name: Its name.
            module: The module, imported when the entry is first asked for.
        """
        self._entries[name] = _Later(module, name)

    def loaded(self) -> Iterator[tuple[str, T]]:
        """Go through the entries that nothing needs to be imported for, with their names."""
        for name, entry in list(self._entries.items()):
            if not isinstance(entry, _Later):
                yield name, entry

    def home(self, name: str) -> tuple[str, str] | None:
        """Return module and name of what is registered under a name, without importing it; None
        for nothing.
        """
        entry: Any = self._entries.get(name)
        if entry is None or isinstance(entry, _Later):
            return entry
        return entry.__module__, getattr(entry, "__qualname__", type(entry).__qualname__)

    def __getitem__(self, name: str) -> T:
        if not isinstance(name, str) or name not in self._entries:
            raise ValueError(unknown_name(self.kind, name, self._entries))
        entry = self._entries[name]
        if isinstance(entry, _Later):
            found: T = getattr(importlib.import_module(entry.module), entry.name)
            entry = self._entries[name] = found
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
