"""`open_dataset`: from a path, a name or an object to an `ImageDataset`, checked, with clear lines
on what was done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ddpm_lib.core import spelling
from ddpm_lib.core.keywords import answers_wrong_keywords
from ddpm_lib.core.registry import unknown_name
from ddpm_lib.data.checking import (
    ReadingOptions,
    cache_limit_bytes,
    check_images,
    good_rows,
    sample_contents,
)
from ddpm_lib.data.condition_files import KnownOfData, add_conditions, known_of
from ddpm_lib.data.condition_images import OpenFolder
from ddpm_lib.data.condition_words import ConditionWords, read_all_words
from ddpm_lib.data.contents import make_origin
from ddpm_lib.data.dataset import ImageDataset, MemoryStore, Store, StreamStore
from ddpm_lib.data.decode_spec import MAX_PIXELS, Background, DecodeSpec, make_spec
from ddpm_lib.data.decoding import Scan, decode_all
from ddpm_lib.data.file_lists import FileList, Files, choose_rows, read_list
from ddpm_lib.data.fits import check_fits
from ddpm_lib.data.listed_source import ListedSource
from ddpm_lib.data.looks import look_at
from ddpm_lib.data.measurements.measuring_options import (
    Normalize,
    ValueOptions,
    kind_of,
    refuse_values,
)
from ddpm_lib.data.names import ChosenNames
from ddpm_lib.data.opening_words import (
    called,
    options_of_files,
    roots_of,
    said_of,
)
from ddpm_lib.data.probing import draws_numbers
from ddpm_lib.data.reading_notes import random_note, streamed_note
from ddpm_lib.data.source import Source
from ddpm_lib.data.split import joined
from ddpm_lib.data.stored_sizes import stored_sizes
from ddpm_lib.data.transforms import AppliedTransform, make_transform
from ddpm_lib.data.workers import check_num_workers

_CHOICES = {
    "labels": ("auto", "folder", "prefix", "none"),
    "on_bad_image": ("error", "skip"),
    "cache": ("auto", "ram", "disk", "none"),
    "frames": ("first", "all"),
}


@answers_wrong_keywords
def open_dataset(
    data: Any = None,
    *,
    image_size: int | Sequence[int],
    channels: int = 3,
    fit: Literal["crop", "pad", "stretch", "patch"] = "crop",
    labels: Literal["auto", "folder", "prefix", "none"] = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    files: Files | None = None,
    data_root: str | os.PathLike[str] | None = None,
    download: bool = False,
    on_bad_image: Literal["error", "skip"] = "error",
    cache: Literal["auto", "ram", "disk", "none"] = "auto",
    cache_limit_mb: float | None = None,
    num_workers: int | None = None,
    background: Background = "white",
    max_pixels: int = MAX_PIXELS,
    value_range: Sequence[float] | None = None,
    normalize: Normalize | None = None,
    slice_axis: int | None = None,
    frames: Literal["first", "all"] = "first",
    transform: Callable[[Any], Any] | None = None,
    conditions: Sequence[str] | str = (),
    verify: bool = True,
    scan_file: str | os.PathLike[str] | None = None,
    log: Callable[[str], None] | None = None,
    require_labels: bool = False,
) -> ImageDataset:
    """Open images from almost anywhere as uint8 tensors of one shape.

    Every image is decoded once when the set is opened, in parallel: into RAM if it fits (then
    training needs no workers), else only to check it, so that a broken file stops the run now and
    not after a night. All broken files are named at once.

    Args:
        data: "shapes" or None (the built-in `Shapes`); the name of a set of torchvision (mnist,
            fashion_mnist, kmnist, emnist, cifar10, cifar100, svhn, stl10, celeba, flowers102, …);
            a folder of pictures (recursive; JPEG, PNG,
            WEBP, BMP, TIFF, GIF, PPM); a .zip or .tar archive of such, a folder in one
            (pets.zip/train), or shards of WebDataset, read in place; a 🤗 dataset as a local path
            (`save_to_disk`, parquet), a hub name or an object; `.npz`/`.npy` of uint8 images; any
            torch Dataset of dicts, (image, label) tuples or images (uint8 or PIL; other numbers
            with `value_range`); a uint8 array (n, h, w, c) or (n, c, h, w), a pair (images, labels)
            or a dict of arrays; a list of paths, of pictures or of pairs of those and labels; a
            pandas table with a column of paths or pictures.
        image_size: Side in pixels, or (height, width).
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); any number of measured values.
        fit: "crop" (keep the aspect ratio, centred, cut the rest), "pad" (keep all, fill with
            `background`), "stretch" (squash); of measured values also "patch" (cut out a part of
            that size, in each reading another one).
        labels: "auto" (sub-folders if there are two or more; the label column; a note where that
            makes no classes), "folder", "prefix" (`cat_001.jpg`), "none".
        image_column: Column or key of the images, where the usual names do not find it.
        label_column: Column or key of the labels; what it holds must then make classes.
        split: Which split of a 🤗 dataset, a folder of splits or of parquet files; of a set of
            torchvision, default: its training split.
        files: Which of the images are used: the path of a list, a name per line, which `ddpm audit`
            writes with --write-list; or names. They are relative to the folder of the data, or
            numbers of rows. Their order does not matter; groups in it stay on one side of a split.
        data_root: Where the files of torchvision's sets lie; default: $DDPM_LIB_DATA, else
            `datasets` in the library's cache.
        download: Whether torchvision may download what is missing there.
        on_bad_image: "error" names every unusable file; "skip" leaves them out, counted (the
            fingerprint changes with them).
        cache: "auto" (RAM if it fits the limit and images stay the same), "ram" (of random
            transforms one version of each image), "disk" (once into a mapped file of the library's
            cache, which ranks and later runs share; for files without transforms), "none" (read on
            demand).
        cache_limit_mb: Limit of "auto" in MB per process; default: 4,096 or a quarter of the
            available memory, shared over the local ranks.
        num_workers: Processes for decoding; default: the CPUs this process may use, shared over the
            local ranks. A torch Dataset is always read in other processes, unless it is 0.
        background: Colour under transparent pixels (channels 1 and 3) and around padded images.
        max_pixels: Larger images are refused before they are decompressed.
        value_range: (black, white) of images of more than 8 bits, such as (0, 4095) for 12 bits or
            (-160, 240) for a window of a CT; values outside become black and white. Default: 0 and
            65,535 for 16 bits; others need it.
        normalize: Take the data for measured values of any type and number of channels, not for
            pictures: "affine" (lowest and highest value of each channel become 0 and 1),
            "quantile" (spread evenly), or a `Normalization` that was fitted before. Items are then
            float32 in [0, 1]; `dataset.normalization.inverse` gives values in their units.
        slice_axis: Of measured volumes: each slice along this axis (0, 1, 2) is an image.
        frames: "first" page or frame of a file in a folder, or "all" of them, each an image (TIFF
            stacks, GIF, APNG).
        transform: A callable on each picture, before it gets `image_size`: from a PIL picture (L,
            RGB or RGBA, by `channels`) to one of the same mode, to uint8 (c, h, w) or to floats in
            [0, 1], such as one of torchvision.transforms.v2. One that draws from the global
            generators makes another image in every reading, the same one for the same (seed, slot)
            of a training; the result of others is kept in RAM like any image. It is part of the
            fingerprint by its repr or its name.
        conditions: What comes with each image, written NAME=SOURCE[:COLUMN] (docs/conditions.md),
            such as "age=meta.csv:age", ":" before a column of the data itself, or the folder of
            masks; they are further fields of the items.
        verify: False skips the check of sets that do not fit in RAM; a broken file is then named
            when it is first met.
        scan_file: Remembers the result of that check (JSON), so that it runs once as long as no
            file changes.
        log: Is given progress and the `notes`, line by line.
        require_labels: Whether labels are needed: then "auto" fails where it makes none of those it
            finds.

    Returns:
        An `ImageDataset`.

    Raises:
        FileNotFoundError: If there is no such folder, or no picture in it.
        BadImagesError: If images cannot be used (a ValueError), all of them named.
        ValueError: If an option or the layout of the data is wrong; the message says what to do.
    """
    words = {"labels": labels, "on_bad_image": on_bad_image, "cache": cache, "frames": frames}
    for option, value in words.items():
        if value not in _CHOICES[option]:
            raise ValueError(unknown_name(option, value, _CHOICES[option]))
    listed = None if files is None else read_list(files)
    wanted = read_all_words(conditions)
    warning = check_num_workers(num_workers)
    if warning and log:
        log(warning)
    options = {
        "split": split,
        "files": options_of_files(files),
        "data_root": None if data_root is None else os.fspath(data_root),
        "download": download,
        "image_column": image_column,
        "label_column": label_column,
        "labels": labels,
        "frames": frames,
        "on_bad_image": on_bad_image,
        "background": background,
        "value_range": value_range,
        "fit": fit,
        "max_pixels": max_pixels,
        "transform": None if transform is None else str(transform),
        "conditions": tuple(condition.written for condition in wanted),
    }

    def pictures(folder: Path, size: tuple[int, int], bands: int) -> ImageDataset:
        way: dict[str, Any] = {"cache": cache, "cache_limit_mb": cache_limit_mb}
        way |= {"num_workers": num_workers, "background": background, "max_pixels": max_pixels}
        way |= {"fit": fit, "labels": "none"}
        return open_dataset(folder, image_size=size, channels=bands, **way).steady()

    file = None if scan_file is None else Path(scan_file)
    limit = cache_limit_bytes(cache_limit_mb)
    way = ReadingOptions(on_bad_image, cache, limit, num_workers, verify, file, log)
    if normalize is not None:
        options |= {"normalize": kind_of(normalize), "slice_axis": slice_axis}
        values = ValueOptions(image_size, channels, fit, max_pixels, slice_axis, require_labels)
        made, about = _measured(data, normalize, values, options, way, listed, pictures)
        return _told(add_conditions(made, wanted, about), log)
    refuse_values(fit, slice_axis)
    spec = make_spec(image_size, channels, fit, background, max_pixels, value_range)
    spec = replace(spec, transform=make_transform(transform))
    options["transform"] = None if spec.transform is None else str(spec.transform)
    opened = _ready(data, spec, labels, options, listed, wanted)
    known: dict[str, Any] = {"column": getattr(opened, "column", None)}
    if opened is None:
        from ddpm_lib.data.sources import find_source

        asked = labels, image_column, label_column, split, require_labels
        source = find_source(data, spec, *asked, num_workers == 0, frames, data_root, download)
        source, groups = _listed(source, listed, data)
        opened = _finish(source, spec, way)
        opened.opened_with, opened.applied = options, AppliedTransform(spec.transform)
        opened.groups = None if groups is None else groups[opened.rows]
        known = known_of(source)
    opened = add_conditions(opened, wanted, KnownOfData(spec, pictures, **known))
    return _told(opened, log)


def _told(opened: ImageDataset, log: Callable[[str], None] | None) -> ImageDataset:
    for note in opened.notes if log else ():
        log(note)  # type: ignore[misc]
    return opened


def _measured(
    data: Any,
    normalize: Normalize,
    values: ValueOptions,
    options: dict[str, Any],
    way: ReadingOptions,
    listed: FileList | None,
    open_folder: OpenFolder,
) -> tuple[ImageDataset, KnownOfData]:
    """Open measured values, and normalize them; with what is known for their conditions."""
    from ddpm_lib.data.measurements.opening_measured import fitted, open_values, stored_size_of

    source, spec = open_values(data, values, options)
    chosen, groups = _listed(source, listed, data)
    own = source.groups  # slices of one volume stay together, whatever a list says
    if own is not None:
        groups = joined(groups, own[chosen.rows] if isinstance(chosen, ListedSource) else own)
    opened = _finish(chosen, spec, way)
    opened.groups = None if groups is None else groups[opened.rows]
    opened.opened_with = options
    made = fitted(opened, source, spec, normalize)
    known = {**known_of(chosen), "size": stored_size_of(chosen, spec)}
    return made, KnownOfData(spec, open_folder, **known)


def _listed(source: Source, listed: FileList | None, data: Any) -> tuple[Source, np.ndarray | None]:
    """Return the images of a source that a list names, and their groups, if any."""
    if listed is None:
        return source, None
    chosen = choose_rows(listed, source.names, roots_of(source), called(data))
    note = said_of(listed, len(chosen.rows), source)
    return ListedSource(source, chosen.rows, note), chosen.groups


def _ready(
    data: Any,
    spec: DecodeSpec,
    labels: str,
    options: dict[str, Any],
    listed: FileList | None,
    conditions: Sequence[ConditionWords] = (),
) -> ImageDataset | None:
    """Return what needs no decoding: the built-in shapes, or a dataset of ours."""
    if data is None or (isinstance(data, str) and data == "shapes"):
        from ddpm_lib.data.shapes import Shapes

        check_fits("built-in images", options)
        turned = any(words.own_column == "angle" for words in conditions)
        shapes = Shapes(spec.image_size, channels=spec.channels, turned=turned)
        if os.path.isdir("shapes"):
            shapes.notes.append(
                '"shapes" means the built-in set; write "./shapes" for the folder of that name'
            )
        drawn: Any = without_labels(shapes) if labels == "none" else shapes
        if listed is not None:
            chosen = choose_rows(listed, drawn.names, (), "the built-in shapes")
            drawn = drawn.subset(chosen.rows)
            drawn.groups = chosen.groups
        drawn.column = shapes.column  # of all shapes, by their rows
        return drawn
    if isinstance(data, ImageDataset):
        check_fits("an ImageDataset that is open already", options, data.opened_with)
        if (data.channels, *data.image_size) != spec.shape:
            raise ValueError(
                f"The dataset holds images of (c, h, w) = {(data.channels, *data.image_size)}, but"
                f" {spec.shape} is asked for. Open it with the {spelling.option('image_size')} and"
                " channels of the model."
            )
        return without_labels(data) if labels == "none" else data
    return None


def without_labels(data: ImageDataset) -> ImageDataset:
    """Return the same images without labels."""
    bare = data.subset(np.arange(len(data)))
    bare._reading = data._reading
    bare._labels, bare.class_names, bare.notes = None, None, data.notes
    return bare


def _finish(source: Source, spec: DecodeSpec, way: ReadingOptions) -> ImageDataset:
    """Decode or check everything, and build the dataset of what is good."""
    n, size = len(source), len(source) * int(np.prod(spec.shape)) * spec.dtype.itemsize
    patches = spec.draws and spec.transform is None
    keep = way.cache == "ram" or (way.cache == "auto" and size <= way.limit and not patches)
    notes: list[str] = []
    drawn = spec.transform is not None and draws_numbers(source, spec)
    if spec.transform is not None:
        notes.append(f"transform: {spec.transform}")
    if source.foreign:
        source.look(spec, keep or way.verify, way.log)
    source.random |= drawn
    scan, images, content = None, getattr(source, "ready", None), None
    mapped: Store | None = None
    if images is not None:
        notes.append(f"{n:,} images in RAM ({size / 1e6:,.1f} MB)")
        content = source.sizes()
    elif way.cache == "disk":
        from ddpm_lib.data.disk_cache import mapped_images

        scan, mapped = mapped_images(source, spec, way, notes)
        images, content = mapped.images.numpy(), scan.content
    elif keep and not (source.random and way.cache == "auto"):
        scan = decode_all(source, spec, keep=True, num_workers=way.workers, log=way.log)
        images, content = scan.images, scan.content
        if scan.random and way.cache == "auto":
            source.random, images = True, None
        else:
            notes.append(
                f"{n:,} images decoded once into RAM ({size / 1e6:,.1f} MB, {scan.seconds:.1f} s)"
            )
    if images is None:
        notes.append(streamed_note(source, size, way, keep, patches))
        scan = scan or check_images(source, spec, way, notes)
        content = scan.content if scan is not None else sample_contents(source, spec, notes)
    source.random |= scan is not None and scan.random
    if source.random:
        content = None
        notes.append(random_note(images is not None, way.cache))
    rows = good_rows(source, scan, way, notes)
    if source.gives_labels and scan is not None:
        source.take_labels({row: scan.labels[row] for row in rows.tolist()})
    notes += scan.notes() if scan is not None else []
    if type(spec) is DecodeSpec:
        notes += look_at(source, spec, rows, images, scan.flags if scan is not None else None)
    if mapped is None and images is not None:
        mapped = MemoryStore(torch.from_numpy(images))
    if len(rows) == 1:
        notes.append("one image only: a model can do no more than memorise it")
    return _built(source, spec, rows, notes, mapped or StreamStore(source, spec), content, scan)


def _built(
    source: Source,
    spec: DecodeSpec,
    rows: np.ndarray,
    notes: list[str],
    store: Store,
    content: np.ndarray | None,
    scan: Scan | None,
) -> ImageDataset:
    """Build the dataset of what was decoded or checked."""
    origin = make_origin(source, spec, rows, ChosenNames(source.names, rows), content)
    opened = ImageDataset(
        store,
        labels=origin.labels,
        class_names=source.class_names,
        names=source.names,
        rows=rows,
        fingerprint=origin.fingerprint,
        notes=[*source.notes, *notes],
        origin=origin,
    )
    if scan is not None and not scan.known and len(spec.image_size) == 2:
        opened.stored = stored_sizes(scan.sizes[rows], spec)
    return opened
