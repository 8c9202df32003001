"""Where a dataset's images are kept: in RAM, or at their source, decoded when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.readers import LentReader, generators_kept, is_reader, may_fork, seed_generators
from ddpm_lib.data.source import BadImagesError, Source, load_patiently, reason


class Store(Protocol):
    """Rows of images of one shape."""

    in_memory: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, *spatial) of one row."""
        ...

    def get(self, rows: np.ndarray, draws: np.ndarray | None = None) -> Tensor:
        """Return uint8 images (n, c, h, w); `draws` names the random numbers that a Dataset may
        draw for each.
        """
        ...


Map = Callable[[np.ndarray], Tensor]
"""Makes of measured values (n, c, *spatial) what is trained on."""


class MemoryStore:
    """Images in RAM: one uint8 tensor (n, c, h, w), or any other tensor (n, c, *spatial) in [0,
    1].
    """

    in_memory = True
    twins: np.ndarray | None = None
    """Number of the group of equal images that each belongs to, where that is known."""

    def __init__(self, images: Tensor, after: Map | None = None) -> None:
        self.images = images
        self.shape = tuple(images.shape[1:])
        self.after = after

    def get(self, rows: np.ndarray, draws: np.ndarray | None = None) -> Tensor:
        """Return uint8 images (n, c, h, w), copied; or what `after` makes of measured values."""
        if self.after is not None:
            return self.after(self.stored(rows, draws))
        return self.images[torch.from_numpy(rows)]

    def stored(self, rows: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """Return images as they are stored, copied."""
        return self.images.numpy()[rows]  # torch lacks indexing for some types


class StreamStore:
    """Images decoded when asked for; a disk that fails for a moment is asked again three times.

    A Dataset of the user's is read in another process, unless this one is a loader's worker: see
    `readers`.
    """

    in_memory = False

    def __init__(self, source: Source, spec: DecodeSpec, after: Map | None = None) -> None:
        self.source = source
        self.spec = spec
        self.shape = spec.shape
        self.after = after
        self.draws = source.foreign or spec.draws
        self.at = np.full(1, -1, dtype=np.int64)
        self._lent: LentReader | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lent": None}

    def get(self, rows: np.ndarray, draws: np.ndarray | None = None) -> Tensor:
        """Return uint8 images (n, c, h, w), decoded; or what `after` makes of measured values.

        Raises:
            BadImagesError: If a file cannot be read or decoded, naming it.
        """
        values = self.stored(rows, draws)
        return torch.from_numpy(values) if self.after is None else self.after(values)

    def stored(self, rows: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """Return images as they are stored, decoded."""
        source = self.source
        if not source.foreign and self.draws and not is_reader():
            with generators_kept():
                return self._read(rows, draws, self.at)
        if not source.foreign or is_reader():
            return self._read(rows, draws, self.at)
        if source.here or not may_fork():
            with generators_kept():
                return self._read(rows, draws, self.at)
        if self._lent is None:
            self._lent = LentReader(self._read, getattr(source, "data", None), source.place)
        return self._lent(rows, draws)

    def _read(self, rows: np.ndarray, draws: np.ndarray | None, at: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape), dtype=self.spec.dtype)
        for k, row in enumerate(rows.tolist()):
            at[0] = row
            if self.draws:
                seed_generators("item", row, 0 if draws is None else int(draws[k]))
            out[k] = self._load(row)
        at[0] = -1
        return out

    def _load(self, row: int) -> np.ndarray:
        try:
            return load_patiently(self.source.load, row, self.spec).pixels
        except (ImageError, OSError) as error:
            hint = (
                "It was not checked when the set was opened, or has changed since. Restore it, or"
                " open the set again."
            )
            raise BadImagesError(
                [(self.source.names[row], reason(error))], len(self.source), hint
            ) from None
