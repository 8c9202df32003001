"""The images of a source that a list names, as a source of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_lib.data.decode import Decoded
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.names import ChosenNames
from ddpm_lib.data.source import Examined, Source


class ListedSource(Source):
    """Some rows of another source; the others are never read.

    Args:
        whole: The other source.
        rows: Its rows that belong to this one, int64 (n,).
        note: A line on what was chosen.
    """

    def __init__(self, whole: Source, rows: np.ndarray, note: str) -> None:
        self.whole, self.rows = whole, rows
        self.names = ChosenNames(whole.names, rows)
        self.notes = [*whole.notes, note]
        self.foreign, self.here = whole.foreign, whole.here
        self.root = getattr(whole, "root", None)
        ready = getattr(whole, "ready", None)
        self.ready = None if ready is None else ready[rows]
        self._take()

    @property
    def random(self) -> bool:
        """Whether one row is another image each time it is read."""
        return self.whole.random

    @random.setter
    def random(self, value: bool) -> None:
        self.whole.random = value

    @property
    def gives_labels(self) -> bool:  # type: ignore[override]
        """Whether `examine` gives the labels."""
        return self.whole.gives_labels

    @property
    def data(self) -> Any:
        """The user's Dataset, of a source that has one."""
        return self.whole.data  # type: ignore[attr-defined]

    @property
    def failing_hint(self) -> Callable[[], str]:
        """What it means that no item can be read, of a source that says so."""
        hint: Callable[[], str] = self.whole.failing_hint  # type: ignore[attr-defined]
        return hint

    @property
    def sampled(self) -> dict[int, int]:
        """Hashes of rows that were looked at, of a source that has looked."""
        known: dict[int, int] = self.whole.sampled  # type: ignore[attr-defined]
        here = {row: k for k, row in enumerate(self.rows.tolist())}
        return {here[row]: value for row, value in known.items() if row in here}

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Decode one image; raises `ImageError` or OSError."""
        return self.whole.load(int(self.rows[row]), spec)

    def examine(self, row: int, spec: DecodeSpec) -> Examined:
        """Decode one image, with a hash and, where it gives them, its label."""
        return self.whole.examine(int(self.rows[row]), spec)

    def sizes(self) -> np.ndarray:
        """Return one int64 per row that changes when the image is replaced."""
        return self.whole.sizes()[self.rows]

    def mtimes(self) -> np.ndarray | None:
        """Return the times of last change, where they are known."""
        times = self.whole.mtimes()
        return None if times is None else times[self.rows]

    def look(self, spec: DecodeSpec, whole: bool, say: Callable[[str], None] | None = None) -> None:
        """Find out what a foreign source holds."""
        before = list(self.whole.notes)
        self.whole.look(spec, whole, say)
        self.notes += self.whole.notes[len(before) :]
        self._take()

    def take_labels(self, values: dict[int, Any]) -> None:
        """Make labels of those that `examine` gave, by row."""
        before = list(self.whole.notes)
        self.whole.take_labels({int(self.rows[row]): value for row, value in values.items()})
        self.notes += self.whole.notes[len(before) :]
        self._take()

    def place(self, row: int) -> str:
        """Return words for a row, for messages."""
        return self.whole.place(int(self.rows[row]))

    def where(self) -> str | None:
        """Return what tells the files from others of the same names."""
        return self.whole.where()

    def column(self, name: str) -> list[Any]:
        """Return a column of the data beside its images and labels."""
        values = self.whole.column(name)
        return [values[row] for row in self.rows.tolist()]

    def picture_size(self, row: int) -> tuple[int, int] | None:
        """Return (width, height) of the stored picture of a row, None where that is not known."""
        return self.whole.picture_size(int(self.rows[row]))

    def _take(self) -> None:
        self.labels = None if self.whole.labels is None else self.whole.labels[self.rows]
        self.class_names = self.whole.class_names
