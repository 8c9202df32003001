"""What to say of a path that leads nowhere: what was probably meant, or what there is instead."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ddpm_lib.core.registry import nearest
from ddpm_lib.core.text import printable

_SHOWN = 6
_DRIVE = re.compile(r"([A-Za-z]):[\\/]")
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})|%\w+%")


def lost(written: str | os.PathLike[str]) -> str:
    """Word that a path does not exist: what it probably should be, else where it ends.

    Args:
        written: As the user wrote it.
    """
    text = os.fspath(written)
    path = Path(text).expanduser()
    said = f"{printable(text)!r} does not exist." if text else "The path is empty."
    like = meant(text)
    if like is not None:
        return f"{said} Did you mean {printable(like)!r}?"
    if not text:
        return f"{said} Is a variable of the shell unset?"
    if _DRIVE.match(text):
        return f"{said} It is a path of Windows; this system has none of its drives (WSL: /mnt/c)."
    if _VARIABLE.search(text):
        return f"{said} Variables in it are left to the shell, which quotes and files keep out."
    return f"{said} {_what_there_is(path)}"


def meant(written: str) -> str | None:
    """Return a path that exists and is probably meant by one that does not; None for no idea."""
    found = next((other for other in _otherwise(written) if os.path.exists(other)), None)
    if found is not None or not written:
        return found
    path = Path(written).expanduser()
    hint = nearest(path.name, _names(path.parent))
    return str(path.parent / hint) if hint else None


def _otherwise(written: str) -> Iterator[str]:
    """Yield other spellings: without quotes, with this system's slashes, variables replaced."""
    bare = written.strip().strip("'\"").strip()
    local = bare.removeprefix("file://") if bare.startswith("file:///") else bare
    slashes = local.replace("\\", "/")
    drive = _DRIVE.match(local)
    spellings = [
        local,
        os.path.expandvars(os.path.expanduser(local)),
        slashes,
        f"/mnt/{drive[1].lower()}/{slashes[3:]}" if drive else "",
    ]
    yield from (other for other in spellings if other and other != written)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.name[:1] != ".")
    except OSError:
        return []


def _what_there_is(path: Path) -> str:
    parent = path.parent
    if parent == Path() or not parent.name:
        return f"There is no {printable(path.name)!r} in {printable(parent.absolute())!r}."
    if parent.is_dir():
        names = _names(parent)
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        held = ", ".join(map(printable, names[:_SHOWN])) or "nothing"
        return f"{printable(parent)!r} holds {held}{more}."
    while not parent.is_dir():
        parent = parent.parent
    if parent == Path():  # nothing of it is there: the word "." would tell nobody where to look
        return f"There is no {printable(path.parts[0])!r} in {printable(Path.cwd())!r}."
    return f"The path exists only up to {printable(parent)!r}."
