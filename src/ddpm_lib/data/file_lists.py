"""Lists of images: which of a set are used, one name per line, with groups that a split keeps
together.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lib.core.files import open_own, write_aside
from ddpm_lib.core.lost_paths import lost
from ddpm_lib.core.registry import nearest
from ddpm_lib.core.spelling import option
from ddpm_lib.core.text import printable, short
from ddpm_lib.data.names import Names, NumberedNames, show
from ddpm_lib.data.suffixes import PICTURES

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A list of images: the path of a text file, or the names themselves."""

_SHOWN = 3
_LARGEST = 1 << 30
_GROUP = re.compile(rb"\tgroup=([^\t]+)$")
_TOTAL = re.compile(rb"#\s*images in the set:\s*([\d,]+)")
_LOOKED_FOR = 20_000
"""Names that a missing one is compared with, to say which was meant."""


@dataclass(frozen=True)
class Entry:
    """A line of a list.

    Attributes:
        name: The image, bytes as written.
        line: Number of the line, from 1; of a list in Python, the place.
        group: Images of one group stay on one side of a split; None: it is on its own.
    """

    name: bytes
    line: int
    group: bytes | None = None


@dataclass(frozen=True)
class FileList:
    """A list of images.

    Attributes:
        where: What to call it in messages.
        entries: Its lines, comments left out.
        total: How many images the set had that it was made of, where it says so.
        folder: The folder that it lies in, None for one in Python.
    """

    where: str
    entries: tuple[Entry, ...]
    total: int | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Chosen:
    """The rows that a list names.

    Attributes:
        rows: int64 (n,), ascending: the order of a list does not matter.
        groups: int64 (n,), or None where the list has no groups.
    """

    rows: np.ndarray
    groups: np.ndarray | None


def read_list(files: Files) -> FileList:
    """Read a list of images.

    A line is the name of an image: the path below the folder of the data, or the number of the row
    where images have no names. After a tab, `group=NAME` may say which images belong together.
    Empty lines and lines that begin with # say nothing. A name that itself begins with # or ", or
    holds a tab or an end of line, is written as a string of JSON.

    Args:
        files: The path of the list, or names in Python.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no list: a folder, a picture, bytes that are no text, an empty one.
    """
    if isinstance(files, (str, os.PathLike)):
        path = Path(os.fspath(files)).expanduser()
        where = repr(printable(os.fspath(files)))
        found = _parse(_bytes_of(path, files, where), where, path.absolute().parent)
    else:
        listed = isinstance(files, Iterable) and not isinstance(files, (Mapping, bytes))
        if not listed or not all(isinstance(item, (str, os.PathLike)) for item in files):
            raise TypeError(
                "files must be the path of a text file with a name per line, or a list of names;"
                f" got {short(files)}."
            )
        names = (os.fsencode(item) for item in files)
        entries = tuple(Entry(name, k) for k, name in enumerate(names))
        found = FileList("files", entries)
    if not found.entries:
        raise ValueError(
            f"{found.where} names no image: a line each is wanted, relative to the folder of the"
            " data. `ddpm audit DATA --write-list keep.txt` writes such a list."
        )
    return found


def _bytes_of(path: Path, files: Any, where: str) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"{option('files')}: {lost(files)}")
    if path.is_dir():
        raise ValueError(
            f"{option('files')} is a text file with a name per line; {where} is a folder. Pass a"
            " folder of pictures as the data."
        )
    if os.fsencode(path.suffix.lower()) in PICTURES:
        raise ValueError(
            f"{option('files')} is a text file with a name per line; {where} is a picture."
        )
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{where} is too large to be a list of names.")
    raw = path.read_bytes()
    if b"\0" in raw[:4096]:
        raise ValueError(
            f"{where} is no text. {option('files')} is a text file with a name a line."
        )
    return raw.removeprefix(b"\xef\xbb\xbf")


def _parse(raw: bytes, where: str, folder: Path) -> FileList:
    entries: list[Entry] = []
    total = None
    for number, text in enumerate(raw.split(b"\n"), 1):
        text = text.removesuffix(b"\r")
        said = _TOTAL.match(text)
        total = int(said[1].replace(b",", b"")) if said else total
        if not text.strip() or text.startswith(b"#"):
            continue
        group = _GROUP.search(text)
        text = text[: group.start()] if group else text
        if text.startswith(b'"'):
            text = _unquoted(text, where, number)
        else:
            text = text.strip(b" ")
        entries.append(Entry(text, number, group[1] if group else None))
    return FileList(where, tuple(entries), total, folder)


def _unquoted(text: bytes, where: str, number: int) -> bytes:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, str):
        return os.fsencode(value)
    raise ValueError(
        f"Line {number} of {where} begins with a quotation mark but is no string of JSON:"
        f" {show(text[:80])}. Write the name without quotation marks."
    )


def choose_rows(found: FileList, names: Names, roots: Sequence[Path], data: str) -> Chosen:
    """Find the images that a list names.

    Args:
        found: The list.
        names: Of all images.
        roots: The folder that names start from; empty where they are no files.
        data: What to call the data in messages.

    Raises:
        ValueError: If images are named twice or are not there, saying which and what to do.
    """
    numbered = are_numbers(names)
    if numbered and found.total is not None and found.total != len(names):
        raise ValueError(
            f"{found.where} was made of {found.total:,} images, and {data} has {len(names):,}."
            " Images are named by their numbers there, so that the list would name others. Write it"
            " anew: `ddpm audit DATA --write-list keep.txt`."
        )
    known: dict[bytes, int] = {}
    for number in range(len(names)):
        known.setdefault(names.raw(number), number)
    taken: dict[int, Entry] = {}
    lost_entries: list[Entry] = []
    starts = _starts(roots, found.folder)
    for entry in found.entries:
        row: int | None = _row_of(entry.name, known, starts, len(names) if numbered else 0)
        if row is None:
            lost_entries.append(entry)
        elif row in taken:
            raise ValueError(
                f"{found.where} names {names[row]} twice, {_place(found, taken[row])} and"
                f" {_place(found, entry)}. Remove one of them."
            )
        else:
            taken[row] = entry
    if lost_entries:
        raise ValueError(_not_there(found, lost_entries, names, data))
    rows = np.array(sorted(taken), dtype=np.int64)
    return Chosen(rows, _groups([taken[row].group for row in rows.tolist()]))


def are_numbers(names: Names) -> bool:
    """Say whether images have no names but the numbers of their rows."""
    n = len(names)
    return all(names.raw(row) == NumberedNames(n).raw(row) for row in {0, n // 2, n - 1} if n)


def _starts(roots: Sequence[Path], folder: Path | None) -> list[tuple[bytes, bytes]]:
    """Return pairs (folder that a relative name may start from, folder of the data)."""
    bases = [Path.cwd(), *([folder] if folder is not None else [])]
    return [(os.fsencode(base), os.fsencode(root.absolute())) for root in roots for base in bases]


def _row_of(
    name: bytes, known: Mapping[bytes, int], starts: Sequence[tuple[bytes, bytes]], numbered: int
) -> int | None:
    """Return the row of a name: as it is, else as a path from here or from the list's folder."""
    row = known.get(name)
    if row is None:
        row = known.get(os.path.normpath(name).replace(b"\\", b"/"))
    if row is None and numbered and name.isdigit() and int(name) < numbered:
        return int(name)
    for base, root in starts if row is None else ():
        full = os.path.normpath(os.path.join(base, name))
        if full.startswith(root.rstrip(b"/") + b"/"):
            row = known.get(os.path.relpath(full, root))
        if row is not None:
            break
    return row


def _place(found: FileList, entry: Entry) -> str:
    return f"in line {entry.line}" if found.folder is not None else f"at place {entry.line}"


def _not_there(found: FileList, entries: Sequence[Entry], names: Names, data: str) -> str:
    """Word that images of a list are not in the data."""
    shown = "; ".join(
        f"{show(entry.name)[:100]} ({_place(found, entry)})" for entry in entries[:_SHOWN]
    ) + ("; …" if len(entries) > _SHOWN else "")
    if len(entries) == len(found.entries):
        return (
            f"None of the {len(entries):,} images that {found.where} names is in {data}: {shown}."
            f" Its own are named like {names[0]!r}. Was the list made of other data? `ddpm audit"
            " DATA --write-list keep.txt` writes one of these."
        )
    looked_at = [names[row] for row in range(min(len(names), _LOOKED_FOR))]
    wrong = show(entries[0].name)
    base = os.path.basename(wrong)
    hint = next((name for name in looked_at if os.path.basename(name) == base), None)
    hint = hint or nearest(wrong, looked_at)
    meant = f" Did you mean {hint!r}?" if hint else ""
    these = "This image is" if len(entries) == 1 else f"{len(entries):,} images are"
    return (
        f"{these} named in {found.where} and not in {data}: {shown}.{meant} Restore what is"
        " missing, or remove the lines; `ddpm audit DATA --write-list keep.txt` writes the list"
        " anew."
    )


def _groups(given: Sequence[bytes | None]) -> np.ndarray | None:
    """Number groups from 0 in the order of the rows; images without one are groups of their own."""
    if not any(group is not None for group in given):
        return None
    numbers: dict[bytes, int] = {}
    out = []
    count = 0
    for group in given:
        if group is not None and group in numbers:
            out.append(numbers[group])
            continue
        if group is not None:
            numbers[group] = count
        out.append(count)
        count += 1
    return np.array(out, dtype=np.int64)


def write_list(
    path: str | os.PathLike[str],
    names: Iterable[bytes],
    groups: Iterable[int | None],
    comments: Iterable[str] = (),
    left_out: Iterable[tuple[bytes, str]] = (),
    total: int | None = None,
) -> None:
    """Write a list of images that `read_list` reads; the same arguments make the same bytes.

    Args:
        path: The file.
        names: The images to use, in order.
        groups: A number per image, None for none.
        comments: Lines at the top.
        left_out: Images that are not used, with the reason: comments at the end.
        total: How many images the set has.
    """
    lines = [b"# " + _one_line(comment) for comment in comments]
    if total is not None:
        lines.append(f"# images in the set: {total}".encode())
    for name, group in zip(names, groups):
        text = _quoted(name)
        lines.append(text if group is None else text + f"\tgroup={group}".encode())
    lines += [b"# left out: " + _quoted(name) + b": " + _one_line(why) for name, why in left_out]

    def write(aside: Path) -> None:
        with open(open_own(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(b"\n".join(lines) + b"\n")

    write_aside(Path(path), write)


def _one_line(text: str) -> bytes:
    return " ".join(text.split()).encode("utf-8", "surrogateescape")


def _quoted(name: bytes) -> bytes:
    plain = not (set(name) & set(b"\t\n\r")) and name == name.strip(b" ")
    if plain and name[:1] not in (b"#", b'"', b"") and not name.isspace():
        return name
    return json.dumps(os.fsdecode(name)).encode("ascii")
