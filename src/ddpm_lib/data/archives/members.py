"""What .zip and .tar files hold, and where in the file: listed once, then read from any process."""

from __future__ import annotations

import bz2
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_lib.data.decode import ImageError

PLAIN, STORED, DEFLATED, BZIP2 = 255, 0, 8, 12
"""How bytes are packed: as they lie in a .tar, or by the number that a .zip gives the method."""
_OTHERS = {1: "shrinking", 6: "imploding", 9: "Deflate64", 14: "LZMA", 93: "Zstandard", 95: "XZ"}
_LARGEST = 1 << 30
_LOCAL_HEADER = 30
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
        name: Its name, with "/" between folders.
        offset: Where it begins: its data in a .tar, its local header in a .zip.
        packed: Bytes that it takes there.
        size: Bytes when unpacked.
        method: How it is packed.
        checksum: CRC-32 of what is unpacked; 0 in a .tar, which has none.
        problem: Why it cannot be read, or None.
    """

    name: bytes
    offset: int
    packed: int
    size: int
    method: int
    checksum: int
    problem: str | None = None


def list_members(path: Path) -> tuple[list[Member], list[str]]:
    """List the files in an archive, the last one of each name, and notes on it.

    Raises:
        ValueError: If it is damaged, no archive, or all of it is encrypted; the message names it.
    """
    notes: list[str] = []
    found = list(_of_zip(path) if path.suffix.lower() == ".zip" else _of_tar(path, notes))
    last = {member.name: member for member in found}
    if len(last) < len(found):
        notes.append(
            f"{path.name} holds {len(found) - len(last):,} files twice: the later ones are taken,"
            " as when it is unpacked"
        )
    return list(last.values()), notes


def _of_zip(path: Path) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, struct.error) as error:
        raise ValueError(
            f"{str(path)!r} is damaged or no .zip archive ({_words(error)}). Was it copied whole?"
            " Test it with: python -m zipfile -t FILE."
        ) from None
    locked = sum(info.flag_bits & 1 for info in infos)
    if infos and locked == len(infos):
        raise ValueError(
            f"{str(path)!r} is encrypted. Unpack it with its password (7z x), and pass the folder."
        )
    for info in infos:
        yield Member(
            _normal(_name_in_zip(info)),
            info.header_offset,
            info.compress_size,
            info.file_size,
            info.compress_type,
            info.CRC,
            _problem_in_zip(info),
        )


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """Return a name; some programs write UTF-8 without saying so, or a backslash for a "/"."""
    name = info.filename
    if not info.flag_bits & 0x800:
        try:
            name = info.orig_filename.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.filename  # it is cp437
    return name if "/" in name else name.replace("\\", "/")


def _problem_in_zip(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 1:
        return "encrypted: unpack the archive with its password, and pass the folder"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a link, not a file"
    if info.compress_type not in (STORED, DEFLATED, BZIP2):
        how = _OTHERS.get(info.compress_type, f"method {info.compress_type}")
        return f"packed by {how}, which is not read in place: unpack the archive"
    return _too_large(info.file_size)


def _too_large(size: int) -> str | None:
    return f"{size / 1e9:,.3g} GB, too large for a picture" if size > _LARGEST else None


def _of_tar(path: Path, notes: list[str]) -> Iterator[Member]:
    known: dict[bytes, Member] = {}
    archive: Any
    try:
        with tarfile.open(path, "r:") as archive:
            count = 0
            while (info := archive.next()) is not None:
                count += 1
                archive.members = []  # it would keep all of them
                member = _of_info(info, known)
                if member is not None:
                    known[member.name] = member
                    yield member
            end = archive.offset
        rest = _tail(path, end)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(_bad_tar(path, _words(error))) from None
    if rest.strip(b"\0"):
        raise ValueError(_bad_tar(path, f"what follows {count:,} entries is none"))
    if not rest:
        notes.append(f"{path.name} has no end mark: was it copied whole?")


def _of_info(info: tarfile.TarInfo, known: dict[bytes, Member]) -> Member | None:
    name = _normal(info.name)
    if info.islnk():  # a second name of a file before it
        first = known.get(_normal(info.linkname))
        if first is not None:
            return Member(name, first.offset, first.packed, first.size, PLAIN, 0, first.problem)
        return Member(name, 0, 0, 0, PLAIN, 0, "a link to a file that is not in the archive")
    if info.issym():
        target = known.get(_normal(posixpath.join(posixpath.dirname(info.name), info.linkname)))
        if target is not None:
            return Member(name, target.offset, target.packed, target.size, PLAIN, 0, target.problem)
        return Member(name, 0, 0, 0, PLAIN, 0, "a link to a file that does not come before it")
    if not info.isfile():
        return None
    problem = "stored with holes (sparse): unpack the archive" if info.issparse() else None
    return Member(
        name,
        info.offset_data,
        info.size,
        info.size,
        PLAIN,
        0,
        problem or _too_large(info.size),
    )


def _bad_tar(path: Path, why: str) -> str:
    with open(path, "rb") as file:
        head = file.read(6)
    for mark, kind, tool in (
        (b"\x1f\x8b", "gzip", "gunzip"),
        (b"BZh", "bzip2", "bunzip2"),
        (b"\xfd7zXZ", "xz", "unxz"),
        (b"\x28\xb5\x2f\xfd", "Zstandard", "unzstd"),
    ):
        if head.startswith(mark):
            return (
                f"{str(path)!r} is compressed ({kind}), so that nothing in it can be read without"
                f" all before it. Decompress it ({tool}): a plain .tar is read in place."
            )
    return f"{str(path)!r} is damaged or no .tar archive ({why}). Was it copied whole?"


def _tail(path: Path, start: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(_BLOCK)


def _normal(name: str) -> bytes:
    """Return a name without what leads out of the archive."""
    return os.fsencode(posixpath.normpath("/" + name).lstrip("/"))


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_member(file: int, member: Member) -> bytes:
    """Read and unpack a file of an archive.

    Args:
        file: The descriptor of the archive; its place in it is neither used nor moved.
        member: The file.

    Raises:
        ImageError: If it is damaged.
        OSError: If the archive cannot be read.
    """
    if member.method == PLAIN:
        return _exactly(file, member.packed, member.offset)
    header = _exactly(file, _LOCAL_HEADER, member.offset)
    if not header.startswith(b"PK\x03\x04"):
        raise ImageError("damaged in the archive (no header where it should begin)")
    name, extra = struct.unpack("<HH", header[26:30])
    raw = _exactly(file, member.packed, member.offset + _LOCAL_HEADER + name + extra)
    try:
        if member.method == DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, member.size + 1)
        elif member.method == BZIP2:
            data = bz2.BZ2Decompressor().decompress(raw, member.size + 1)
        else:
            data = raw
    except (zlib.error, OSError, ValueError):
        raise ImageError("damaged in the archive (cannot be unpacked)") from None
    if len(data) != member.size or zlib.crc32(data) != member.checksum:
        raise ImageError("damaged in the archive (its checksum differs)")
    return data


def _exactly(file: int, count: int, offset: int) -> bytes:
    parts = []
    while count:
        part = _at(file, count, offset)
        if not part:
            raise ImageError("cut off: the archive ends before it does")
        parts.append(part)
        count, offset = count - len(part), offset + len(part)
    return b"".join(parts)


def _at(file: int, count: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file, count, offset)
    os.lseek(file, offset, os.SEEK_SET)  # the descriptor is this process's own, under a lock
    return os.read(file, count)
