"""A first look at measured values: how many, how large, of how many channels, and which
normalization suits them.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_lib.core.spelling import option
from ddpm_lib.core.spread import evenly
from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.file_lists import choose_rows, read_list
from ddpm_lib.data.fits import DEFAULTS
from ddpm_lib.data.measurements.array_stores import store_in
from ddpm_lib.data.measurements.dicom_series import DicomSeries
from ddpm_lib.data.measurements.measured_spec import WHOLE, MeasuredSpec, fit_values
from ddpm_lib.data.measurements.measuring_options import ValueOptions
from ddpm_lib.data.measurements.normalization import NARROW
from ddpm_lib.data.measurements.opening_measured import open_values
from ddpm_lib.data.measurements.value_files import SUFFIXES, Values, ending_of
from ddpm_lib.data.measurements.value_source import (
    AnyValues,
    SliceSource,
    StackSource,
    ValueFiles,
    first_values,
)
from ddpm_lib.data.opening_words import called, roots_of
from ddpm_lib.data.suffixes import PICTURES
from ddpm_lib.data.survey_facts import LOOKED_AT, SIDE, Survey, ValueFacts, mirrored_farther

_ASKED = 9
"""Files of a folder that are asked whether they are pictures."""
MOST_CHANNELS = 32
"""More entries than this along the first or last axis are no channels."""
_OF_VALUES = (
    "split",
    "image_column",
    "label_column",
    "labels",
    "frames",
    "on_bad_image",
    "background",
    "value_range",
    "data_root",
    "download",
)
_READING: dict[str, Any] = {name: DEFAULTS[name] for name in _OF_VALUES}


@dataclass(frozen=True)
class OpenedValues:
    """Measured values, opened.

    Attributes:
        source: Where they come from.
        spec: How they are read, at SIDE along each axis.
        slice_axis: See `ValueFacts`.
        why: Why along that one.
    """

    source: AnyValues
    spec: MeasuredSpec
    slice_axis: int | None
    why: str


def survey_values(
    data: Any,
    *,
    volumes: bool = False,
    channels: int | None = None,
    slice_axis: int | None = None,
    asked: bool = True,
    **options: Any,
) -> Survey:
    """Look at a set of measured values.

    Args:
        data: What `open_dataset` takes with `normalize`.
        volumes: Whether volumes are learned whole, not in slices.
        channels: How many there are; None: as the shape of the first says.
        slice_axis: Along which axis volumes are cut; None: across their coarsest one.
        asked: See `ValueFacts`.
        **options: Options of `open_dataset` that say how data are read.

    Raises:
        FileNotFoundError, OSError: As `open_dataset` does.
        ValueError: If they are no values of one type that can be learned; saying why.
    """
    files = options.pop("files", None)
    opened = opened_values(data, volumes, channels, slice_axis, options)
    source, spec = opened.source, opened.spec
    used = np.arange(len(source))
    if files is not None:
        used = choose_rows(read_list(files), source.names, roots_of(source), called(data)).rows
    rows = used[evenly(min(len(used), LOOKED_AT), len(used))].tolist()
    every = {row: _one(source, row, spec) for row in rows}
    read = [one for one in every.values() if one is not None]
    if not read:
        first_values(source)  # says why none can be read
        raise ValueError(
            f"None of the {len(rows):,} images looked at fits: {_why_not(source, rows[0], spec)}."
        )
    values = np.stack([one for one, _ in read]).astype(np.float64)
    sizes = np.array([size for _, size in read])
    low, high = (f(values, axis=(0, *range(2, values.ndim))) for f in (np.min, np.max))
    wide = np.maximum(high - low, 1e-300).reshape(1, -1, *[1] * (values.ndim - 2))
    level = (values - low.reshape(wide.shape)) / wide
    spreads = 2 * level.std(axis=(0, *range(2, level.ndim)))[high > low]
    spread = float(spreads.min()) if len(spreads) else 1.0
    facts = ValueFacts(
        stored=spec.stored,
        kind="quantile" if spread < NARROW else "affine",
        spread=spread,
        slice_axis=opened.slice_axis,
        why_sliced=opened.why,
        size=tuple(int(v) for v in np.median(sizes, axis=0)),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        unit=first_values(source).unit,
        asked=asked,
    )
    labels = None if source.labels is None else source.labels[used]
    counts = None
    if labels is not None:
        known = len(source.class_names or ()) or int(labels.max()) + 1
        counts = tuple(np.bincount(labels, minlength=known).tolist())
    names = source.class_names or (tuple(map(str, range(len(counts or ())))) or None)
    flat, groups = level.ndim == 4, source.groups
    if groups is not None:
        groups = groups[[row for row, one in every.items() if one is not None]]
    return Survey(
        images=len(used),
        looked_at=len(read),
        sizes=sizes[:, :-3:-1],
        grey=False,
        fixed=False,
        channels=spec.channels,
        class_names=None if labels is None else names,
        class_counts=counts,
        farther=mirrored_farther(torch.from_numpy(level), groups) if flat else None,
        notes=tuple(source.notes),
        independent=None if groups is None else len(np.unique(groups)),
        values=facts,
    )


def opened_values(
    data: Any,
    volumes: bool,
    channels: int | None,
    slice_axis: int | None,
    options: Mapping[str, Any],
) -> OpenedValues:
    """Open measured values of which nothing is known but what they say; see `survey_values`."""
    reading = {**_READING, **options}
    most = int(reading.pop("max_pixels", 2**40))

    def opened(count: int, axis: int | None) -> tuple[AnyValues, MeasuredSpec]:
        size = (SIDE,) * (3 if volumes else 2)
        asked = ValueOptions(size, count, "stretch", most, axis)
        return open_values(data, asked, reading)

    source, spec = opened(channels or 1, slice_axis)
    if isinstance(source, DicomSeries) or volumes:
        slice_axis = None
    first = first_values(source)
    why = ""
    if not volumes and slice_axis is None:
        slice_axis, why = _axis(source, first, channels)
        if slice_axis is not None and not isinstance(source, SliceSource):
            source, spec = opened(channels or 1, slice_axis)
            first = first_values(source)
    count = channels or _channels(first.array.shape, 3 if volumes else 2)
    if isinstance(source, SliceSource) and slice_axis is None:
        slice_axis = source.axis
    return OpenedValues(source, replace(spec, channels=count), slice_axis, why)


def _axis(source: AnyValues, first: Values, channels: int | None) -> tuple[int | None, str]:
    """Return the axis along which volumes are to be cut, and why; None for images."""
    if isinstance(source, SliceSource):
        return source.axis, "slices as they were taken"
    shape, spacing = first.array.shape, first.geometry.get("spacing")
    whole = bool(first.geometry) and len(shape) >= 3
    if not whole and (len(shape) == 2 or _fits_channels(shape, channels)):
        return None, ""
    if isinstance(source, StackSource) or len(shape) not in (3, 4):
        raise ValueError(
            f"Its entries have the shape {shape}, which is that of volumes: learn them whole, with"
            f" {option('image_size', '16 16 16')}, or pass slices,"
            " array.reshape(-1, *array.shape[2:])."
        )
    if spacing and max(spacing) > 1.01 * min(spacing):
        axis = int(np.argmax(spacing))
        told = "×".join(f"{step:.3g}" for step in spacing)
        return axis, f"voxels of {told} are coarsest along axis {axis}"
    return len(shape[:3]) - 1, "voxels are even; the last axis"


def _fits_channels(shape: tuple[int, ...], channels: int | None) -> bool:
    if len(shape) != 3:
        return False
    if channels is not None and channels in (shape[0], shape[-1]):
        return True
    return min(shape[0], shape[-1]) <= MOST_CHANNELS and min(shape[0], shape[-1]) < shape[1]


def _channels(shape: tuple[int, ...], dims: int) -> int:
    """Return how many channels images of a shape have."""
    if len(shape) == dims:
        return 1
    if len(shape) == dims + 2 and shape[0] == 1:
        shape = shape[1:]
    return min(shape[0], shape[-1]) if len(shape) == dims + 1 else 1


def _one(
    source: AnyValues, row: int, spec: MeasuredSpec
) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """Return an image's values at SIDE along each axis, and how large it is; None for a bad one."""
    try:
        return _fitted(source.values(row).array, spec)
    except (ImageError, OSError):
        return None  # training names it, and says what to do


def _why_not(source: AnyValues, row: int, spec: MeasuredSpec) -> str:
    try:
        _fitted(source.values(row).array, spec)
    except (ImageError, OSError) as error:
        return f"{source.names[row]}: {error}"
    return "they could not be read"


def _fitted(array: np.ndarray, spec: MeasuredSpec) -> tuple[np.ndarray, tuple[int, ...]]:
    if len(spec.image_size) == 2:
        found = fit_values(array, spec)
        return found.pixels, (found.height, found.width)
    whole = fit_values(array, replace(spec, fit=WHOLE)).pixels
    picks = [evenly(min(SIDE, size), size) for size in whole.shape[1:]]
    small = whole[np.ix_(range(len(whole)), *picks)]
    if small.shape[1:] != spec.image_size:
        padding = [
            (0, 0),
            *((0, want - have) for want, have in zip(spec.image_size, small.shape[1:])),
        ]
        small = np.pad(small, padding, mode="edge")
    return small, whole.shape[1:]


def are_values(data: Any) -> bool:
    """Say whether data lie on the disk as measured values that no picture can hold: HDF5, Zarr, or
    files of grey values of more than 8 bits, of other numbers of channels, or of volumes, where
    most of the pictures of a folder are such.
    """
    if not isinstance(data, str | os.PathLike) or not os.fspath(data):
        return False
    written = os.fspath(data)
    if store_in(written) is not None:
        return True
    if not Path(written).expanduser().exists():
        return False
    asked = ValueOptions(SIDE, 1, "stretch", 2**40, None)
    try:
        source = open_values(data, asked, {**_READING, "labels": "none"})[0]
        first = first_values(source).array
    except (ValueError, OSError):
        return False
    alone = os.fsencode(Path(written).suffix.lower()) in SUFFIXES
    volumes = ending_of(source.names.raw(0)) in (".nii", ".nii.gz")
    if alone or volumes or not isinstance(source, ValueFiles):
        return _no_picture(first)
    return _mostly_values(source)


def _mostly_values(source: ValueFiles) -> bool:
    """Whether most files of a folder are no pictures: beside photos there may be some that are
    none, such as statistics of the set.
    """
    pictures = source.tree.walk(PICTURES - SUFFIXES, Counter()).found
    if len(pictures) >= len(source):
        return False
    read = []
    for row in evenly(min(_ASKED, len(source)), len(source)).tolist():
        with contextlib.suppress(ImageError, OSError):  # what is wrong with it is said later
            read.append(_no_picture(source.values(row).array))
    return 2 * sum(read) > len(read)


def _no_picture(array: np.ndarray) -> bool:
    shape = array.shape
    coloured = len(shape) == 3 and (shape[-1] in (3, 4) or shape[0] in (3, 4))
    return array.ndim >= 2 and array.dtype != np.uint8 and not coloured
