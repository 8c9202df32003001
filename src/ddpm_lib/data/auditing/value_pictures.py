"""Measured values as the audit sees them: pictures of 8 bits to compare, statistics in units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ddpm_lib.core.spelling import option
from ddpm_lib.core.spread import evenly
from ddpm_lib.data.auditing.value_columns import ChannelFacts, ValueColumns
from ddpm_lib.data.dataset import ImageDataset
from ddpm_lib.data.decode import Decoded, ImageError, fit_array
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.measurements.measured_spec import WHOLE, MeasuredSpec, fit_values
from ddpm_lib.data.measurements.normalization import Normalization, check_kind, fit
from ddpm_lib.data.measurements.value_files import Values
from ddpm_lib.data.measurements.value_source import AnyValues, ValueSource, first_values
from ddpm_lib.data.measurements.value_survey import opened_values, survey_values
from ddpm_lib.data.names import ChosenNames
from ddpm_lib.data.readers import shared
from ddpm_lib.data.source import BadImagesError, Examined, Source, content_hash

FITTED = 200
"""Images that say which values are black and which white."""


class OpenedValues(ValueSource):
    """A dataset of measured values that is open already, as a source."""

    def __init__(self, data: ImageDataset) -> None:
        self.opened, self.names, self.notes = data, data.names, list(data.notes)
        self.labels = None if data.labels is None else data.labels.numpy()
        self.class_names, self.groups = data.class_names, data.groups

    def values(self, row: int) -> Values:
        """Return the values of an image as they are stored; raises `ImageError` or OSError."""
        try:
            array = self.opened.stored_values([row])[0]
        except BadImagesError as error:
            raise ImageError(error.bad[0][1]) from None
        return Values(array, self.opened.measured.get("unit"))

    def sizes(self) -> np.ndarray:
        """Return zeros: there are no files."""
        return np.zeros(len(self), dtype=np.int64)


class ValuePictures(Source):
    """Measured values as pictures of 8 bits, from the lowest to the highest value of the set: of
    one channel, or of the first three.

    Args:
        values: The values.
        spec: Their type and number of channels.
        kind: The normalization that the pictures are made by.
        unit: What they are measured in.
        map: Of values to [0, 1], where it is known: that of the part that is trained on.
        rows: Which of them, int64; None: all.

    Attributes:
        groups: int64 (n,): slices of one number are of one volume.
    """

    slice_axis: int | None = None
    """The axis along which volumes are cut."""

    def __init__(
        self,
        values: AnyValues,
        spec: MeasuredSpec,
        kind: str,
        unit: str | None,
        map: Normalization | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self.source, self.spec, self.kind, self.unit = values, replace(spec, fit=WHOLE), kind, unit
        self.rows = np.arange(len(values)) if rows is None else rows
        self.names = values.names if rows is None else ChosenNames(values.names, rows)
        self.labels = None if values.labels is None else values.labels[self.rows]
        self.groups = None if values.groups is None else values.groups[self.rows]
        self.class_names, self.notes = values.class_names, list(values.notes)
        n, c = len(self.rows), spec.channels
        self._facts = shared((n, c, 6), np.float64)  # low, high, mean, variance, share at both
        self.map = map or self._fit()

    def _fit(self) -> Normalization:
        chosen = []
        for row in evenly(min(FITTED, len(self)), len(self)).tolist():
            try:
                chosen.append(self._whole(row))
            except (ImageError, OSError):
                continue  # it is named where all are read
        if not chosen:
            self._whole(0)  # says why
        flat = [one.reshape(1, len(one), 1, -1) for one in chosen]
        read = lambda rows: flat[int(rows[0])]  # noqa: E731
        blocks = [np.array([k]) for k in range(len(flat))]
        total = sum(one[0, 0].size for one in flat)
        return fit(self.kind, self.spec.stored, read, blocks, total)[0]

    def _whole(self, row: int) -> np.ndarray:
        return fit_values(self.source.values(int(self.rows[row])).array, self.spec).pixels

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Make a picture of one image and fit it; raises `ImageError` or OSError."""
        return self._picture(self._whole(row), spec)

    def examine(self, row: int, spec: DecodeSpec) -> Examined:
        """Do as `load`, with a hash of the values, and keep what they are like."""
        values = self._whole(row)
        flat = values.reshape(len(values), -1).astype(np.float64)
        low, high = flat.min(1), flat.max(1)
        ends = [(flat == end[:, None]).mean(1) for end in (low, high)]
        self._facts[row] = np.stack([low, high, flat.mean(1), flat.var(1), *ends], 1)
        named = f"{values.shape}{values.dtype}".encode()
        content = content_hash(named + np.ascontiguousarray(values).tobytes())
        return Examined(self._picture(values, spec), content)

    def _picture(self, values: np.ndarray, spec: DecodeSpec) -> Decoded:
        seen = self.map.forward(values[None])[0]
        seen = seen[:1] if len(seen) < 3 else seen[:3]
        pixels = np.rint(seen * 255).astype(np.uint8).transpose(1, 2, 0)
        return fit_array(np.repeat(pixels, 3 // pixels.shape[2], 2), spec)

    def is_flat(self, row: int) -> bool:
        """Say whether all values of each channel of an image are the same."""
        low, high = self._facts[row, :, 0], self._facts[row, :, 1]
        return bool((low == high).all())

    def columns(self, good: np.ndarray) -> ValueColumns:
        """Return what the values are like.

        Args:
            good: Which images count, bool (n,).
        """
        facts = self._facts[good]
        low, high = facts[:, :, 0].min(0), facts[:, :, 1].max(0)
        # Within images and between them: squares lose a spread that is small beside an offset.
        mean, std = facts[:, :, 2].mean(0), np.sqrt(facts[:, :, 3].mean(0) + facts[:, :, 2].var(0))
        ends = [
            np.where(facts[:, :, k] == end, facts[:, :, 4 + k], 0).mean(0)
            for k, end in enumerate((low, high))
        ]
        channels = tuple(
            ChannelFacts(*(float(v) for v in one)) for one in zip(low, high, mean, std, *ends)
        )
        return ValueColumns(self.spec.stored, self.unit, channels, self.kind)

    def sizes(self) -> np.ndarray:
        """Return what tells that an image was replaced."""
        return self.source.sizes()[self.rows]


@dataclass(frozen=True)
class Measuring:
    """What is said of measured values; None: as the data say.

    Attributes:
        normalize: The normalization.
        channels: How many there are.
        slice_axis: The axis along which volumes are cut.
    """

    normalize: str | None = None
    channels: int | None = None
    slice_axis: int | None = None


def open_value_pictures(
    data: Any,
    options: Mapping[str, Any],
    asked: Measuring,
    like: ValuePictures | None = None,
) -> ValuePictures:
    """Open measured values for an audit.

    Args:
        data: What `open_dataset` takes with `normalize`.
        options: Those that say how data are read.
        asked: What is said of the values.
        like: The part that is trained on, for one that is held out.

    Raises:
        ValueError: If they cannot be looked at.
    """
    if like is not None:
        asked = Measuring(like.kind, like.spec.channels, like.slice_axis)
    if asked.normalize is not None:
        check_kind(asked.normalize)
    found = opened_values(data, False, asked.channels, asked.slice_axis, options)
    kind, unit = asked.normalize, first_values(found.source).unit
    if kind is None:
        count, axis = found.spec.channels, found.slice_axis
        seen = survey_values(data, channels=count, slice_axis=axis, **options)
        kind = "affine" if seen.values is None else seen.values.kind
    made = ValuePictures(found.source, found.spec, kind, unit, None if like is None else like.map)
    made.slice_axis = found.slice_axis
    return made


def listed_values(made: ValuePictures, rows: np.ndarray) -> ValuePictures:
    """Return some of the pictures."""
    chosen = ValuePictures(made.source, made.spec, made.kind, made.unit, made.map, rows)
    chosen.slice_axis = made.slice_axis
    return chosen


def pictures_of_open(data: ImageDataset) -> ValuePictures:
    """Make pictures of a dataset of measured values that is open already.

    Raises:
        ValueError: If it holds volumes.
    """
    if len(data.image_size) != 2:
        raise ValueError(
            f"The audit looks at images; this set holds entries of shape"
            f" {(data.channels, *data.image_size)}. Of volumes it sees slices: open them with"
            f" {option('slice_axis', 0)}."
        )
    stored, size = data.measured["stored"], (data.image_size[0], data.image_size[1])
    spec = MeasuredSpec(size, data.channels, "crop", stored=stored)
    kind = "affine" if data.normalization is None else data.normalization.kind
    return ValuePictures(OpenedValues(data), spec, kind, data.measured.get("unit"))
