"""Which options fit which kind of data: one that would be ignored is an error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm_lib.core.spelling import option
from ddpm_lib.data.decode_spec import MAX_PIXELS, colour_of

DEFAULTS: dict[str, Any] = {
    "split": None,
    "image_column": None,
    "label_column": None,
    "labels": "auto",
    "frames": "first",
    "on_bad_image": "error",
    "background": "white",
    "value_range": None,
    "fit": "crop",
    "max_pixels": MAX_PIXELS,
    "data_root": None,
    "download": False,
    "transform": None,
    "files": None,
    "normalize": None,
    "slice_axis": None,
}
TORCHVISION = "a set of torchvision"
_FILES = ("data_root", "download")
"""Options that are for the sets of torchvision alone."""

_MADE = (
    "split",
    "image_column",
    "label_column",
    "labels",
    "frames",
    "on_bad_image",
    "background",
    "value_range",
    "fit",
    "max_pixels",
    "transform",
    "normalize",
    "slice_axis",
)
_UNFIT: dict[str, tuple[str, ...]] = {
    "built-in images": _MADE,
    "an ImageDataset that is open already": (*_MADE, "files"),
    "an array": ("split", "image_column", "label_column", "labels", "frames"),
    "a .npy file": ("split", "image_column", "label_column", "labels", "frames"),
    "a .npz file": ("split", "labels", "frames"),
    "one parquet file": ("split", "labels", "frames"),
    "parquet files": ("labels", "frames"),
    "a 🤗 dataset": ("labels", "frames"),
    "one split of a 🤗 dataset": ("split", "labels", "frames"),
    "a torch Dataset": ("split", "labels", "frames"),
    "a list": ("split", "labels", "frames"),
    "a list without keys": ("image_column", "label_column"),
    "a table": ("split", "labels", "frames"),
    "a table of whole paths": ("frames",),
    "a table of pictures": ("split", "labels"),
    TORCHVISION: ("image_column", "label_column", "labels", "frames", "value_range"),
    "a folder of pictures": (),
    "HDF5 or Zarr": ("split", "labels", "frames"),
    "DICOM": ("image_column", "label_column", "frames"),
    "measured values": (
        "frames",
        "background",
        "value_range",
        "transform",
    ),
    "an archive of pictures": (),
    "a folder of arrays": ("split", "image_column", "label_column", "frames"),
}
_INSTEAD = {
    "split": "Pass the part itself, such as the folder or file of one split",
    "image_column": (
        "It is for data with columns or keys: .npz, parquet, 🤗 datasets, tables beside pictures,"
        " dicts"
    ),
    "label_column": (
        "It is for data with columns or keys: .npz, parquet, 🤗 datasets, tables beside pictures,"
        " dicts"
    ),
    "labels": (
        "Those are for folders of pictures; label_column (--label-column) names labels of data with"
        " columns"
    ),
    "frames": "It is for folders of pictures",
    "on_bad_image": "None can be bad",
    "background": "They are not decoded; it is for pictures",
    "value_range": "They are uint8 already",
    "fit": "They have their size already",
    "max_pixels": "They are not decoded; it is for pictures",
    "transform": "It is for pictures and arrays; images that are drawn or open already take none",
    "normalize": "They are 8-bit images already; open measured values with it",
    "slice_axis": "They are images already; it is for measured volumes",
    "files": "Give it to open_dataset, or take a part: dataset.subset(rows)",
    "data_root": "It is for names of torchvision's sets, such as mnist",
    "download": "It is for names of torchvision's sets, such as mnist",
}

_MEASURED = {
    "frames": "Pages of a TIFF are slices of a volume: slice_axis=0 (--slice-axis 0)",
    "background": "They have no colour; it is for pictures",
    "value_range": "Their range is found in the data; value_range is for pictures of 8 bits made"
    " of more",
    "transform": "It is for pictures; transform arrays beforehand",
    "data_root": _INSTEAD["data_root"],
    "download": _INSTEAD["download"],
}


def check_fits(
    kind: str, options: Mapping[str, Any], done: Mapping[str, Any] | None = None
) -> None:
    """Refuse options that the kind of data has no use for.

    Args:
        kind: A name of the table above.
        options: What was asked for, by option.
        done: What the data was opened with already, which may be asked for again.

    Raises:
        ValueError: If one differs from its default and does not fit, saying where it belongs.
    """
    for name in (*_UNFIT[kind], *(() if kind == TORCHVISION else _FILES)):
        value = options.get(name, DEFAULTS[name])
        if value == DEFAULTS[name] or (name == "labels" and value == "none"):
            continue
        if done is not None and _same(name, value, done.get(name, DEFAULTS[name])):
            continue
        note = (_MEASURED if kind == "measured values" else _INSTEAD)[name]
        if name == "labels" and "image_column" in _UNFIT[kind]:
            note = 'Those are for folders of pictures; leave it out, or use "none"'
        raise ValueError(f"{name}={value!r} does not fit {kind}. {note}.")
    if options.get("label_column") is not None and options.get("labels", "auto") != "auto":
        raise ValueError(
            f"{option('label_column', options['label_column'])} and"
            f" {option('labels', options['labels'])} contradict"
            " each other: leave one out."
        )


def _same(name: str, a: Any, b: Any) -> bool:
    """Whether two values of an option mean the same: a range may be a list or a tuple, and a colour
    a name or numbers.
    """
    if name == "background":
        return colour_of(a) == colour_of(b)
    return bool(a == b) or (
        isinstance(a, list | tuple) and isinstance(b, list | tuple) and list(a) == list(b)
    )


def may_have_columns(data: Any) -> bool:
    """Whether a path may name data with columns: a table, an .npz, a saved dataset, or a folder
    with a table in it.
    """
    if not isinstance(data, (str, os.PathLike)):
        return True
    path = Path(os.fspath(data)).expanduser()
    if not path.is_dir():
        return path.suffix.lower() != ".npy" and str(data) != "shapes"
    suffixes = {file.suffix.lower() for depth in ("*", "*/*") for file in path.glob(depth)}
    return bool(suffixes & {".parquet", ".arrow", ".csv", ".tsv", ".jsonl", ".json"})
