"""What is measured of all pictures of a source, each of which is read once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from ddpm_lib.data.auditing.picture_measures import (
    FINE_SIDE,
    LEAST_BORDER,
    OCTAVES,
    SIDE,
    Picture,
    Versions,
    inside,
    measure,
    versions,
)
from ddpm_lib.data.auditing.trial_copies import trial_copy
from ddpm_lib.data.auditing.value_pictures import ValuePictures
from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.progress_lines import ProgressLines
from ddpm_lib.data.readers import generators_kept, may_fork, run_readers, seed_generators, shared
from ddpm_lib.data.source import Source, load_patiently, reason

Log = Callable[[str], None]

CONSTANT_SPREAD = 1.5
"""Standard deviation of the brightness, of 255, below which a picture is of one colour."""
_FORK_FROM = 256
_BLOCK = 32


@dataclass(frozen=True)
class Probe:
    """A copy made for trial: of which picture, by what, as measured."""

    row: int
    kind: str
    whole: Versions
    inner: Versions | None


class Measure:
    """A transform of pictures that changes nothing and remembers what it saw of the last one.

    Attributes:
        last: What it saw.
        trial: The kind of copy to make for trial, and the row it is of; None: none.
        copy: The copy.
    """

    def __init__(self) -> None:
        self.last: Picture | None = None
        self.trial: tuple[str, int] | None = None
        self.copy: Probe | None = None

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Measure a picture, and return it."""
        self.last = measure(picture)
        if self.trial is not None:
            kind, row = self.trial
            made = trial_copy(picture, kind, row)
            self.copy = Probe(row, kind, versions(made), inside(made))
        return picture

    def __repr__(self) -> str:
        return "measuring"


@dataclass
class Measured:
    """What was measured of n pictures, in the order of the source.

    Attributes:
        pixels: Hash of size and pixels, int64 (n,).
        content: Hash of the file, or of what there is instead of one, int64 (n,).
        sizes: Width and height as stored and turned, int32 (n, 2).
        flags: What decoding did, see `ddpm_lib.data.decode`.
        mean: Mean of each channel in [0, 1], float32 (n, 3).
        square: Mean square of each channel, float32 (n, 3).
        low: Smallest value, uint8 (n,).
        high: Largest value, uint8 (n,).
        spread: Standard deviation of the brightness at SIDE×SIDE at most, float32 (n,), of 255.
        colourful: Mean difference of the channels, float32 (n,), of 255.
        box: What is left without a border of one colour: left, top, right, bottom in [0, 1],
            float32 (n, 4).
        octaves: Power of the brightness in octaves of frequency, the finest first, float32
            (n, OCTAVES); NaN where a picture is too small for one.
        repeated: k where each pixel is repeated k times in both directions, uint8 (n,); else 1.
        small: The pictures as SIDE×SIDE, uint8 (n, 3, SIDE, SIDE).
        fine: The same in grey at FINE_SIDE×FINE_SIDE, uint8 (n, FINE_SIDE, FINE_SIDE); zeros of
            pictures that are too small for it.
        inner: As `small`, what the border leaves, where there is a border.
        inner_fine: As `fine`, likewise.
        bad: Reasons by row of pictures that cannot be used.
        labels: Labels that reading gave, by row.
        probes: Copies made for trial.
    """

    pixels: np.ndarray
    content: np.ndarray
    sizes: np.ndarray
    flags: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    low: np.ndarray
    high: np.ndarray
    spread: np.ndarray
    colourful: np.ndarray
    box: np.ndarray
    octaves: np.ndarray
    repeated: np.ndarray
    small: np.ndarray
    fine: np.ndarray
    inner: np.ndarray
    inner_fine: np.ndarray
    bad: dict[int, str]
    labels: dict[int, Any]
    probes: list[Probe]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def good(self) -> np.ndarray:
        """Which pictures can be used, bool (n,)."""
        good = np.ones(len(self), dtype=bool)
        good[list(self.bad)] = False
        return good

    @property
    def bordered(self) -> np.ndarray:
        """Which pictures have a border of one colour and something in it, bool (n,)."""
        area = (self.box[:, 2] - self.box[:, 0]) * (self.box[:, 3] - self.box[:, 1])
        found: np.ndarray = (area < 1 - LEAST_BORDER) & self.inner.any((1, 2, 3))
        return found


def measure_all(
    source: Source,
    spec: DecodeSpec,
    workers: int,
    log: Log | None = None,
    trials: Mapping[int, str] | None = None,
) -> Measured:
    """Read every picture of a source once and measure it; only small versions are kept.

    Args:
        source: The pictures.
        spec: How to read values of more than 8 bits and transparency; its size is `SIDE`, its fit
            "stretch", its transform a `Measure`.
        workers: Processes that read; 0 or 1: this one.
        log: Is given a line every few seconds.
        trials: Rows of which a copy is made for trial, and its kind.
    """
    n = len(source)
    looks = spec.transform
    assert isinstance(looks, Measure)
    if source.foreign:
        source.look(spec, True, log)
    count = workers if n >= _FORK_FROM and workers > 1 and _may_fork() else 0
    if source.foreign:
        count = 0 if source.here or not may_fork() else max(1, min(workers, -(-n // _BLOCK)))
    found = _room(n)
    progress = ProgressLines(n, log, "looking at")
    done = shared((max(1, count),), np.int64)

    def work(rank: int, at: np.ndarray) -> tuple[dict[int, str], dict[int, Any], list[Probe]]:
        for block in range(rank * _BLOCK, n, max(1, count) * _BLOCK):
            for row in range(block, min(block + _BLOCK, n)):
                at[rank] = row
                looks.trial = (trials[row], row) if trials and row in trials else None
                _one(source, spec, looks, row, found)
                done[rank] += 1
            if not count:
                progress(int(done[0]))
        return found.bad, found.labels, found.probes

    if count:
        data = getattr(source, "data", None)
        results = run_readers(
            work, count, data, source.place, log, lambda: progress(int(done.sum()))
        )
    else:
        with generators_kept():
            results = [work(0, np.zeros(1, dtype=np.int64))]
    for bad, labels, probes in results:
        found.bad.update(bad)
        found.labels.update(labels)
        found.probes += probes if probes is not found.probes else []
    found.probes.sort(key=lambda probe: probe.row)
    return found


def _one(source: Source, spec: DecodeSpec, looks: Measure, row: int, found: Measured) -> None:
    if source.foreign:
        seed_generators("item", row, 0)
    looks.last, looks.copy = None, None
    try:
        result, content, label = load_patiently(source.examine, row, spec)
    except (ImageError, OSError) as error:
        found.bad[row] = reason(error)
        return
    seen = looks.last
    if seen is None:
        raise RuntimeError(f"{source.place(row)} was read without being measured.")
    found.pixels[row], found.content[row] = seen.pixels, content
    spread = seen.spread
    if isinstance(source, ValuePictures):  # what is alike in 8 bits may differ in its values
        found.pixels[row] = content
        spread = 0.0 if source.is_flat(row) else max(spread, CONSTANT_SPREAD)
    found.sizes[row] = result.width, result.height
    found.flags[row] = result.flags
    found.mean[row], found.square[row] = seen.mean, seen.square
    found.low[row], found.high[row] = seen.low, seen.high
    found.spread[row], found.colourful[row] = spread, seen.colourful
    found.box[row], found.octaves[row] = seen.box, seen.octaves
    found.repeated[row] = seen.repeated
    found.small[row] = result.pixels
    if seen.fine.any():  # else what is zero stays memory that is never touched
        found.fine[row] = seen.fine
    if seen.inner is not None:
        found.inner[row], found.inner_fine[row] = seen.inner
    if looks.copy is not None:
        found.probes.append(looks.copy)
    if source.gives_labels:
        found.labels[row] = label


def _room(n: int) -> Measured:
    return Measured(
        pixels=shared((n,), np.int64),
        content=shared((n,), np.int64),
        sizes=shared((n, 2), np.int32),
        flags=shared((n,), np.uint16),
        mean=shared((n, 3), np.float32),
        square=shared((n, 3), np.float32),
        low=shared((n,), np.uint8),
        high=shared((n,), np.uint8),
        spread=shared((n,), np.float32),
        colourful=shared((n,), np.float32),
        box=shared((n, 4), np.float32),
        octaves=shared((n, OCTAVES), np.float32),
        repeated=shared((n,), np.uint8),
        small=shared((n, 3, SIDE, SIDE), np.uint8),
        fine=shared((n, FINE_SIDE, FINE_SIDE), np.uint8),
        inner=shared((n, 3, SIDE, SIDE), np.uint8),
        inner_fine=shared((n, FINE_SIDE, FINE_SIDE), np.uint8),
        bad={},
        labels={},
        probes=[],
    )


def joined_parts(parts: Sequence[Measured]) -> Measured:
    """Return the measurements of several parts behind each other."""
    if len(parts) == 1:
        return parts[0]
    joined = {
        one.name: np.concatenate([getattr(part, one.name) for part in parts])
        for one in fields(Measured)
        if isinstance(getattr(parts[0], one.name), np.ndarray)
    }
    starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    bad = {row + start: why for part, start in zip(parts, starts) for row, why in part.bad.items()}
    return Measured(**joined, bad=bad, labels={}, probes=parts[0].probes)


def _may_fork() -> bool:
    return may_fork() and threading.current_thread() is threading.main_thread()
