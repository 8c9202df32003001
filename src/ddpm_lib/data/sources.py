"""Find out what `data` is, and open the source for it."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_lib.core.lost_paths import lost, meant
from ddpm_lib.core.registry import nearest
from ddpm_lib.core.spelling import option
from ddpm_lib.data.archives.archive_files import ARCHIVES, archive_in, shards_in
from ddpm_lib.data.archives.opening_archives import open_archives
from ddpm_lib.data.arrays import open_npz
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.fits import TORCHVISION, check_fits
from ddpm_lib.data.folders import FolderSource, NoPicturesError, Table, with_labels
from ddpm_lib.data.hub import load_by_name
from ddpm_lib.data.kinds import LISTED, way
from ddpm_lib.data.metadata import TABLES, whole_paths
from ddpm_lib.data.missing_paths import may_be_hub_name, missing_path
from ddpm_lib.data.numpy_files import ArrayFolder
from ddpm_lib.data.objects import Columns, PathSource, from_object
from ddpm_lib.data.source import Source
from ddpm_lib.data.split_files import split_files, split_folder, split_in
from ddpm_lib.data.split_names import best_split, split_of
from ddpm_lib.data.suffixes import PICTURES
from ddpm_lib.data.torchvision_sets import SETS, hidden_by_path, open_set, set_named

Options = Mapping[str, Any]


def find_source(
    data: Any,
    spec: DecodeSpec,
    labels: str,
    image_column: str | None,
    label_column: str | None,
    split: str | None,
    require_labels: bool = False,
    here: bool = False,
    frames: str = "first",
    data_root: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Source:
    """Open the source that `data` names or is; see `open_dataset`.

    Args:
        data: A path, a name or an object.
        spec: How to fit images.
        labels: "auto", "folder", "prefix" or "none".
        image_column: Column or key of the images.
        label_column: Column or key of the labels.
        split: Which split.
        require_labels: Whether labels that are found must make classes.
        here: Whether a Dataset of the user's is to be read in this process.
        frames: "first" or "all", for folders of pictures.
        data_root: Where the files of torchvision's sets lie.
        download: Whether to download them.

    Raises:
        FileNotFoundError: If a path does not exist, or files of a set are missing.
        ValueError: If the data is of a kind that cannot be opened, or an option does not fit it.
        TypeError: If it is no path, name or dataset.
    """
    if isinstance(data, Source):
        return data
    options = {
        "labels": labels,
        "image_column": image_column,
        "label_column": label_column,
        "split": split,
        "frames": frames,
        "insist": require_labels,
        "data_root": data_root,
        "download": download,
    }
    name = set_named(data, asked=data_root is not None or download)
    if name is not None:
        check_fits(TORCHVISION, options)
        return open_set(
            name,
            spec,
            split=split,
            data_root=data_root,
            download=download,
            labels=labels,
            insist=require_labels,
            here=here,
        )
    if isinstance(data, (str, os.PathLike)):
        source = _from_written(data, spec, options)
        note = hidden_by_path(data)
        source.notes += [] if note is None else [note]
        return source
    if type(data).__module__.split(".")[0] == "datasets":
        return _from_hf_object(data, options)
    check_fits(_object_kind(data), options)
    return from_object(
        data, spec, Columns(labels, image_column, label_column, require_labels), here
    )


def _from_written(data: str | os.PathLike[str], spec: DecodeSpec, options: Options) -> Source:
    """Open what a path or a name of the hub means."""
    if not os.fspath(data):  # Path("") would be the working directory
        raise FileNotFoundError(lost(data))
    path = Path(os.fspath(data)).expanduser()
    if path.is_dir() and not _is_table(path):
        check_fits("a folder of pictures", options)
        split = options["split"]
        if split is not None and not (path / split).is_dir() and shards_in(path):
            return open_archives(shards_in(path), "", options)
        return _from_folder(split_folder(path, options["split"]), options)
    archive = archive_in(path)
    if archive is not None:
        return open_archives([archive[0]], archive[1], options)
    return _from_path(path, str(data), spec, options)


def _object_kind(data: Any) -> str:
    if isinstance(data, (torch.Tensor, np.ndarray)):
        return "an array"
    if isinstance(data, (list, tuple, Mapping)):
        return "a list"
    return (
        "a table"
        if hasattr(data, "columns") or hasattr(data, "column_names")
        else "a torch Dataset"
    )


def _from_folder(root: Path, options: Options) -> Source:
    labels, frames = options["labels"], options["frames"]
    try:
        table = Table(options["image_column"], options["label_column"])
        return with_labels(FolderSource(root, labels, frames, table), options["insist"])
    except NoPicturesError as error:
        if {b".zip", b".tar"} & set(error.others) and shards_in(root):
            return open_archives(shards_in(root), "", options)
        if not {b".npy", b".npz"} & set(error.others):
            raise
    check_fits("a folder of arrays", {**options, "split": None})
    return ArrayFolder(root, labels)


def _from_pattern(written: str, found: list[Path], options: Options) -> Source | None:
    """Open the pictures that a pattern such as photos/*.png matches; None if it matches none."""
    files = [
        file for file in found if os.fsencode(file.suffix.lower()) in PICTURES and file.is_file()
    ]
    if not files:
        return None
    if options["split"] is not None:
        raise ValueError(
            f"{option('split', options['split'])} does not fit a pattern of files: it says already"
            " which"
            " ones."
        )
    root = Path(os.path.commonpath([file.parent for file in files]))
    only = frozenset(os.fsencode(file.relative_to(root)) for file in files)
    table = Table(options["image_column"], options["label_column"])
    return FolderSource(root, options["labels"], options["frames"], table, only)


def _from_path(path: Path, written: str, spec: DecodeSpec, options: Options) -> Source:
    from ddpm_lib.data.tables import from_parquet

    labels, split = options["labels"], options["split"]
    columns = options["image_column"], options["label_column"]
    insist = options["insist"]
    if path.is_dir():
        if _is_saved(path):
            from datasets import load_from_disk

            return _from_hf_object(load_from_disk(str(path)), options)
        check_fits("parquet files", options)
        return from_parquet(split_files(_parquet_in(path), split, path), labels, *columns, insist)
    if path.is_file():
        return _from_file(path, written, spec, options)
    found = (
        sorted(Path(file) for file in glob.glob(str(path), recursive=True))
        if glob.has_magic(written)
        else []
    )
    if found and all(file.suffix.lower() == ".parquet" for file in found):
        check_fits("parquet files", options)
        return from_parquet(split_files(found, split, path.parent), labels, *columns, insist)
    if found and all(file.suffix.lower() in ARCHIVES for file in found):
        return open_archives(found, "", options)
    if found:
        pictures = _from_pattern(written, found, options)
        if pictures is not None:
            return pictures
        raise ValueError(
            f"{written!r} matches {len(found):,} files, but no pictures and no parquet files alone."
        )
    if os.path.lexists(path):
        raise FileNotFoundError(missing_path(path, written))
    if may_be_hub_name(written):
        check_fits("a 🤗 dataset", options)
        return _from_hf_object(
            load_by_name(written, path, meant(written), nearest(written, SETS)), options
        )
    raise FileNotFoundError(missing_path(path, written))


def _from_file(path: Path, written: str, spec: DecodeSpec, options: Options) -> Source:
    from ddpm_lib.data.tables import from_parquet

    labels, insist = options["labels"], options["insist"]
    columns = options["image_column"], options["label_column"]
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        check_fits(f"a {suffix} file", options)
        return open_npz(path, spec, labels, *columns, insist)
    if suffix == ".parquet":
        own = options["split"] is not None and split_in(path) == options["split"]
        check_fits("one parquet file", {**options, "split": None} if own else options)
        return from_parquet([path], labels, *columns, insist)
    if suffix in TABLES:
        check_fits("a table of pictures", options)
        named = whole_paths(path, *columns)
        if named is not None:
            check_fits("a table of whole paths", options)
            files, label, values = named
            source = PathSource(files, values, Columns(labels, *columns, insist))
            if source.labels is not None:
                source.notes.append(f"labels: column {label!r} of {path.name}")
            return source
        try:
            return with_labels(
                FolderSource(path.parent, labels, options["frames"], Table(*columns, path)),
                insist,
            )
        except NoPicturesError:
            raise ValueError(
                f"{written!r} is a table, but no pictures lie below its folder"
                f" ({str(path.parent.absolute())!r}), which paths in it start from."
            ) from None
    if suffix.encode() in PICTURES:
        raise ValueError(
            f"{written!r} is one picture. Pass the folder that holds it ({str(path.parent)!r})."
        )
    if suffix == ".json" and path.name == "dataset.json":
        raise ValueError(
            f"{written!r} holds labels. Pass the folder that holds it ({str(path.parent)!r})."
        )
    raise ValueError(
        f"{written!r} is no dataset. {way(path) or ''} Pass {LISTED}.".replace("  ", " ")
    )


def _parquet_in(folder: Path) -> list[Path]:
    """Return the parquet files of a folder, of its data/, or of the one sub-folder that holds any.

    Raises:
        ValueError: If several sub-folders hold some.
    """
    files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    if files:
        return files
    deeper = sorted(folder.glob("*/*.parquet"))
    parts = sorted({file.parent.name for file in deeper})
    if len(parts) > 1 and not all(split_of(part) for part in parts):
        raise ValueError(
            f"Several sub-folders of {str(folder)!r} hold parquet files: {', '.join(parts)}. Pass"
            f" one of them, such as {str(folder / parts[0])!r}."
        )
    return deeper


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _is_table(path: Path) -> bool:
    """Whether a folder is a saved 🤗 dataset, or holds parquet files and no picture beside them."""
    if _is_saved(path):
        return True
    tables = [
        file
        for pattern in ("*.parquet", "data/*.parquet", "*/*.parquet")
        for file in path.glob(pattern)
    ]
    if not any(not file.name.startswith("metadata") for file in tables):
        return False
    beside = [*path.iterdir(), *(file for table in tables for file in table.parent.iterdir())]
    return not any(os.fsencode(file.suffix.lower()) in PICTURES for file in beside)


def _from_hf_object(data: Any, options: Options) -> Source:
    from ddpm_lib.data.tables import from_hf

    split = options["split"]
    if isinstance(data, dict):
        check_fits("a 🤗 dataset", options)
        names = list(data)
        if split is None and len(names) > 1:
            raise ValueError(
                f"The dataset has several splits: {', '.join(names)}. Pass"
                f" split={best_split(names)!r} (--split {best_split(names)})."
            )
        split = names[0] if split is None else split
        if split not in data:
            hint = nearest(split, names)
            did_you_mean = f" Did you mean {hint!r}?" if hint else ""
            raise ValueError(
                f"The dataset has no split {split!r}.{did_you_mean} There are: {', '.join(names)}."
            )
        data = data[split]
    else:
        mine = str(getattr(data, "split", None))
        check_fits(
            "one split of a 🤗 dataset", {**options, "split": None if split == mine else split}
        )
    if not hasattr(data, "data"):
        raise TypeError(
            "A streaming (iterable) 🤗 dataset has no order to resume from. Load it without"
            " streaming=True."
        )
    return from_hf(
        data, options["labels"], options["image_column"], options["label_column"], options["insist"]
    )
