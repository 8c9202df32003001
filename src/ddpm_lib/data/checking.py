"""The check of images when a set is opened: which can be used, and what they are known by later."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm_lib.core import spelling
from ddpm_lib.core.files import write_atomically
from ddpm_lib.data.contents import first_digest
from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.decoding import Scan, decode_all
from ddpm_lib.data.source import BadImagesError, Source
from ddpm_lib.runtime.limits import available_cpus, available_memory, local_world_size

_SAMPLED = 64
_CACHE_LIMIT_MB = 4096


@dataclass(frozen=True)
class ReadingOptions:
    """How a source is to be read; see `open_dataset`."""

    on_bad_image: str
    cache: str
    limit: int
    num_workers: int | None
    verify: bool
    scan_file: Path | None
    log: Callable[[str], None] | None

    @property
    def workers(self) -> int:
        """Processes that decode when the set is opened."""
        if self.num_workers is not None:
            return self.num_workers
        return max(1, available_cpus() // local_world_size())


def good_rows(
    source: Source, scan: Scan | None, way: ReadingOptions, notes: list[str]
) -> np.ndarray:
    """Return the rows that can be used, with a note on those left out.

    Raises:
        BadImagesError: If there are bad ones and they are an error, or none is left.
    """
    bad = scan.bad if scan is not None else {}
    named = [(source.names[row], why) for row, why in sorted(bad.items())]
    if bad and (way.on_bad_image == "error" or len(bad) == len(source)):
        hint = None
        if len(bad) == len(source):
            failing = getattr(source, "failing_hint", None)
            hint = (
                "None is left: mend what is said above, or pass other data."
                if failing is None
                else failing()
            )
        raise BadImagesError(named, len(source), hint)
    if bad:
        shown = "; ".join(f"{name} ({why})" for name, why in named[:5]) + (
            "; …" if len(named) > 5 else ""
        )
        notes.append(f"skipped {len(bad):,} of {len(source):,} images: {shown}")
    return np.setdiff1d(
        np.arange(len(source), dtype=np.int64), np.array(sorted(bad), dtype=np.int64)
    )


def sample_contents(source: Source, spec: DecodeSpec, notes: list[str]) -> np.ndarray:
    """Hash some images of a set that is not checked, spread over it; the others get 0."""
    content = np.zeros(len(source), dtype=np.int64)
    known = getattr(source, "sampled", None)
    if known is None:
        known = {}
        for row in np.unique(
            np.linspace(0, len(source) - 1, _SAMPLED).round().astype(np.int64)
        ).tolist():
            with contextlib.suppress(ImageError, OSError):
                known[row] = source.examine(row, spec).content
    content[list(known)] = list(known.values())
    notes.append(
        "not checked (verify=False): a resumed run compares the names and sizes of all, the"
        f" contents of {len(known):,}"
    )
    return content


def check_images(
    source: Source, spec: DecodeSpec, way: ReadingOptions, notes: list[str]
) -> Scan | None:
    """Decode every image of a streamed set once, or take the remembered result if nothing has
    changed.
    """
    if not way.verify and not source.gives_labels:
        return None
    path, n = way.scan_file, len(source)
    state = first_digest(source, spec, np.arange(n), with_times=True)
    if path is not None and path.is_file() and not source.foreign:
        try:
            saved = json.loads(path.read_text())
            if saved["state"] == state:
                content = np.frombuffer(bytes.fromhex(saved["content"]), dtype=np.int64)
                bad = {int(k): v for k, v in saved["bad"].items()}
                if len(content) != n:
                    raise ValueError(f"{len(content)} hashes of {n} images")
                notes.append(f"images were checked before ({path.name})")
                notes += saved["notes"]
                empty = np.zeros(0, dtype=np.uint8)
                return Scan(None, empty, np.zeros((0, 2)), content, bad, 0.0, 0, known=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(
                f"{path.name} cannot be used, so the images are checked again"
                f" ({type(error).__name__})"
            )
    scan = decode_all(source, spec, keep=False, num_workers=way.workers, log=way.log)
    notes.append(f"{n:,} images checked in {scan.seconds:.1f} s")
    if path is not None and not source.foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        saved = {
            "state": state,
            "bad": scan.bad,
            "notes": scan.notes(),
            "content": scan.content.tobytes().hex(),
        }
        write_atomically(path, json.dumps(saved))
    return scan


def cache_limit_bytes(limit_mb: float | None = None) -> int:
    """Return the limit of cache="auto" for this process in bytes."""
    if limit_mb is not None:
        if limit_mb < 0:
            raise ValueError(f"{spelling.option('cache_limit_mb')} must be ≥ 0; got {limit_mb!r}.")
        return int(limit_mb * 1e6)
    return int(min(_CACHE_LIMIT_MB * 1e6, available_memory() / 4) / local_world_size())
