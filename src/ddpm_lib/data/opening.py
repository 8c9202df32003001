"""`open_dataset`: from a path, a name or an object to an `ImageDataset`, checked, with clear lines on what was done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ddpm_lib.data.dataset import BadImagesError, ImageDataset, MemoryStore, Source, Store, StreamStore
from ddpm_lib.data.decode import MAX_PIXELS, Background, DecodeSpec, make_spec
from ddpm_lib.data.decoding import Scan, decode_all
from ddpm_lib.data.fits import check_fits
from ddpm_lib.data.looks import look_at
from ddpm_lib.data.workers import (
    available_cpus,
    available_memory,
    check_num_workers,
    default_num_workers,
    local_world_size,
)
from ddpm_lib.registry import unknown_name

_CHOICES = {
    "labels": ("auto", "folder", "prefix", "none"),
    "on_bad_image": ("error", "skip"),
    "cache": ("auto", "ram", "none"),
    "frames": ("first", "all"),
}
_CACHE_LIMIT_MB = 4096


def open_dataset(
    data: Any = None,
    *,
    image_size: int | Sequence[int],
    channels: int = 3,
    fit: Literal["crop", "pad", "stretch"] = "crop",
    labels: Literal["auto", "folder", "prefix", "none"] = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    cache: Literal["auto", "ram", "none"] = "auto",
    cache_limit_mb: float | None = None,
    num_workers: int | None = None,
    background: Background = "white",
    max_pixels: int = MAX_PIXELS,
    value_range: Sequence[float] | None = None,
    frames: Literal["first", "all"] = "first",
    verify: bool = True,
    scan_file: str | os.PathLike[str] | None = None,
    log: Callable[[str], None] | None = None,
) -> ImageDataset:
    """Open images from almost anywhere as uint8 tensors of one shape.

    Every image is decoded once when the set is opened, in parallel: into RAM if it fits (then training needs no
    workers), else only to check it, so that a broken file stops the run now and not after a night. All broken files
    are named at once.

    Args:
        data: "shapes" or None (the built-in `Shapes`); a folder of pictures (recursive; JPEG, PNG, WEBP, BMP, TIFF,
            GIF, PPM); a 🤗 dataset as a local path (`save_to_disk`, parquet), a hub name or an object; `.npz`/`.npy`
            of uint8 images; any torch Dataset of dicts, (image, label) tuples or images (uint8 or PIL); a uint8
            array (n, h, w, c) or (n, c, h, w).
        image_size: Side in pixels, or (height, width).
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        fit: "crop" (keep the aspect ratio, centred, cut the rest), "pad" (keep all, fill with `background`),
            "stretch" (squash).
        labels: "auto" (sub-folders if there are two or more; the label column), "folder", "prefix" (`cat_001.jpg`),
            "none".
        image_column: Column or key of the images, where the usual names do not find it.
        label_column: Column or key of the labels.
        split: Which split of a 🤗 dataset, a folder of splits or of parquet files.
        on_bad_image: "error" names every unusable file; "skip" leaves them out, counted (the fingerprint changes
            with them).
        cache: "auto" (RAM if it fits the limit), "ram", "none" (decode on demand).
        cache_limit_mb: Limit of "auto" in MB per process; default: 4,096 or a quarter of the available memory,
            shared over the local ranks.
        num_workers: Processes for decoding; default: the CPUs this process may use, shared over the local ranks.
        background: Colour under transparent pixels (channels 1 and 3) and around padded images.
        max_pixels: Larger images are refused before they are decompressed.
        value_range: (black, white) of images of more than 8 bits, such as (0, 4095) for 12 bits or (-160, 240) for a
            window of a CT; values outside become black and white. Default: 0 and 65,535 for 16 bits; others need it.
        frames: "first" page or frame of a file in a folder, or "all" of them, each an image (TIFF stacks, GIF, APNG).
        verify: False skips the check of sets that do not fit in RAM; a broken file is then named when it is first
            met.
        scan_file: Remembers the result of that check (JSON), so that it runs once as long as no file changes.
        log: Is given progress and the `notes`, line by line.

    Returns:
        An `ImageDataset`.

    Raises:
        FileNotFoundError: If there is no such folder, or no picture in it.
        BadImagesError: If images cannot be used (a ValueError), all of them named.
        ValueError: If an option or the layout of the data is wrong; the message says what to do.
    """
    for option, value in (("labels", labels), ("on_bad_image", on_bad_image), ("cache", cache), ("frames", frames)):
        if value not in _CHOICES[option]:
            raise ValueError(unknown_name(option, value, _CHOICES[option]))
    spec = make_spec(image_size, channels, fit, background, max_pixels, value_range)
    warning = check_num_workers(num_workers)
    if warning and log:
        log(warning)
    options = {
        "split": split, "image_column": image_column, "label_column": label_column, "labels": labels, "frames": frames,
        "on_bad_image": on_bad_image, "background": background, "value_range": value_range, "fit": fit,
    }  # fmt: skip
    opened = _ready(data, spec, labels, options)
    if opened is None:
        from ddpm_lib.data.sources import find_source

        source = find_source(data, spec, labels, image_column, label_column, split, log, frames)
        limit = cache_limit_bytes(cache_limit_mb)
        opened = _finish(source, spec, on_bad_image, cache, limit, num_workers, verify, scan_file, log)
    for note in opened.notes if log else ():
        log(note)  # type: ignore[misc]
    return opened


def cache_limit_bytes(limit_mb: float | None = None) -> int:
    """Return the limit of cache="auto" for this process in bytes."""
    if limit_mb is not None:
        if limit_mb < 0:
            raise ValueError(f"cache_limit_mb must be ≥ 0; got {limit_mb!r}.")
        return int(limit_mb * 1e6)
    return int(min(_CACHE_LIMIT_MB * 1e6, available_memory() / 4) / local_world_size())


def _ready(data: Any, spec: DecodeSpec, labels: str, options: dict[str, Any]) -> ImageDataset | None:
    """Return what needs no decoding: the built-in shapes, or a dataset of ours."""
    if data is None or (isinstance(data, str) and data == "shapes"):
        from ddpm_lib.data.shapes import Shapes

        check_fits("built-in images", options)
        shapes = Shapes(spec.image_size, channels=spec.channels)
        if os.path.isdir("shapes"):
            shapes.notes.append('"shapes" means the built-in set; write "./shapes" for the folder of that name')
        return without_labels(shapes) if labels == "none" else shapes
    if isinstance(data, ImageDataset):
        check_fits("an ImageDataset that is open already", options)
        if (data.channels, *data.image_size) != spec.shape:
            raise ValueError(
                f"The dataset holds images of (c, h, w) = {(data.channels, *data.image_size)}, but {spec.shape} is "
                "asked for. Open it with the image_size and channels of the model."
            )
        return without_labels(data) if labels == "none" else data
    return None


def without_labels(data: ImageDataset) -> ImageDataset:
    """Return the same images without labels."""
    bare = data.subset(np.arange(len(data)))
    bare._labels, bare.class_names, bare.notes = None, None, data.notes
    return bare


def _finish(
    source: Source,
    spec: DecodeSpec,
    on_bad_image: str,
    cache: str,
    limit: int,
    num_workers: int | None,
    verify: bool,
    scan_file: str | os.PathLike[str] | None,
    log: Callable[[str], None] | None,
) -> ImageDataset:
    """Decode or check everything, and build the dataset of what is good."""
    size = len(source) * int(np.prod(spec.shape))
    keep = cache == "ram" or (cache == "auto" and size <= limit)
    workers = num_workers if num_workers is not None else max(1, available_cpus() // local_world_size())
    notes = list(source.notes)
    scan, images = None, getattr(source, "ready", None)
    if images is not None:
        notes.append(f"{len(source):,} images in RAM ({size / 1e6:,.1f} MB)")
    elif keep:
        scan = decode_all(source, spec, keep=True, num_workers=workers, log=log)
        images = scan.images
        notes.append(f"{len(source):,} images decoded once into RAM ({size / 1e6:,.1f} MB, {scan.seconds:.1f} s)")
    else:
        why = (
            'cache="none"'
            if cache == "none"
            else f"{size / 1e9:.1f} GB decoded exceeds the cache limit of {limit / 1e9:.1f} GB"
        )
        streaming = num_workers if num_workers is not None else default_num_workers()
        notes.append(f"streamed by {streaming} worker{'s' * (streaming != 1)}: {why} (cache_limit_mb)")
        scan = _check(source, spec, workers, verify, scan_file, notes, log)
    bad = scan.bad if scan is not None else {}
    named = [(source.names[row], why) for row, why in sorted(bad.items())]
    if bad and (on_bad_image == "error" or len(bad) == len(source)):
        hint = "None is left: is this the right folder?" if len(bad) == len(source) else None
        raise BadImagesError(named, len(source), hint)
    if bad:
        shown = "; ".join(f"{name} ({why})" for name, why in named[:5]) + ("; …" if len(named) > 5 else "")
        notes.append(f"skipped {len(bad):,} of {len(source):,} images: {shown}")
    notes += scan.notes() if scan is not None else []
    store: Store = StreamStore(source, spec) if images is None else MemoryStore(torch.from_numpy(images))
    rows = np.setdiff1d(np.arange(len(source), dtype=np.int64), np.array(sorted(bad), dtype=np.int64))
    notes += look_at(source, spec, rows, images, scan.flags if scan is not None else None)
    if len(rows) == 1:
        notes.append("one image only: a model can do no more than memorise it")
    return ImageDataset(
        store,
        labels=None if source.labels is None else source.labels[rows],
        class_names=source.class_names,
        names=source.names,
        rows=rows,
        fingerprint=_fingerprint(source, spec, rows),
        notes=notes,
    )


def _check(
    source: Source,
    spec: DecodeSpec,
    workers: int,
    verify: bool,
    scan_file: str | os.PathLike[str] | None,
    notes: list[str],
    log: Callable[[str], None] | None,
) -> Scan | None:
    """Decode every image of a streamed set once, or take the remembered result if nothing has changed."""
    if not verify:
        return None
    path = Path(scan_file) if scan_file is not None else None
    state = _digest(source, spec, np.arange(len(source)), with_times=True)
    if path is not None and path.is_file():
        try:
            saved = json.loads(path.read_text())
            if saved["state"] == state:
                notes.append(f"images were checked before ({path.name})")
                notes += saved["notes"]
                empty = np.zeros(0, dtype=np.uint8)
                return Scan(
                    None, empty, np.zeros((0, 2)), {int(k): v for k, v in saved["bad"].items()}, 0.0, 0, known=True
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{path.name} cannot be used, so the images are checked again ({type(error).__name__})")
    scan = decode_all(source, spec, keep=False, num_workers=workers, log=log)
    notes.append(f"{len(source):,} images checked in {scan.seconds:.1f} s")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"state": state, "bad": scan.bad, "notes": scan.notes()}))
        temporary.replace(path)
    return scan


def _fingerprint(source: Source, spec: DecodeSpec, rows: np.ndarray) -> str:
    return _digest(source, spec, rows)


def _digest(source: Source, spec: DecodeSpec, rows: np.ndarray, with_times: bool = False) -> str:
    """Hash names, file sizes, labels and how images are decoded; with times of change too for the memory of a check."""
    settings = {name: value for name, value in asdict(spec).items() if value is not None}
    digest = hashlib.blake2b(json.dumps([1, settings, source.class_names], sort_keys=True).encode(), digest_size=16)
    for row in rows.tolist():
        name = source.names.raw(row)
        digest.update(b"%d:" % len(name) + name)
    digest.update(np.ascontiguousarray(source.sizes()[rows]).tobytes())
    if source.labels is not None:
        digest.update(source.labels[rows].tobytes())
    times = source.mtimes() if with_times else None
    if times is not None:
        digest.update(times.tobytes())
    return digest.hexdigest()
