"""Vectors of texts that were encoded before, by what names each text: a hash of it and its encoder.

The texts themselves are nowhere kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

KEY = 16
"""Bytes of a hash."""
_KNOWN: ContextVar[tuple[TextVectors, ...]] = ContextVar("known_texts", default=())


def text_keys(texts: Sequence[str | None], encoder: str) -> np.ndarray:
    """Return what names texts encoded by an encoder, uint8 (n, 16); zeros where there is none.

    Of an encoder in a folder the folder's own name counts, wherever it lies.
    """
    name = encoder.rstrip("/").rpartition("/")[2]
    keys = np.zeros((len(texts), KEY), dtype=np.uint8)
    for row, text in enumerate(texts):
        if text is not None:
            made_of = json.dumps([name, text]).encode()
            found = hashlib.blake2b(made_of, digest_size=KEY).digest()
            keys[row] = np.frombuffer(found, dtype=np.uint8)
    return keys


@dataclass(frozen=True, eq=False)
class TextVectors:
    """Vectors by the names of their texts.

    Attributes:
        keys: Of `text_keys`, each once, uint8 (n, 16).
        vectors: float32 (n, d).
    """

    keys: np.ndarray
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def __deepcopy__(self, memo: Any) -> TextVectors:
        return self  # nothing changes it, and averages are copies of networks

    @cached_property
    def _rows(self) -> dict[bytes, int]:
        return {key.tobytes(): row for row, key in enumerate(self.keys)}

    def rows_of(self, keys: np.ndarray) -> np.ndarray:
        """Return where the vectors of texts are, int64 (n,); −1 for those that are not here."""
        found = [self._rows.get(key.tobytes(), -1) for key in keys]
        return np.array(found, dtype=np.int64)

    def with_more(self, keys: np.ndarray, vectors: np.ndarray) -> TextVectors:
        """Return these and those of further texts; what is here stays, and what has no vector, NaN,
        or no key is left out.
        """
        known = keys.any(1) & ~np.isnan(vectors).any(1)
        new = np.flatnonzero(known & (self.rows_of(keys) < 0))
        if not len(new):
            return self
        _, first = np.unique(keys[new], axis=0, return_index=True)
        new = new[np.sort(first)]
        if len(self) and self.vectors.shape[1] != vectors.shape[1]:
            raise ValueError(
                f"Vectors of {vectors.shape[1]} numbers cannot join those of"
                f" {self.vectors.shape[1]}."
            )
        if not len(self):
            return TextVectors(keys[new], vectors[new].astype(np.float32))
        return TextVectors(
            np.concatenate([self.keys, keys[new]]),
            np.concatenate([self.vectors, vectors[new].astype(np.float32)]),
        )

    @classmethod
    def none(cls) -> TextVectors:
        """Return an empty one."""
        return cls(np.zeros((0, KEY), np.uint8), np.zeros((0, 0), np.float32))


@contextmanager
def known_texts(known: Sequence[TextVectors]) -> Iterator[None]:
    """Let `encode_texts` take the vectors of texts from here, before it asks their encoder."""
    token = _KNOWN.set((*known, *_KNOWN.get()))
    try:
        yield
    finally:
        _KNOWN.reset(token)


def all_known() -> tuple[TextVectors, ...]:
    """Return what `known_texts` says here."""
    return _KNOWN.get()


def to_tensors(known: Mapping[str, TextVectors]) -> dict[str, Tensor]:
    """Return vectors by condition as tensors by name, as files hold them."""
    found: dict[str, Tensor] = {}
    for name, one in known.items():
        found[f"{name}.keys"] = torch.from_numpy(np.ascontiguousarray(one.keys))
        found[f"{name}.vectors"] = torch.from_numpy(np.ascontiguousarray(one.vectors))
    return found


def from_tensors(tensors: Mapping[str, Tensor], where: str) -> dict[str, TextVectors]:
    """Return vectors by condition of tensors by name.

    Raises:
        ValueError: If they are not what `to_tensors` makes.
    """
    found: dict[str, TextVectors] = {}
    for name in {name.rpartition(".")[0] for name in tensors}:
        keys, vectors = (tensors.get(f"{name}.{part}") for part in ("keys", "vectors"))
        if (
            keys is None
            or vectors is None
            or keys.dtype != torch.uint8
            or vectors.dtype != torch.float32
            or vectors.ndim != 2
            or keys.shape != (len(vectors), KEY)
            or not bool(vectors.isfinite().all())
        ):
            raise ValueError(f"{where} is damaged: it holds no vectors of texts for {name!r}.")
        found[name] = TextVectors(keys.numpy(), vectors.numpy())
    return found
