"""Tables of named things, and the sentence that a wrong name earns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from ddpm_lib.words import short

T = TypeVar("T")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that looks most like `name`, or None when nothing is close.

    >>> nearest("cosin", ["linear", "cosine"])
    'cosine'
    """
    found = difflib.get_close_matches(str(name)[:200], list(choices), n=1, cutoff=0.55)
    return found[0] if found else None


def unknown_name(kind: str, name: object, choices: Iterable[str]) -> str:
    """Word the error for an unknown name: what, got, the nearest one, all choices."""
    names = list(choices)
    hint = nearest(str(name), names)
    did_you_mean = f" Did you mean {hint!r}?" if hint else ""
    return f"Unknown {kind} {short(name)}.{did_you_mean} Choices: {', '.join(names)}."


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping from name to object whose missing keys name the nearest one.

    Args:
        kind: What the entries are, for messages ("schedule", "sampler").
        entries: The initial entries.
    """

    def __init__(self, kind: str, entries: Mapping[str, T] | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, T] = dict(entries or {})

    def add(self, name: str, entry: T) -> T:
        """Add one entry; a name can be taken once.

        Raises:
            ValueError: If the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"The {self.kind} {name!r} is already registered. Choose another name.")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        if not isinstance(name, str) or name not in self._entries:
            raise ValueError(unknown_name(self.kind, name, self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
