"""The library's cache of vectors of texts: a folder per encoder, a file for what one call added."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ddpm_lib.core.caching import cache_folder
from ddpm_lib.core.files import write_aside
from ddpm_lib.nn.text_vectors import KEY, TextVectors, text_keys

_MOST_FILES = 32
"""More than this are written as one."""

Stamp = list[tuple[str, int, int]]
"""What tells the model in a folder from another one there."""


def cached_vectors(texts: Sequence[str], encoder: str, stamp: Stamp) -> TextVectors:
    """Return what the cache has of an encoder, and of these texts as one list where an earlier
    version kept them so.
    """
    found = TextVectors.none()
    for path in _files(_folder(encoder, stamp)):
        one = _read(path)
        if one is not None:
            found = _joined(found, one)
    keys = text_keys(texts, encoder)
    if len(texts) > 1 and bool((found.rows_of(keys) < 0).any()):
        whole = _whole_list(texts, encoder, stamp)
        if whole is not None:
            found = _joined(found, TextVectors.none().with_more(keys, whole))
    return found


def keep_vectors(keys: np.ndarray, vectors: np.ndarray, encoder: str, stamp: Stamp) -> None:
    """Add vectors to the cache; where the disk refuses, they are made again another time."""
    folder = _folder(encoder, stamp)
    new, gone = TextVectors.none().with_more(keys, vectors), list[Path]()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        files = _files(folder)
        if len(files) >= _MOST_FILES:
            for path in files:
                one = _read(path)
                new = new if one is None else _joined(new, one)
            gone = files
        name = hashlib.blake2b(new.keys.tobytes(), digest_size=KEY).hexdigest()
        target = folder / f"{name}.npz"
        write_aside(target, lambda aside: _save(aside, new), durable=False)
        for path in gone:
            if path != target:
                path.unlink(missing_ok=True)


def _joined(one: TextVectors, other: TextVectors) -> TextVectors:
    same = not len(one) or not len(other) or one.vectors.shape[1] == other.vectors.shape[1]
    return one.with_more(other.keys, other.vectors) if same else one


def _folder(encoder: str, stamp: Stamp) -> Path:
    made_of = json.dumps([encoder, stamp])
    return cache_folder() / "texts" / hashlib.blake2b(made_of.encode(), digest_size=8).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.npz") if path.is_file())


def _save(path: Any, known: TextVectors) -> None:
    with open(path, "wb") as file:
        np.savez(file, keys=known.keys, vectors=known.vectors)


def _read(path: Path) -> TextVectors | None:
    """Read a file of the cache; a damaged one is removed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, vectors = file["keys"], file["vectors"]
        if keys.dtype == np.uint8 and keys.shape == (len(vectors), KEY) and _usable(vectors):
            return TextVectors(keys, vectors)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        path.unlink(missing_ok=True)
        return None
    path.unlink(missing_ok=True)
    return None


def _whole_list(texts: Sequence[str], encoder: str, stamp: Stamp) -> np.ndarray | None:
    made_of = json.dumps([encoder, stamp, *texts])
    key = hashlib.blake2b(made_of.encode(), digest_size=16).hexdigest()
    path = cache_folder() / "texts" / f"{key}.npy"
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if len(found) == len(texts) and _usable(found) else None


def _usable(vectors: np.ndarray) -> bool:
    return vectors.ndim == 2 and vectors.dtype == np.float32 and bool(np.isfinite(vectors).all())
