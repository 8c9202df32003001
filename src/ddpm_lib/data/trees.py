"""Where picture files lie: below a folder, or in archives that are read in place."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.folder_walk import Walked, walk
from ddpm_lib.data.metadata import Beside, TableFile, tables_in
from ddpm_lib.data.source import file_hash


class Tree(ABC):
    """Files by their names relative to a root, with "/" between folders.

    Attributes:
        root: What to call the place; for an archive its path, followed by the folder in it.
        notes: Lines on it.
    """

    root: Path
    notes: list[str]

    @abstractmethod
    def where(self) -> str:
        """Return where the files lie, the same by whichever way that is written."""

    @abstractmethod
    def walk(self, extensions: frozenset[bytes], left: Counter[str]) -> Walked:
        """Find the pictures, and count other files; see `folder_walk.walk`."""

    @abstractmethod
    def open(self, name: bytes) -> IO[bytes]:
        """Open a file.

        Raises:
            ImageError: If it is no regular file, or damaged in its archive.
            OSError: If it cannot be read.
        """

    @abstractmethod
    def content(self, name: bytes) -> int:
        """Hash a file's bytes to 63 bits."""

    @abstractmethod
    def tables(self) -> Sequence[TableFile]:
        """Return the tables directly in the root."""

    def chosen(self, names: Sequence[bytes], kind: str | None) -> Sequence[bytes]:
        """Return which of the pictures are meant; `kind` is the option image_column."""
        return names

    def beside(self, names: Sequence[bytes]) -> Beside | None:
        """Return what lies beside each picture under its own name, as a table; None for nothing."""
        return None


class FolderTree(Tree):
    """Files below a folder.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: If it is not there.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"The folder {str(root)!r} does not exist.")
        self.root, self._base = root, os.fsencode(root.absolute())
        self.notes = []

    def walk(self, extensions: frozenset[bytes], left: Counter[str]) -> Walked:
        """Find the pictures below the folder."""
        return walk(os.fsencode(self.root), extensions, left)

    def where(self) -> str:
        """Return the folder, also after the working directory has changed."""
        return os.path.realpath(os.fsdecode(self._base))

    def path(self, name: bytes) -> bytes:
        """Return the path of a file."""
        return os.path.join(self._base, name)

    def open(self, name: bytes) -> IO[bytes]:
        """Open a file; a named pipe put in its place is refused."""
        file: IO[bytes] = open(  # noqa: SIM115
            self.path(name), "rb", opener=_open_without_waiting
        )
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise ImageError("not a regular file")
        return file

    def content(self, name: bytes) -> int:
        """Hash a file (a second reading comes from the system's memory)."""
        return file_hash(self.path(name))

    def tables(self) -> Sequence[TableFile]:
        """Return the tables in the folder."""
        return tables_in(self.root)


def _open_without_waiting(path: Any, flags: int) -> int:
    """Open so that a named pipe put in the place of a file cannot block for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
