"""Where images come from: the interface of all sources, and the errors of single images."""

from __future__ import annotations

import errno
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_lib.core import spelling
from ddpm_lib.data.decode import Decoded
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.names import Names

_SHOWN = 20
_TRANSIENT = (
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR}
    if hasattr(errno, "ESTALE")
    else set()
)


class BadImagesError(ValueError):
    """Images that cannot be used, all of them at once; `bad` holds (name, reason) pairs.

    Args:
        bad: Names and reasons.
        total: Number of images looked at, for the message.
        hint: What to do about it.
    """

    def __init__(self, bad: Sequence[tuple[str, str]], total: int, hint: str | None = None) -> None:
        self.bad = list(bad)
        self.total = total
        self.hint = hint
        lines = [f"  {name}: {reason}" for name, reason in self.bad[:_SHOWN]]
        if len(self.bad) > _SHOWN:
            lines.append(f"  … and {len(self.bad) - _SHOWN:,} more")
        skip = spelling.option("on_bad_image", "skip")
        hint = hint or f"Repair or remove them, or leave them out with {skip}."
        super().__init__(
            f"{len(self.bad):,} of {total:,} images cannot be used:\n"
            + "\n".join(lines)
            + f"\n{hint}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.bad, self.total, self.hint)


class Source(ABC):
    """Where images come from: `load(row, spec)` by row number, names, and labels where there are
    any.
    """

    names: Names
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    notes: list[str]
    foreign = False
    """Whether reading runs code of the user's, which may open files when it is first used and draw
    random numbers.
    """
    here = False
    """Whether everything is read in this process, so that no other may read as well."""
    random = False
    """Whether one row is another image each time it is read."""
    listed_groups: np.ndarray | None = None
    """Numbers of groups that a list of images keeps on one side of a split, int64 (n,)."""
    gives_labels = False
    """Whether `examine` gives the labels, for `take_labels`."""

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Decode one image; raises `ImageError` or OSError."""

    @abstractmethod
    def sizes(self) -> np.ndarray:
        """Return one int64 per row that changes when the image is replaced: the length of its
        file.
        """

    def mtimes(self) -> np.ndarray | None:
        """Return the times of last change, int64, where that is known."""
        return None

    def where(self) -> str | None:
        """Return where the files lie, which tells them from others of the same names, sizes and
        times; None where there are none.
        """
        return None

    def examine(self, row: int, spec: DecodeSpec) -> Examined:
        """Decode one image as `load` does, with a hash of what it was made of, and its label if the
        source knows it now.
        """
        decoded = self.load(row, spec)
        return Examined(decoded, content_hash(decoded.pixels))

    def look(self, spec: DecodeSpec, whole: bool, say: Callable[[str], None] | None = None) -> None:
        """Find out what a foreign source holds, before anything is loaded."""
        raise NotImplementedError

    def take_labels(self, values: dict[int, Any]) -> None:
        """Make labels of those that `examine` gave, by row."""
        raise NotImplementedError

    def place(self, row: int) -> str:
        """Return words for a row, for messages."""
        return repr(self.names[row])

    def column(self, name: str) -> Sequence[Any]:
        """Return a column of the data beside its images and labels, one value per row.

        Raises:
            ValueError: If there is none of that name, naming those that there are.
        """
        raise ValueError(
            f"These data have no columns to take {name!r} from. Name a file (NAME=FILE:COLUMN), or"
            " in Python hand the values over: open_dataset(…).with_conditions({name: values})."
        )

    def picture_size(self, row: int) -> tuple[int, int] | None:
        """Return (width, height) of the stored picture of a row, None where that is not known."""
        return None


class Examined(NamedTuple):
    """A decoded image, a hash of what it was made of, and its label."""

    decoded: Decoded
    content: int
    label: Any = None


def content_hash(data: np.ndarray | bytes) -> int:
    """Hash an array's values, or bytes, to 63 bits."""
    raw = data.tobytes() if isinstance(data, np.ndarray) else data
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little") >> 1


def file_hash(path: str | bytes) -> int:
    """Hash a file's bytes to 63 bits."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).digest()
    return int.from_bytes(digest, "little") >> 1


def reason(error: Exception) -> str:
    """Word an `ImageError` or OSError for a list of bad files."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return (
        (error.strerror if isinstance(error, OSError) else None)
        or str(error)
        or type(error).__name__
    )


def load_patiently(
    load: Callable[[int, DecodeSpec], Any], row: int, spec: DecodeSpec, pause: float = 0.2
) -> Any:
    """Call `load` for one image; retry three times, with growing pauses, after errors of the kind
    network drives have.
    """
    for attempt in range(3):
        try:
            return load(row, spec)
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
            time.sleep(pause * 4**attempt)
    return load(row, spec)
