"""The parts of the data that an audit looks at, opened: what is trained on, what is held out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ddpm_lib.data.auditing.audited_parts import OpenedSource, splits_of
from ddpm_lib.data.auditing.looking import Measure
from ddpm_lib.data.auditing.value_pictures import (
    Measuring,
    ValuePictures,
    listed_values,
    open_value_pictures,
    pictures_of_open,
)
from ddpm_lib.data.dataset import ImageDataset
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.file_lists import Files, choose_rows, read_list
from ddpm_lib.data.fits import check_fits
from ddpm_lib.data.listed_source import ListedSource
from ddpm_lib.data.measurements.value_survey import are_values
from ddpm_lib.data.opening_words import called, roots_of, said_of
from ddpm_lib.data.source import Source


@dataclass(frozen=True)
class PartOptions:
    """How the data of an audit are opened.

    Attributes:
        spec: How pictures are read.
        labels: See `open_dataset`.
        reading: Options of `open_dataset` on columns, frames and torchvision's sets.
        split: The split to look at; None: all.
        files: A list of images; None: all.
        here: Whether all is read in this process.
        measuring: What is said of measured values.
    """

    spec: DecodeSpec
    labels: str
    reading: dict[str, Any]
    split: str | None
    files: Files | None
    here: bool
    measuring: Measuring = field(default_factory=Measuring)


def open_parts(data: Any, val_data: Any, options: PartOptions) -> list[tuple[str, Source]]:
    """Open the part that is trained on, and those that are held out.

    Args:
        data: What `open_dataset` takes.
        val_data: Held-out images, likewise; None: the other splits of the data.
        options: How they are opened.

    Raises:
        FileNotFoundError: If there is no such data.
        ValueError: If options or layout are wrong.
    """
    splits: list[str] = []
    reading = options.reading
    if options.split is None and options.files is None:
        splits = splits_of(data, reading["data_root"] is not None or reading["download"])
    first = splits[0] if splits else options.split
    source = _open(data, first, options)
    if options.files is not None:
        source = _listed(source, options.files, data)
    like = source if isinstance(source, ValuePictures) else None
    opened = [(first or "training", source)]
    if val_data is not None:
        bare = replace(options, labels="none", reading={**reading, "label_column": None})
        opened.append(("held out", _open(val_data, None, bare, like)))
    else:
        opened += [(name, _open(data, name, options, like)) for name in splits[1:]]
    return opened


def measuring_spec(spec: DecodeSpec) -> DecodeSpec:
    """Return how pictures are read and measured."""
    return replace(spec, transform=Measure())


def _open(
    data: Any, split: str | None, options: PartOptions, like: ValuePictures | None = None
) -> Source:
    """Open one part as a source, without decoding anything."""
    from ddpm_lib.data.sources import find_source

    if data is None or (isinstance(data, str) and data == "shapes"):
        from ddpm_lib.data.shapes import Shapes

        check_fits("built-in images", _said(split, options))
        return OpenedSource(_labelled(Shapes((64, 64)), options))
    if isinstance(data, ImageDataset):
        kind = "an ImageDataset that is open already"
        check_fits(kind, _said(split, options), data.opened_with)
        data = _labelled(data, options)
        return pictures_of_open(data) if data.measured else OpenedSource(data)
    reading = options.reading
    if _measured(data, options, like):
        how = {**reading, "labels": options.labels, "split": split}
        return open_value_pictures(data, how, options.measuring, like)
    return find_source(
        data,
        options.spec,
        options.labels,
        reading["image_column"],
        reading["label_column"],
        split,
        False,
        options.here,
        reading["frames"],
        reading["data_root"],
        reading["download"],
    )


def _said(split: str | None, options: PartOptions) -> dict[str, Any]:
    """Return what was said of how data are read, by option."""
    asked = options.measuring
    said = {"normalize": asked.normalize, "slice_axis": asked.slice_axis}
    return {**options.reading, **said, "labels": options.labels, "split": split}


def _labelled(data: ImageDataset, options: PartOptions) -> ImageDataset:
    from ddpm_lib.data.opening import without_labels

    return without_labels(data) if options.labels == "none" else data


def _measured(data: Any, options: PartOptions, like: ValuePictures | None) -> bool:
    """Say whether data are taken for measured values: they are called so, or are no pictures."""
    if like is not None or options.measuring != Measuring():
        return True
    return options.spec.value_range is None and are_values(data)


def _listed(source: Source, files: Files, data: Any) -> Source:
    listed = read_list(files)
    if isinstance(source, ValuePictures):
        chosen = choose_rows(listed, source.names, roots_of(source.source), called(data))
        made: Source = listed_values(source, chosen.rows)
        made.notes.append(said_of(listed, len(chosen.rows), source))
    else:
        chosen = choose_rows(listed, source.names, roots_of(source), called(data))
        made = ListedSource(source, chosen.rows, said_of(listed, len(chosen.rows), source))
    made.listed_groups = chosen.groups
    return made
