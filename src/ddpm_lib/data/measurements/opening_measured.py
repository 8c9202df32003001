"""From a path or an array to a source of measured values, and to the set of their spec."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_lib.core.lost_paths import lost
from ddpm_lib.core.spelling import option
from ddpm_lib.data.archives.archive_files import archive_in, shards_in
from ddpm_lib.data.archives.archive_tree import ArchiveTree
from ddpm_lib.data.arrays import as_array, choose_arrays
from ddpm_lib.data.dataset import ImageDataset, StreamStore
from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.fits import check_fits
from ddpm_lib.data.folders import NoPicturesError, Table, with_labels
from ddpm_lib.data.labels import make_labels
from ddpm_lib.data.measurements.array_stores import ArrayStore, store_in
from ddpm_lib.data.measurements.dicom_series import DicomSeries, dicom_files
from ddpm_lib.data.measurements.measured_spec import (
    WHOLE,
    MeasuredSpec,
    make_measured_spec,
    placed,
    stored_type,
)
from ddpm_lib.data.measurements.measuring_options import Normalize, ValueOptions
from ddpm_lib.data.measurements.normalization import Normalization, Unfitted, check_kind, fit
from ddpm_lib.data.measurements.value_files import SUFFIXES, ending_of
from ddpm_lib.data.measurements.value_source import (
    AnyValues,
    SliceSource,
    StackSource,
    ValueFiles,
    first_values,
    geometries,
)
from ddpm_lib.data.numpy_files import check_npy, check_npz
from ddpm_lib.data.source import Source, content_hash, load_patiently
from ddpm_lib.data.split_files import split_files, split_folder
from ddpm_lib.data.trees import Tree

KINDS_READ = (
    "arrays, .npy, .npz, HDF5 and Zarr files, and folders or archives of .npy, .npz, TIFF, PNG,"
    " NIfTI or DICOM files"
)
_BLOCK = 64


def open_values(
    data: Any, asked: ValueOptions, options: Mapping[str, Any]
) -> tuple[AnyValues, MeasuredSpec]:
    """Open measured values.

    Args:
        data: A path or an array.
        asked: Size, channels, and how they are fitted.
        options: Those of `open_dataset` that say how data is read.

    Raises:
        FileNotFoundError: If there is no such path, or nothing in it.
        ValueError: If an option does not fit, or the values are none that can be trained on.
    """
    check_fits("measured values", options)
    size, channels = asked.image_size, asked.channels
    spec = make_measured_spec(size, channels, asked.fit, asked.max_pixels, "float32")
    slice_axis = asked.slice_axis
    if slice_axis not in (None, 0, 1, 2):
        raise ValueError(
            f"{option('slice_axis')} must be 0, 1 or 2, an axis of the volumes; got {slice_axis!r}."
        )
    source = _source(data, {**options, "insist": asked.insist})
    flat = len(spec.image_size) == 2
    if isinstance(source, DicomSeries) and flat and slice_axis is None:
        slice_axis = 0
    if slice_axis is not None:
        if not flat:
            raise ValueError(
                f"{option('slice_axis')} makes images of volumes; {option('image_size')} of three"
                " sizes asks for volumes. Leave one out."
            )
        if isinstance(source, StackSource):
            raise ValueError(
                f"{option('slice_axis')} is for folders of volumes; slices of an array (n, d, h, w)"
                " are images along the first axis of array.reshape(-1, h, w)."
            )
        source = SliceSource(source, slice_axis)
    first = first_values(source)
    try:
        return source, replace(spec, stored=stored_type(first.array.dtype))
    except ImageError as error:
        raise ValueError(f"{source.names[0]}: {error}.") from None


def stored_size_of(source: Source, spec: MeasuredSpec) -> Callable[[int], tuple[int, int] | None]:
    """Return what says (width, height) of the stored image of a row; None of a bad one."""
    whole = replace(spec, fit=WHOLE)

    def size(row: int) -> tuple[int, int] | None:
        try:
            found = source.load(row, whole)
        except (ImageError, OSError):
            return None  # what is wrong with it is said where it is decoded
        return found.width, found.height

    return size


def _source(data: Any, options: Mapping[str, Any]) -> AnyValues:
    labels = options["labels"]
    if isinstance(data, (np.ndarray, torch.Tensor)):
        check_fits("an array", options)
        array = as_array(data) if isinstance(data, torch.Tensor) else data
        return StackSource(lambda: array, "The array")
    if not isinstance(data, (str, os.PathLike)) or not os.fspath(data):
        raise ValueError(
            f"{option('normalize')} is for measured values: {KINDS_READ}; got"
            f" {type(data).__name__}."
        )
    written = os.fspath(data)
    path = Path(written).expanduser()
    stored = store_in(written)
    if stored is not None:
        return _from_store(*stored, options)
    archive = archive_in(path) if not path.is_dir() else None
    if archive is not None:
        return _files(ArchiveTree([archive[0]], archive[1], options["split"]), options)
    if path.is_dir():
        split = options["split"]
        if split is not None and not (path / split).is_dir() and shards_in(path):
            return _files(ArchiveTree(split_files(shards_in(path), split, path)), options)
        return _from_folder(split_folder(path, split), options)
    if path.is_file() and path.suffix.lower() in (".npy", ".npz"):
        return _from_numpy(path, options)
    if path.is_file() and os.fsencode(path.suffix.lower()) in SUFFIXES:
        bare = {**options, "labels": "none"}
        return _files(path.parent, bare, frozenset([os.fsencode(path.name)]))
    found = []
    if glob.has_magic(written):
        found = [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]
    if found:
        root = Path(os.path.commonpath([file.parent for file in found]))
        only = frozenset(os.fsencode(file.relative_to(root)) for file in found)
        return _files(root, {**options, "labels": labels}, only)
    if path.exists():
        raise ValueError(
            f"{written!r} is no set of measured values. Pass {KINDS_READ}; or leave"
            f" {option('normalize')} out for pictures."
        )
    raise FileNotFoundError(lost(data))


def _from_folder(root: Path, options: Mapping[str, Any]) -> AnyValues:
    try:
        return _files(root, options)
    except NoPicturesError as error:
        if shards_in(root):
            return _files(ArchiveTree(split_files(shards_in(root), None, root)), options)
        files = dicom_files(root)
        if not files:
            raise ValueError(
                f"{str(root)!r} holds no measured values. Pass {KINDS_READ}."
            ) from error
    check_fits("DICOM", options)
    if options["labels"] == "prefix":
        raise ValueError(
            "labels='prefix' does not fit DICOM. Sort the series into a folder per class, or use"
            ' labels="none" (--labels none).'
        )
    return DicomSeries(root, files, options["labels"])


def _files(
    root: Path | Tree, options: Mapping[str, Any], only: frozenset[bytes] | None = None
) -> ValueFiles:
    table = Table(options["image_column"], options["label_column"])
    source = ValueFiles(root, options["labels"], "first", table, only)
    strangers = [row for row in range(len(source)) if _is_stranger(source.names.raw(row))]
    if strangers:
        kept = frozenset(
            source.names.raw(row) for row in range(len(source)) if row not in set(strangers)
        )
        if not kept:
            raise NoPicturesError("nothing but other .gz files", source_others(strangers))
        source = ValueFiles(root, options["labels"], "first", table, kept)
    with_labels(source, options["insist"])
    return source


def source_others(rows: Sequence[int]) -> Any:
    """Count files that are no measured values."""
    from collections import Counter

    return Counter({b".gz": len(rows)})


def _is_stranger(name: bytes) -> bool:
    return ending_of(name) == ".gz"


def _from_numpy(path: Path, options: Mapping[str, Any]) -> StackSource:
    """Open an array of a file: .npy stays on the disk and is read where it is asked for."""
    check_fits(f"a {path.suffix.lower()} file", options)
    named = content_hash((options["image_column"] or "").encode())
    stamp = path.stat().st_size, path.stat().st_mtime_ns ^ named
    place = os.path.realpath(path)
    try:
        if path.suffix.lower() == ".npy":
            check_npy(path, held=False)
            return StackSource(
                lambda: np.load(place, mmap_mode="r", allow_pickle=False),
                path.name,
                stamp=stamp,
                place=place,
            )
        with np.load(path, allow_pickle=False) as archive:
            columns = options["image_column"], options["label_column"]
            image, label = choose_arrays(archive.files, path.name, options["labels"], *columns)
            if image is None and len(archive.files) == 1:
                image = archive.files[0]
            if image is None:
                raise ValueError(
                    f"{path.name} has no array named arr_0, images or x. There are:"
                    f" {', '.join(archive.files)}. Pass"
                    f" {option('image_column', archive.files[0])}."
                )
            check_npz(path, [name for name in (image, label) if name is not None])
            array = archive[image]
            marks = None if label is None else archive[label]
    except (OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is damaged or no numpy file: {error}") from None
    notes: list[str] = []
    made = _labels(marks, len(array), options, notes)
    source = StackSource(lambda: array, path.name, made, stamp, place)
    source.notes += notes
    return source


def _from_store(path: Path, asked: str, options: Mapping[str, Any]) -> StackSource:
    check_fits("HDF5 or Zarr", options)
    store = ArrayStore(path)
    name = store.choose(asked or options["image_column"] or "")
    size, time = store.stamp()
    changed = time ^ content_hash(name.encode())  # another array is another time
    notes: list[str] = []
    marks = None
    if options["labels"] != "none":
        marks = store.labels(name, options["label_column"])
    made = _labels(marks, store.shapes[name][0], options, notes)
    where = f"{path.name}:{name}"
    place = f"{os.path.realpath(path)}:{name}"
    source = StackSource(store.opener(name), where, made, (size, changed), place)
    source.notes += notes
    return source


def _labels(
    marks: np.ndarray | None, count: int, options: Mapping[str, Any], notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    if marks is None:
        return None, None
    if len(marks) != count:
        raise ValueError(f"There are {count:,} images but {len(marks):,} labels.")
    return make_labels(marks, None, options["insist"] or options["label_column"] is not None, notes)


def fitted(
    opened: ImageDataset, source: AnyValues, spec: MeasuredSpec, normalize: Normalize
) -> ImageDataset:
    """Return a set with its normalization: the one that is given, or fitted on all its images.

    Args:
        opened: The set as it was opened.
        source: What it was opened from.
        spec: How values are fitted.
        normalize: A kind, a normalization, or `Unfitted` for a set that is split first.

    Raises:
        ValueError: If a normalization is of other channels or another type.
    """
    first = first_values(source)
    geometry = placed(first.geometry, first.array, spec)
    opened.measured = {"stored": spec.stored, "unit": first.unit, "geometry": geometry}
    spacings = {str(geometry.get("spacing")) for geometry in geometries(source, _spread(source))}
    if len(spacings) > 1:
        opened.notes.append(
            f"volumes differ in the size of their voxels ({', '.join(sorted(spacings)[:3])}):"
            " samples get the geometry of the first"
        )
    if isinstance(normalize, Unfitted):
        return opened
    if isinstance(normalize, Normalization):
        return normalized(opened, normalize)
    return fit_to(opened, normalize)


def _spread(source: AnyValues) -> list[int]:
    groups = getattr(source, "groups", None)
    if groups is None:
        return np.unique(np.linspace(0, len(source) - 1, 8).astype(int)).tolist()
    return np.unique(groups, return_index=True)[1][:8].tolist()


def fit_to(train: ImageDataset, kind: str) -> ImageDataset:
    """Return training images normalized by a map that is fitted on them, and notes it.

    Raises:
        ValueError: If the kind is unknown.
    """
    raw = train.with_map(None).steady()
    store, rows, block, read = train._store, np.arange(len(raw)), _BLOCK, raw.stored_values
    size: Sequence[int] = raw.image_size
    if isinstance(store, StreamStore) and store.spec.fit == "patch":
        block, read = 1, functools.partial(_whole_values, store, train.rows)
        size = read(rows[:1]).shape[2:]
    total = int(np.prod((len(raw), *size)))
    blocks = (rows[k : k + block] for k in range(0, len(rows), block))
    stored = train.measured["stored"]
    found, notes = fit(check_kind(kind), stored, read, blocks, total)
    unit, geometry = train.measured["unit"], train.measured["geometry"]
    made = normalized(train, replace(found, unit=unit, geometry=geometry))
    made.measured = {**train.measured, "fitted_to": train.fingerprint}
    made.notes += [made.normalization.line(), *notes]
    return made


def _whole_values(store: StreamStore, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the values of an image of which patches are learned: all of them."""
    spec = replace(store.spec, fit=WHOLE)
    return load_patiently(store.source.load, int(rows[chosen[0]]), spec).pixels[None]


def fits_others(data: ImageDataset) -> bool:
    """Whether a map was fitted, when the images were opened, on others beside them, such as those
    that were split off since; one that was handed over is meant as it is.
    """
    fitted_to = data.measured.get("fitted_to")
    return fitted_to is not None and fitted_to != data.fingerprint


def normalized(data: ImageDataset, normalization: Normalization) -> ImageDataset:
    """Return a set that gives its values by a normalization that was fitted on another one.

    Raises:
        ValueError: If it is of other channels or another type.
    """
    stored = data.measured.get("stored")
    if normalization.channels != data.channels or normalization.dtype != stored:
        raise ValueError(
            f"The normalization is of {normalization.channels} channels of {normalization.dtype};"
            f" the data has {data.channels} of {stored}. Open the data that it was fitted on, or"
            " convert these."
        )
    same = data.with_map(normalization)
    same.measured = {k: v for k, v in data.measured.items() if k != "fitted_to"}
    return same
