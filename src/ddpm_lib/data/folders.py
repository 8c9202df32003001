"""Folders of pictures: what counts as one, in which order, and what its label is."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ddpm_lib.data.decode import Decoded, ImageError, count_frames, decode
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.folder_walk import Entry, Walked
from ddpm_lib.data.kinds import way
from ddpm_lib.data.labels import make_labels
from ddpm_lib.data.layouts import are_thumbnails, judge
from ddpm_lib.data.metadata import (
    KINDS,
    Beside,
    column_beside,
    find_table,
    open_table,
    some,
    tables_in,
)
from ddpm_lib.data.names import PackedNames, show
from ddpm_lib.data.run_folders import is_a_run, left_runs
from ddpm_lib.data.source import Examined, Source
from ddpm_lib.data.stored_sizes import stored_size
from ddpm_lib.data.suffixes import PICTURES
from ddpm_lib.data.trees import FolderTree, Tree


class FolderSource(Source):
    """Picture files below one folder, in the order of their names' bytes.

    Args:
        root: The folder, or another place of files, such as an archive.
        labels: "auto": classes are the first level of sub-folders if there are two or more and hold
            every picture; "folder": the same, or an error; "prefix": the file name up to the first
            "_"; "none".
        frames: "first": one image per file; "all": every page or frame of a file is one, named
            "stack.tif#0003".
        table: Where labels are asked for in a table beside the pictures; by default one is looked
            for with "auto".
        only: The files to take, relative names; by default all.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no picture, saying what was found.
        ValueError: If the layout does not fit `labels`, or looks like something that must not be
            trained on as a whole.
    """

    extensions = PICTURES

    def __init__(
        self,
        root: Path | Tree,
        labels: str = "auto",
        frames: str = "first",
        table: Table | None = None,
        only: frozenset[bytes] | None = None,
    ) -> None:
        self.tree = FolderTree(root) if isinstance(root, Path) else root
        self.root = self.tree.root
        self.notes = list(self.tree.notes)
        self.unused: list[str] = []
        left: Counter[str] = Counter()
        walked = self.tree.walk(self.extensions, left)
        found, others, foreign = walked.found, walked.others, walked.foreign
        if only is not None:
            found = [entry for entry in found if entry[0] in only]
        kept = self.tree.chosen([entry[0] for entry in found], (table or Table()).image_column)
        if len(kept) < len(found):
            there = frozenset(kept)
            found = [entry for entry in found if entry[0] in there]
        if not found:
            raise NoPicturesError(_nothing_found(self.tree, walked), others)
        if foreign:
            kinds = ", ".join(f"{n:,} {show(ext)}" for ext, n in foreign.most_common(3))
            self.notes.append(f"left out {kinds}: not supported, convert them to PNG or JPEG")
        found.sort()
        found = self._without_thumbnails(found)
        if walked.runs:
            self.notes.append(left_runs(walked.runs))
        packed = others[b".zip"] + others[b".tar"]
        if packed:
            self.notes.append(
                f"left out {packed:,} archive{'s' * (packed > 1)} beside the files: pass one to"
                " read what is in it"
            )
        if left:
            kinds = ", ".join(f"{n:,} × {name}" for name, n in left.most_common(3))
            self.notes.append(f"left out folders that systems make, not pictures of yours: {kinds}")
        if table is not None and table.file is not None:
            found = self._named(found, table.file, table.image_column)
        files = [name for name, _, _, _ in found]
        self._files, self._frames = PackedNames(files), np.zeros(len(found), dtype=np.int64)
        names, self._all = files, frames == "all"
        if self._all:
            before = len(found)
            found, self._frames = _each_frame(self.tree, found)
            if len(found) == before:
                self.notes.append('frames="all" changes nothing: every file has one frame')
            files = [name for name, _, _, _ in found]
            self._files = PackedNames(files)
            many = Counter(files)
            names = [
                name + b"#%04d" % frame if many[name] > 1 else name
                for name, frame in zip(files, self._frames.tolist())
            ]
        self.names = PackedNames(names)
        self._sizes = np.array([size for _, size, _, _ in found], dtype=np.int64)
        self._mtimes = np.array([mtime for _, _, mtime, _ in found], dtype=np.int64)
        self.problems = {k: problem for k, (_, _, _, problem) in enumerate(found) if problem}
        self._table = table or Table()
        self._label(labels, self._table)

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Decode one file; raises `ImageError` or OSError."""
        if row in self.problems:
            raise ImageError(self.problems[row])
        if not self._sizes[row]:
            raise ImageError("empty (zero bytes)")
        with self.open_file(row) as file:
            return decode(file, spec, int(self._frames[row]) if self._all else None)

    def examine(self, row: int, spec: DecodeSpec) -> Examined:
        """Decode one file, and hash its bytes (the second reading comes from the system's
        memory).
        """
        decoded = self.load(row, spec)
        return Examined(decoded, self.tree.content(self._files.raw(row)))

    def open_file(self, row: int) -> IO[bytes]:
        """Open the file of a row; raises `ImageError` or OSError."""
        return self.tree.open(self._files.raw(row))

    def paths(self) -> list[Path]:
        """Return the files, in order."""
        root = os.fsencode(self.root)
        return [
            Path(os.fsdecode(os.path.join(root, self._files.raw(row))))
            for row in range(len(self.names))
        ]

    def sizes(self) -> np.ndarray:
        """Return file sizes in bytes, int64 (n,)."""
        return self._sizes

    def where(self) -> str:
        """Return where the files lie."""
        return self.tree.where()

    def mtimes(self) -> np.ndarray:
        """Return times of last change in ns, int64 (n,)."""
        return self._mtimes

    def column(self, name: str) -> list[Any]:
        """Return a column of the table beside the pictures; None for those that it does not
        name.
        """
        raw = [self._files.raw(row) for row in range(len(self.names))]
        return column_beside(self._beside(raw, self._table), self.root, name)

    def picture_size(self, row: int) -> tuple[int, int] | None:
        """Return (width, height) of the stored picture, as it is shown."""
        try:
            with self.open_file(row) as file:
                return stored_size(file)
        except (ImageError, OSError):
            return None  # what is wrong with it is said where it is decoded

    def _label(self, how: str, table: Table) -> None:
        raw = [self._files.raw(row) for row in range(len(self.names))]
        tops = [name.split(b"/", 1)[0] if b"/" in name else b"" for name in raw]
        loose = tops.count(b"")
        classes = sorted(set(tops) - {b""})
        if table.file is None:  # a table that is the data says which pictures are meant
            self.notes += judge(self.root, raw, refuse=how == "auto")
        if how == "auto" and self._from_table(raw, table):
            return
        if how == "auto":
            if loose and classes:
                self.notes.append(
                    f"no labels: {loose:,} of {len(tops):,} images lie outside the {len(classes)}"
                    ' sub-folders (labels="folder" insists on classes)'
                )
            elif len(classes) == 1:
                self.notes.append("no labels: one class only")
            if loose or len(classes) < 2:
                return
        elif how == "none":
            return
        if how == "prefix":
            bases = [os.path.basename(name) for name in raw]
            wrong = [show(base) for base in bases if b"_" not in base[1:]]
            if wrong:
                raise ValueError(
                    f'labels="prefix" needs names like "cat_001.jpg"; {len(wrong):,} have no "_":'
                    f" {wrong[:5]}."
                )
            tops = [base.partition(b"_")[0] for base in bases]
            classes = sorted(set(tops))
        elif loose:
            first = self.names[tops.index(b"")]
            raise ValueError(
                f'labels="folder" needs every image in a class folder; {loose:,} lie directly in'
                f' {str(self.root)!r}, the first is {first!r}. Move them, or use labels="none".'
            )
        number = {name: k for k, name in enumerate(classes)}
        self.labels = np.array([number[top] for top in tops], dtype=np.int64)
        self.class_names = tuple(show(name) for name in classes)

    def _without_thumbnails(self, found: list[Entry]) -> list[Entry]:
        marks = are_thumbnails([name for name, _, _, _ in found])
        if any(marks):
            first = show(found[marks.index(True)][0])
            self.notes.append(
                f"left out {sum(marks):,} thumbnails of other pictures, such as {first}"
            )
        return [entry for entry, mark in zip(found, marks) if not mark]

    def _named(self, found: list[Entry], file: Path, image_column: str | None) -> list[Entry]:
        """Return the pictures that a table names, which is the data itself.

        Raises:
            ValueError: If it names none, or some that are not there.
        """
        table = open_table(file, [name for name, _, _, _ in found], image_column)
        if table is None:
            raise ValueError(
                f"No column of {str(file)!r} names pictures below {str(file.parent)!r}. Paths in it"
                " are relative to its own folder; image_column (--image-column) chooses the"
                " column."
            )
        if table.strangers:
            raise ValueError(
                f"{str(file)!r} names {len(table.strangers):,} pictures that are not below"
                f" {str(file.parent)!r}: {some(table.strangers)}. Remove those lines, or add the"
                " files."
            )
        kept = [entry for entry, row in zip(found, table.rows) if row >= 0]
        if len(kept) < len(found):
            self.notes.append(
                f"left out {len(found) - len(kept):,} pictures that {file.name} does not name"
            )
        return kept

    def _beside(self, raw: list[bytes], asked: Table) -> Beside | None:
        """Find the table that names the pictures."""
        if asked.file is not None:
            return open_table(asked.file, raw, asked.image_column)
        return self.tree.beside(raw) or find_table(self.tree.tables(), raw, asked.image_column)

    def _from_table(self, raw: list[bytes], asked: Table) -> bool:
        """Take the labels of a table beside the pictures; whether there are some, or none by a
        note.
        """
        found = self._beside(raw, asked)
        insist = asked.image_column is not None or asked.label_column is not None
        if found is None:
            if insist:
                name = "image_column" if asked.label_column is None else "label_column"
                raise ValueError(
                    f"{name} is for data with columns; the folder {str(self.root)!r} has no table"
                    f" that names its pictures ({KINDS})."
                    f" {self._table_above(raw, asked) or 'Leave it out'}; classes of folders come"
                    ' from sub-folders, or names with labels="prefix" (--labels prefix).'
                )
            return False
        label = found.label_column(asked.label_column)
        if label is None:
            self.unused.append(
                f"{found.name} names pictures, but has no column of a usual name for labels: there"
                f" are {', '.join(found.others) or 'no others'}; label_column (--label-column)"
                " chooses one"
            )
            self.notes.append(self.unused[-1])
            return False
        return self._take(raw, found, label, insist)

    def _table_above(self, raw: list[bytes], asked: Table) -> str | None:
        """Name a table beside the folder that names its pictures, as in train/ with train.csv
        beside it.
        """
        above = self.root.absolute().parent
        if not above.is_dir():  # in an archive
            return None
        inside = [os.fsencode(self.root.absolute().name) + b"/" + name for name in raw]
        try:
            table = find_table(tables_in(above), inside, asked.image_column)
        except (ValueError, OSError):
            return None  # what cannot be read is no way to propose
        if table is None:
            return None
        values = [str(value) for value in table.columns[table.files] if value is not None]
        here = f"{self.root.absolute().name}/"
        if any("/" in value and not value.removeprefix("./").startswith(here) for value in values):
            return None  # it names files of other folders, some of them with the same names
        return f"But {str(above / table.name)!r} does: pass it instead"

    def _take(self, raw: list[bytes], found: Beside, label: str, insist: bool) -> bool:
        without = [name for name, row in zip(raw, found.rows) if row < 0]
        if without:
            text = (
                f"{len(without):,} of {len(raw):,} pictures are not named in {found.name}:"
                f" {some(without)}"
            )
            if insist:
                raise ValueError(f"{text}. Add them there, or move them away.")
            self.unused.append(f"no labels of {found.name}: {text}")
            self.notes.append(self.unused[-1])
            return False
        twice = found.told_twice(label)
        if twice is not None:
            text = f"{found.name} has several lines for {twice[:80]}, with different {label!r}"
            if insist:
                raise ValueError(f"{text}. Leave one line per picture.")
            self.unused.append(f"no labels of {found.name}: {text}")
            self.notes.append(self.unused[-1])
            return False
        if found.strangers:
            self.notes.append(
                f"{found.name} names {len(found.strangers):,} files that are not there:"
                f" {some(found.strangers)}"
            )
        values = [found.columns[label][row] for row in found.rows]
        self.labels, self.class_names = make_labels(values, None, insist, self.notes)
        if self.labels is not None:
            self.notes.append(f"labels: column {label!r} of {found.name}")
        return True


@dataclass(frozen=True)
class Table:
    """What is asked for of the table beside pictures: a file of its own, and columns."""

    image_column: str | None = None
    label_column: str | None = None
    file: Path | None = None


def _each_frame(tree: Tree, found: list[Entry]) -> tuple[list[Entry], np.ndarray]:
    """Repeat each file for each of its frames, and number them."""
    entries: list[Entry] = []
    numbers: list[int] = []
    for entry in found:
        count = 1 if entry[3] else _frames_in(tree, entry[0])
        entries += [entry] * count
        numbers += range(count)
    return entries, np.array(numbers, dtype=np.int64)


def _frames_in(tree: Tree, name: bytes) -> int:
    try:
        with tree.open(name) as file:
            return count_frames(file)
    except (ImageError, OSError):
        return 1  # decoding says why


class NoPicturesError(FileNotFoundError):
    """A folder without pictures; `others` counts the files in it by extension."""

    def __init__(self, text: str, others: Counter[bytes]) -> None:
        super().__init__(text)
        self.others = others


def _nothing_found(tree: Tree, walked: Walked) -> str:
    root, place = tree.root, "folder" if isinstance(tree, FolderTree) else "archive"
    if walked.runs:
        apart = f"holds no pictures to train on; {left_runs(walked.runs)}"
        return is_a_run(root) if walked.runs == [b""] else f"The {place} {str(root)!r} {apart}."
    counts = walked.others + walked.foreign
    kinds = ", ".join(f"{n:,} × {show(ext)}" for ext, n in counts.most_common(5))
    if not kinds:
        return f"The {place} {str(root)!r} holds no files."
    text = f"The {place} {str(root)!r} holds no pictures; found {kinds}."
    for extension, _ in counts.most_common():
        how = way(root / os.fsdecode(walked.examples[extension]), "folder")
        if how is not None:
            return f"{text} {how}"
    return f"{text} Supported: {' '.join(sorted(show(e) for e in PICTURES))}."


def with_labels(source: FolderSource, insist: bool) -> FolderSource:
    """Return the source, if it has labels or needs none.

    Raises:
        ValueError: If a table beside the pictures has some that are not taken, saying why.
    """
    if insist and source.labels is None and source.unused:
        raise ValueError(f"Class labels are needed; {'; '.join(source.unused)}.")
    return source
