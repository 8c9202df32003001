"""What says whether two openings of data are the same: names, contents and labels, hashed; and
where they differ.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lib.core.files import open_own, write_aside
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.names import Names, NumberedNames, PackedNames
from ddpm_lib.data.source import Source

INDEX = "data.npz"
INDEXED = 1_000_000
_SHOWN = 3
_FIRST_SETTINGS = ("image_size", "channels", "fit", "background", "max_pixels")


@dataclass(frozen=True)
class Origin:
    """A set as it was opened, whole, and what is compared of it.

    Args:
        names: One per image.
        content: A hash of each image, int64 (n,); 0: this one is not compared. None: contents are
            not compared.
        labels: int64 (n,) or None.
        class_names: One per class, or None.
        fingerprint: Digest of all that and of how images are decoded.
        earlier: The digest that checkpoints of earlier versions hold: of names, sizes and labels.
    """

    names: Names
    content: np.ndarray | None
    labels: np.ndarray | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    earlier: str


def make_origin(
    source: Source, spec: DecodeSpec, rows: np.ndarray, names: Names, content: np.ndarray | None
) -> Origin:
    """Hash what there is of some rows of a source.

    Args:
        source: The source, with its labels.
        spec: How images are decoded.
        rows: The rows that are used, int64 (n,).
        names: Their names.
        content: Hashes of all rows of the source, or None where contents are not compared.
    """
    labels = None if source.labels is None else source.labels[rows]
    chosen = None if content is None else content[rows]
    digest = hashlib.blake2b(digest_size=16)
    kind = (
        type(getattr(source, "data", None)).__qualname__
        if source.foreign and content is None
        else ""
    )
    digest.update(
        json.dumps([2, kind, _settings(spec), source.class_names], sort_keys=True).encode()
    )
    _add_names(digest, names)
    for part in (chosen, labels):
        digest.update(b"none" if part is None else np.ascontiguousarray(part).tobytes())
    return Origin(
        names,
        chosen,
        labels,
        source.class_names,
        digest.hexdigest(),
        first_digest(source, spec, rows),
    )


def first_digest(
    source: Source, spec: DecodeSpec, rows: np.ndarray, with_times: bool = False
) -> str:
    """Hash names, file sizes, labels and how images are decoded; with times of change and
    places too for what is remembered of files.

    Without times it is what checkpoints hold that were saved before contents were compared.
    """
    settings = {name: getattr(spec, name) for name in _FIRST_SETTINGS}
    if spec.transform is not None:
        settings["transform"] = str(spec.transform)
    digest = hashlib.blake2b(
        json.dumps([1, settings, source.class_names], sort_keys=True).encode(), digest_size=16
    )
    for row in rows.tolist():
        name = source.names.raw(row)
        digest.update(b"%d:" % len(name) + name)
    digest.update(np.ascontiguousarray(source.sizes()[rows]).tobytes())
    if source.labels is not None:
        digest.update(source.labels[rows].tobytes())
    times = source.mtimes() if with_times else None
    if times is not None:
        digest.update(os.fsencode(source.where() or ""))
        digest.update(times.tobytes())
    return digest.hexdigest()


def decoded_digest(source: Source, spec: DecodeSpec) -> str:
    """Hash what decoded images depend on: places, names, sizes and times of files, and all
    settings.
    """
    rows = np.arange(len(source), dtype=np.int64)
    files = first_digest(source, spec, rows, with_times=True)
    settings = json.dumps([1, _settings(spec)], sort_keys=True)
    return hashlib.blake2b(f"{files} {settings}".encode(), digest_size=16).hexdigest()


def _settings(spec: DecodeSpec) -> dict[str, Any]:
    """Return the settings but those of later versions that are at their default: adding one changes
    no digest.
    """
    defaults = {f.name: f.default for f in fields(spec) if f.default is not MISSING}
    values = {f.name: getattr(spec, f.name) for f in fields(spec)}
    if spec.transform is not None:
        values["transform"] = str(spec.transform)
    return {
        name: value
        for name, value in values.items()
        if name in _FIRST_SETTINGS or value != defaults.get(name, MISSING)
    }


def _add_names(digest: Any, names: Names) -> None:
    for i in range(len(names)):
        name = names.raw(i)
        digest.update(b"%d:" % len(name) + name)


def write_index(folder: Path, origin: Origin | None) -> None:
    """Write data.npz: names, hashes and labels of a run's data, so that a later start can say what
    has changed.

    Sets of more than a million images, and those that are not opened but given, have none.
    """
    path = folder / INDEX
    if origin is None or len(origin.names) > INDEXED:
        path.unlink(missing_ok=True)
        return
    numbered = all(origin.names.raw(i) == b"%06d" % i for i in range(len(origin.names)))
    raw = [] if numbered else [origin.names.raw(i) for i in range(len(origin.names))]
    empty = np.zeros(0, dtype=np.int64)

    def write(aside: Path) -> None:
        with open(open_own(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            np.savez_compressed(
                file,
                count=np.int64(len(origin.names)),
                names=np.frombuffer(b"".join(raw), dtype=np.uint8),
                lengths=np.array([len(name) for name in raw], dtype=np.int32),
                content=empty if origin.content is None else origin.content,
                labels=empty if origin.labels is None else origin.labels.astype(np.int32),
                classes=np.frombuffer(json.dumps(origin.class_names).encode(), dtype=np.uint8),
                fingerprint=np.frombuffer(origin.fingerprint.encode(), dtype=np.uint8),
            )

    write_aside(path, write)


def read_index(folder: Path) -> Origin | None:
    """Read data.npz of a run; None where it is missing or damaged."""
    try:
        with np.load(folder / INDEX, allow_pickle=False) as saved:
            found = {name: saved[name] for name in saved.files}
        count, lengths = int(found["count"]), found["lengths"]
        blob, ends = found["names"].tobytes(), np.cumsum([0, *lengths.tolist()])
        named = [blob[a:b] for a, b in itertools.pairwise(ends.tolist())]
        names: Names = PackedNames(named) if named else NumberedNames(count)
        classes = json.loads(found["classes"].tobytes())
        return Origin(
            names,
            found["content"] if len(found["content"]) else None,
            found["labels"].astype(np.int64) if len(found["labels"]) else None,
            tuple(classes) if classes else None,
            found["fingerprint"].tobytes().decode(),
            "",
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def tell_apart(before: Origin, now: Origin) -> list[str]:
    """Say in lines what differs: images added, lost, replaced, of another class; classes; the
    order.
    """
    old = {before.names.raw(i): i for i in range(len(before.names))}
    new = {now.names.raw(i): i for i in range(len(now.names))}
    added, lost = (
        [i for name, i in new.items() if name not in old],
        [i for name, i in old.items() if name not in new],
    )
    both = [(old[name], i) for name, i in new.items() if name in old]
    lines = [
        _line(len(added), "added", (now.names[i] for i in added)),
        _line(len(lost), "lost", (before.names[i] for i in lost)),
    ]
    if before.content is not None and now.content is not None:
        hashes = before.content, now.content
        replaced = [
            j for i, j in both if hashes[0][i] != hashes[1][j] and hashes[0][i] and hashes[1][j]
        ]
        lines.append(_line(len(replaced), "with other contents", (now.names[j] for j in replaced)))
    classes = _classes(before), _classes(now)
    if before.class_names != now.class_names:
        lines.append(f"classes: {_some(before.class_names)} then, {_some(now.class_names)} now")
    if before.labels is not None and now.labels is not None:
        moved = [(i, j) for i, j in both if classes[0][i] != classes[1][j]]
        words = (f"{now.names[j]} ({classes[0][i]}, now {classes[1][j]})" for i, j in moved)
        lines.append(_line(len(moved), "of another class", words))
    if not any(lines) and [i for i, _ in both] != sorted(i for i, _ in both):
        lines.append("the images come in another order")
    return [line for line in lines if line]


def _classes(origin: Origin) -> Sequence[str]:
    if origin.labels is None:
        return []
    known: Mapping[int, str] = dict(enumerate(origin.class_names or ()))
    return [known.get(k, str(k)) for k in origin.labels.tolist()]


def _line(count: int, what: str, names: Iterable[str]) -> str:
    if not count:
        return ""
    shown = [name for name, _ in zip(names, range(_SHOWN))]
    return (
        f"{count:,} image{'s' * (count > 1)} {what}:"
        f" {', '.join(shown)}{', …' if count > _SHOWN else ''}"
    )


def _some(names: Sequence[str] | None) -> str:
    if not names:
        return "none"
    return ", ".join(names[:10]) + (f", … ({len(names)})" if len(names) > 10 else "")
