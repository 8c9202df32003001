"""Archives as a place of files: one, or several shards of one set; each process opens its own."""

from __future__ import annotations

import io
import os
import posixpath
import threading
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ddpm_lib.data.archives.members import Member, list_members, read_member
from ddpm_lib.data.archives.webdataset_samples import beside_of, choose_kind, is_label, key_of
from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.folder_walk import Entry, Walked, is_left_out
from ddpm_lib.data.metadata import Beside, TableFile, may_be_table
from ddpm_lib.data.names import PackedNames, show
from ddpm_lib.data.run_folders import is_run_directory
from ddpm_lib.data.source import content_hash
from ddpm_lib.data.suffixes import PICTURES, UNSUPPORTED
from ddpm_lib.data.trees import Tree

_OPEN = 32
_DATA = PICTURES | {b".npy", b".npz", b".nii", b".gz"}
Found = tuple[bytes, int, Member]
"""A name, the number of the archive that has it, and where in it."""


@dataclass(frozen=True)
class _State:
    """What a file was when its members were listed: a changed archive must not be read by old
    places.
    """

    size: int
    mtime: int

    @classmethod
    def of(cls, info: os.stat_result) -> _State:
        return cls(info.st_size, info.st_mtime_ns)


class ArchiveTree(Tree):
    """Files in .zip or .tar archives, read in place.

    The members are listed once and held in arrays. Reading opens the archive anew in each process,
    and asks it for the bytes at a place, so that no process moves another one's place in it.

    Args:
        paths: The archives, shards of one set.
        inside: The folder in the archive that is meant; "": all of it. If all pictures lie in one
            folder with others in it, that one.
        split: The sub-folder of a split, None for all.

    Raises:
        ValueError: If an archive is damaged, compressed as a whole or encrypted, naming it.
        FileNotFoundError: If the folder is not in it.
    """

    def __init__(self, paths: Sequence[Path], inside: str = "", split: str | None = None) -> None:
        self.paths, self._files_of = list(paths), [path.absolute() for path in paths]
        self.notes: list[str] = []
        self._states = [_State.of(path.stat()) for path in self.paths]
        found: list[Found] = []
        for shard, path in enumerate(self.paths):
            members, notes = list_members(path)
            self.notes += notes
            found += [(member.name, shard, member) for member in members]
        if len(self.paths) > 1:
            self.notes.append(f"{len(self.paths):,} archives are read as one set")
            found = self._distinct(found)
        first = self.paths[0] if len(self.paths) == 1 else self.paths[0].parent
        found, prefix = _entered(found, os.fsencode(inside.strip("/")), first)
        if split is not None and os.path.basename(prefix) != os.fsencode(split):
            found, deeper = _entered(found, os.fsencode(split), first / os.fsdecode(prefix))
            prefix = b"/".join(part for part in (prefix, deeper) if part)
        self.root = first / os.fsdecode(prefix) if prefix else first
        found.sort(key=lambda entry: entry[0])
        self._keep(found)
        self._files: OrderedDict[int, int] = OrderedDict()
        self._owner, self._lock = os.getpid(), threading.Lock()

    def _distinct(self, found: list[Found]) -> list[Found]:
        """Put the shard's name in front of names where several shards have the same."""
        if len({name for name, _, _ in found}) == len(found):
            return found
        self.notes.append("files of several archives have the same names: those are put in front")
        tops = [os.fsencode(path.stem) for path in self.paths]
        if len(set(tops)) < len(tops):
            tops = [os.fsencode(path.name) for path in self.paths]
        return [(tops[shard] + b"/" + name, shard, member) for name, shard, member in found]

    def _keep(self, found: list[Found]) -> None:
        self._names = PackedNames(name for name, _, _ in found)
        self._shards = np.array([shard for _, shard, _ in found], dtype=np.int32)
        columns = [(m.offset, m.packed, m.size, m.method, m.checksum) for _, _, m in found]
        self._places = np.array(columns, dtype=np.int64).reshape(len(found), 5)
        self._problems = {k: m.problem for k, (_, _, m) in enumerate(found) if m.problem}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": None, "_owner": 0, "_lock": None}

    def where(self) -> str:
        """Return the archives, and the folder in them."""
        inside = os.path.relpath(self.root, self.paths[0])
        return "\n".join([*(os.path.realpath(path) for path in self.paths), inside])

    def walk(self, extensions: frozenset[bytes], left: Counter[str]) -> Walked:
        """Find the pictures, and count other files, leaving out what systems put into archives."""
        entries: list[Entry] = []
        others: Counter[bytes] = Counter()
        foreign: Counter[bytes] = Counter()
        examples: dict[bytes, bytes] = {}
        runs = self._runs()
        counted: set[bytes] = set()
        for k in range(len(self._names)):
            name = self._names.raw(k)
            junk = is_left_out(name)
            if junk is not None:
                folder = name[: name.find(junk) + len(junk)]
                if junk and folder not in counted:
                    counted.add(folder)
                    left[show(junk)] += 1
                continue
            if any(name.startswith(run + b"/" if run else run) for run in runs):
                continue
            extension = os.path.splitext(name)[1].lower()
            if extension not in extensions:
                extension = extension or b"(no extension)"
                examples.setdefault(extension, name)
                (foreign if extension in UNSUPPORTED else others)[extension] += 1
                continue
            mtime = self._states[self._shards[k]].mtime
            entries.append((name, int(self._places[k, 2]), mtime, self._problems.get(k)))
        return Walked(entries, others, foreign, examples, runs)

    def _runs(self) -> list[bytes]:
        """Return the folders that are run directories, whose pictures are samples."""
        inside: dict[bytes, set[bytes]] = {}
        for k in range(len(self._names)):
            parts = self._names.raw(k).split(b"/")
            for depth in range(len(parts)):
                inside.setdefault(b"/".join(parts[:depth]), set()).add(parts[depth])
        return sorted(folder for folder, names in inside.items() if is_run_directory(names))

    def open(self, name: bytes) -> IO[bytes]:
        """Unpack a file into memory, and return it open."""
        return io.BytesIO(self.read(name))

    def content(self, name: bytes) -> int:
        """Hash what a file holds: the same as of the file unpacked."""
        return content_hash(self.read(name))

    def read(self, name: bytes) -> bytes:
        """Return what a file holds.

        Raises:
            ImageError: If it is not there, encrypted or damaged, or the archive has changed.
            OSError: If the archive cannot be read.
        """
        k = bisect_left(range(len(self._names)), name, key=self._names.raw)
        if k == len(self._names) or self._names.raw(k) != name:
            raise ImageError("not in the archive")
        if k in self._problems:
            raise ImageError(self._problems[k])
        member = Member(name, *self._places[k].tolist())
        self._after_fork()
        with self._lock:
            return read_member(self._file(int(self._shards[k])), member)

    def _after_fork(self) -> None:
        """Let go of what another process opened; its lock may have been held when it forked."""
        if self._owner != os.getpid():
            self._owner, self._lock = os.getpid(), threading.Lock()
            self._files = OrderedDict()

    def _file(self, shard: int) -> int:
        """Return the descriptor of an archive; those used longest ago are closed."""
        if shard not in self._files:
            opened = os.open(self._files_of[shard], os.O_RDONLY | getattr(os, "O_BINARY", 0))
            if _State.of(os.fstat(opened)) != self._states[shard]:
                os.close(opened)
                raise ImageError(
                    f"{self.paths[shard].name} has changed since it was opened: start again"
                )
            self._files[shard] = opened
            if len(self._files) > _OPEN:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return self._files[shard]

    def __del__(self) -> None:
        if getattr(self, "_owner", 0) == os.getpid() and self._files:
            for opened in self._files.values():
                os.close(opened)

    def tables(self) -> Sequence[TableFile]:
        """Return the tables at the top."""
        return [
            _Table(self, name)
            for k, name in enumerate(map(self._names.raw, range(len(self._names))))
            if b"/" not in name and may_be_table(os.fsdecode(name), int(self._places[k, 2]))
        ]

    def chosen(self, names: Sequence[bytes], kind: str | None) -> Sequence[bytes]:
        """Return which pictures are meant where samples hold several, by what they are of it."""
        keys = {key_of(name)[0] for name in names}
        if not any(self._label_files(keys)):
            return names
        wanted = choose_kind(names, kind)
        return [name for name in names if wanted in (None, os.fsdecode(key_of(name)[1]))]

    def beside(self, names: Sequence[bytes]) -> Beside | None:
        """Return the labels of WebDataset: files beside a picture with its key as their name."""
        there: dict[bytes, dict[str, bytes]] = {key_of(name)[0]: {} for name in names}
        for name in self._label_files(there):
            key, ending = key_of(name)
            there[key][os.fsdecode(ending)] = name
        return beside_of(names, there, self.read)

    def _label_files(self, keys: Container[bytes]) -> Iterator[bytes]:
        """Yield the files that may hold labels of the samples of these keys."""
        for k in range(len(self._names)):
            key, ending = key_of(self._names.raw(k))
            if is_label(ending) and key in keys:
                yield self._names.raw(k)


@dataclass(frozen=True)
class _Table:
    """A table in an archive."""

    tree: ArchiveTree
    inside: bytes

    @property
    def name(self) -> str:
        return os.fsdecode(self.inside)

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.name)[1]

    def read_bytes(self) -> bytes:
        return self.tree.read(self.inside)

    def __str__(self) -> str:
        return str(self.tree.root / self.name)


def _entered(found: list[Found], inside: bytes, where: Path) -> tuple[list[Found], bytes]:
    """Return what lies in a folder, or in the one folder that holds all, and which it is.

    Raises:
        FileNotFoundError: If there is no such folder, saying which there are.
    """
    folder = inside or _only_folder(name for name, _, _ in found)
    below = [
        (name[len(folder) + 1 :], shard, member)
        for name, shard, member in found
        if not folder or name.startswith(folder + b"/")
    ]
    if not folder:
        return found, b""
    if not below:
        tops = {name.split(b"/")[0] for name, _, _ in found if b"/" in name}
        shown = ", ".join(sorted(map(show, tops))[:12])
        raise FileNotFoundError(
            f"{str(where)!r} holds no folder {show(inside)!r}. There are: {shown or 'none'}."
        )
    return below, folder


def _only_folder(names: Iterable[bytes]) -> bytes:
    """Return the folder that all pictures and tables lie in, if there are folders in it; b"" for
    none.
    """
    data = [name for name in names if is_left_out(name) is None and _is_data(name)]
    folders = {posixpath.dirname(name) for name in data}
    shared = posixpath.commonpath(folders) if folders else b""
    alone = folders == {shared} and not any(map(_is_table, data))  # a class, perhaps
    return posixpath.dirname(shared) if alone else shared


def _is_data(name: bytes) -> bool:
    return os.path.splitext(name)[1].lower() in _DATA or _is_table(name)


def _is_table(name: bytes) -> bool:
    return may_be_table(os.path.basename(os.fsdecode(name)), 0)
