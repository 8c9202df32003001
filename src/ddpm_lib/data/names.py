"""Names of images, held in two arrays instead of a list of objects: forked workers then share them
without copying.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


def show(raw: bytes) -> str:
    """Turn the bytes of a file name into printable text: bad UTF-8 and control characters become
    escapes.
    """
    text = raw.decode("utf-8", "backslashreplace")
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    )


class Names(Sequence[str]):
    """Names of n images, by index; `raw(i)` gives the bytes as the file system knows them."""

    @abstractmethod
    def raw(self, i: int) -> bytes:
        """Return the bytes of name `i`."""

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [show(self.raw(k)) for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return show(self.raw(i % len(self)))


class PackedNames(Names):
    """Names in one blob of bytes and one array of offsets."""

    def __init__(self, names: Iterable[bytes]) -> None:
        lengths, blob = [], bytearray()
        for name in names:
            blob += name
            lengths.append(len(name))
        self._blob = np.frombuffer(bytes(blob), dtype=np.uint8)
        self._ends = np.cumsum(np.array([0, *lengths], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def raw(self, i: int) -> bytes:
        """Return the bytes of name `i`."""
        return self._blob[self._ends[i] : self._ends[i + 1]].tobytes()


class NumberedNames(Names):
    """The names of things that have none: their row numbers, "000012"."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    def raw(self, i: int) -> bytes:
        """Return the bytes of name `i`."""
        return b"%06d" % i


class ChosenNames(Names):
    """The names of chosen rows of other names."""

    def __init__(self, names: Names, rows: np.ndarray) -> None:
        self._names, self._rows = names, rows

    def __len__(self) -> int:
        return len(self._rows)

    def raw(self, i: int) -> bytes:
        """Return the bytes of name `i`."""
        return self._names.raw(int(self._rows[i]))
