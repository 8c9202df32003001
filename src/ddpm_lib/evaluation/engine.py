"""From images to features: every image once, shared over the ranks, resumable, extracted once for
all metrics.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm_lib.core.caching import cache_folder
from ddpm_lib.core.files import write_aside
from ddpm_lib.core.progress import bar
from ddpm_lib.core.tensor_files import load_tensors, save_tensors
from ddpm_lib.evaluation.image_sets import ImageSet
from ddpm_lib.metrics import Extractor, make_extractor, to_rgb
from ddpm_lib.metrics.extractors import weights_digest
from ddpm_lib.runtime.processes import Processes, own_share

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger("ddpm_lib")

FLUSH_IMAGES = 512
FLUSH_SECONDS = 30.0
"""After so many images, or so long, features go to disk, so that an interrupted evaluation
continues there.
"""


class Engine:
    """Extracts features of sets of images.

    Args:
        state: accelerate's object that knows the ranks.
        batch_size: Images at a time and rank.
        progress: Whether the main process shows a bar.
        weights: A file of weights for the extractors that have some.
        folder: Where unfinished work is kept; default: below the cache.
    """

    def __init__(
        self,
        state: PartialState,
        *,
        batch_size: int,
        progress: bool = True,
        weights: str | Path | None = None,
        folder: Path | None = None,
    ) -> None:
        self.state, self.batch_size, self.progress = state, batch_size, progress
        self.weights = weights
        self.folder = folder if folder is not None else cache_folder() / "unfinished"
        self._extractors: dict[tuple[str, tuple[str, ...]], Extractor] = {}
        self._digests: dict[str, str | Exception] = {}
        self._unfinished: list[Path] = []

    def extractor(self, name: str, layers: Sequence[str]) -> Extractor:
        """Build an extractor, once."""
        key = name, tuple(sorted(layers))
        if key not in self._extractors:
            self._extractors[key] = make_extractor(name, key[1], self.state.device, self.weights)
        return self._extractors[key]

    def digest(self, name: str) -> str:
        """Return the digest of an extractor's weights; the first call is for all ranks, and the
        main one fetches, if need be.

        Raises:
            MissingWeightsError: If they cannot be had.
        """
        if name not in self._digests:
            with (
                self.state.main_process_first()
            ):  # nothing may be raised here: the others would wait for ever
                try:
                    self._digests[name] = weights_digest(name, self.weights)
                except (OSError, ValueError) as error:
                    self._digests[name] = error
        found = self._digests[name]
        if isinstance(found, Exception):
            raise found
        return found

    def digests(self) -> dict[str, str]:
        """Return the digests of the extractors in use, by name."""
        return {name: digest for name, digest in self._digests.items() if isinstance(digest, str)}

    def features(self, images: ImageSet, wanted: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        """Return features of all images, in order, on every rank.

        Args:
            images: The set.
            wanted: Layers by extractor.

        Returns:
            float32 (n, d) on the CPU by "extractor/layer".
        """
        made = {name: self.extractor(name, layers) for name, layers in wanted.items() if layers}
        size = self.batch_size
        about = [
            images.fingerprint,
            images.n,
            size,
            sorted((k, self.digest(k), list(wanted[k])) for k in made),
        ]

        def extract(rows: range) -> dict[str, Tensor]:
            read = images.read(rows).to(self.state.device)
            return {
                f"{k}/{layer}": v.float().cpu()
                for k, e in made.items()
                for layer, v in e(_seen_by(k, images, read)).items()
            }

        return self.collect(f"features of {images.name}", about, images.n, size, extract)

    def collect(
        self, what: str, about: Any, n: int, group: int, make: Callable[[range], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Make numbers of rows 0 … n-1 in groups, shared over the ranks, and return those of all
        rows, in order, on every rank.

        What was made before an interruption is read and not made again.

        Args:
            what: Names the progress bar.
            about: JSON-able: everything that the numbers depend on.
            n: Number of rows.
            group: Rows per call; groups begin at multiples of it.
            make: From rows to floats (len(rows), d) on the CPU, by name.
        """
        folder = (
            self.folder / hashlib.blake2b(json.dumps(about).encode(), digest_size=12).hexdigest()
        )
        self._unfinished.append(folder)
        done = self._from_main(_parts(folder))
        had = {g for start, stop in done for g in range(start // group, -(-stop // group))}
        groups = [g for g in range(-(-n // group)) if g not in had]
        mine = own_share(len(groups), self.state.process_index, self.state.num_processes)
        found = self._run(what, n, group, make, [groups[k] for k in mine], len(had) * group, folder)
        if self.state.is_main_process:
            found = [*(_read_part(folder, part) for part in done), *found]
        return self._gather(found, n)

    def finish(self) -> None:
        """Forget the unfinished work: the scores are known."""
        if self.state.is_main_process:
            for folder in self._unfinished:
                shutil.rmtree(folder, ignore_errors=True)
        self._unfinished.clear()

    def _run(
        self,
        what: str,
        n: int,
        size: int,
        make: Callable[[range], dict[str, Tensor]],
        groups: list[int],
        kept: int,
        folder: Path,
    ) -> list[tuple[int, dict[str, Tensor]]]:
        found: list[tuple[int, dict[str, Tensor]]] = []
        waiting: list[tuple[int, dict[str, Tensor]]] = []
        since = time.monotonic()
        shown = bar(
            total=sum(min(size, n - g * size) for g in groups),
            desc=what + (f" ({kept:,} kept)" if kept else ""),
            unit="image",
            shown=self.progress and self.state.is_main_process,
        )
        for group in groups:
            rows = range(group * size, min(n, (group + 1) * size))
            got = make(rows)
            # Consecutive groups make one part; the next one of another run of groups begins a new
            # part.
            if waiting and waiting[-1][0] + _length(waiting[-1][1]) != rows.start:
                found.append(_write_part(folder, waiting))
                waiting, since = [], time.monotonic()
            waiting.append((rows.start, got))
            shown.update(len(rows))
            if (
                rows.stop - waiting[0][0] >= FLUSH_IMAGES
                or time.monotonic() - since > FLUSH_SECONDS
            ):
                found.append(_write_part(folder, waiting))
                waiting, since = [], time.monotonic()
        if waiting:
            found.append(_write_part(folder, waiting))
        shown.close()
        return found

    def _from_main(self, parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return Processes.of(self.state).from_main(parts)

    def _gather(self, found: list[tuple[int, dict[str, Tensor]]], n: int) -> dict[str, Tensor]:
        """Put the parts of all ranks in order; ranks need not see each other's files."""
        rows = [torch.arange(start, start + _length(part)) for start, part in found]
        own = torch.cat([torch.empty(0, dtype=torch.int64), *rows])
        names = sorted({k for _, part in found for k in part})
        if self.state.num_processes > 1:
            ranks = Processes.of(self.state)
            described = (
                {k: (v.shape[1], v.dtype == torch.float64) for k, v in found[0][1].items()}
                if found
                else {}
            )
            sizes = next(d for d in ranks.all_objects(described) if d)
            names = ranks.from_main(sorted(sizes))
            most = int(ranks.gather(torch.tensor([len(own)], device=self.state.device)).max())
            index = torch.full((most,), -1, device=self.state.device)
            index[: len(own)] = own.to(self.state.device)
            order = ranks.gather(index).cpu()
        out: dict[str, Tensor] = {}
        for name in names:
            mine = torch.cat([part[name] for _, part in found]) if found else None
            if self.state.num_processes == 1:
                assert mine is not None
                order, everything = own, mine
            else:
                width, double = sizes[name]
                dtype = (
                    torch.float64 if double and self.state.device.type != "mps" else torch.float32
                )
                padded = torch.zeros(most, width, dtype=dtype, device=self.state.device)
                if mine is not None:
                    padded[: len(own)] = mine.to(padded)
                everything = ranks.gather(padded).cpu()
            whole = torch.empty(n, everything.shape[1], dtype=everything.dtype)
            whole[order[order >= 0]] = everything[order >= 0]
            out[name] = whole
        return out


def _seen_by(extractor: str, images: ImageSet, read: Tensor) -> Tensor:
    """Return what an extractor looks at: values, their pixels, or a picture of three channels."""
    if extractor == "values":
        return images.on_scale(read)
    bare = images.normalization is not None or read.ndim != 4 or read.shape[1] not in (1, 3, 4)
    return read if extractor == "pixels" and bare else to_rgb(read)


def _length(part: Mapping[str, Tensor]) -> int:
    return len(next(iter(part.values())))


def _parts(folder: Path) -> list[tuple[int, int]]:
    """List the rows of finished parts, without overlap."""
    found: list[tuple[int, int]] = []
    for path in sorted(folder.glob("rows-*.safetensors")):
        start, stop = (int(word) for word in path.stem.split("-")[1:])
        if not found or start >= found[-1][1]:
            found.append((start, stop))
    return found


def _read_part(folder: Path, part: tuple[int, int]) -> tuple[int, dict[str, Tensor]]:
    return part[0], load_tensors(folder / _part_name(*part))


def _part_name(start: int, stop: int) -> str:
    return f"rows-{start:09d}-{stop:09d}.safetensors"


def _write_part(
    folder: Path, pieces: list[tuple[int, dict[str, Tensor]]]
) -> tuple[int, dict[str, Tensor]]:
    start = pieces[0][0]
    joined = {k: torch.cat([part[k] for _, part in pieces]).contiguous() for k in pieces[0][1]}
    path = folder / _part_name(start, start + _length(joined))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(path, lambda aside: save_tensors(aside, joined))
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): this evaluation could not be resumed.", path, error
        )
    return start, joined
