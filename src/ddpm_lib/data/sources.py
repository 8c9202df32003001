"""Find out what `data` is, and open the source for it."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_lib.data.arrays import ArraySource, TorchSource, open_npz
from ddpm_lib.data.dataset import Source
from ddpm_lib.data.decode import DecodeSpec
from ddpm_lib.data.folders import EXTENSIONS, FolderSource
from ddpm_lib.registry import nearest

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")


def find_source(
    data: Any,
    spec: DecodeSpec,
    labels: str,
    image_column: str | None,
    label_column: str | None,
    split: str | None,
    log: Callable[[str], None] | None,
    frames: str = "first",
) -> Source:
    """Open the source that `data` names or is; see `open_dataset`.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If the data is of a kind that cannot be opened, or an option does not fit it.
        TypeError: If it is no path, name or dataset.
    """
    if isinstance(data, (str, os.PathLike)):
        path = Path(os.fspath(data)).expanduser()
        if path.is_dir() and not _is_table(path):
            root = _split_folder(path, split)
            return FolderSource(root, labels, frames)
        if labels in ("folder", "prefix"):
            raise ValueError(f"labels={labels!r} is for folders of pictures; {str(data)!r} is none. Pass label_column.")
        return _from_path(path, str(data), spec, labels, (image_column, label_column), split)
    if labels in ("folder", "prefix"):
        raise ValueError(f"labels={labels!r} is for folders of pictures; got {type(data).__name__}. Pass label_column.")
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu().numpy()
    if isinstance(data, np.ndarray):
        return ArraySource(data, None, spec)
    if type(data).__module__.split(".")[0] == "datasets":
        return _from_hf_object(data, split, labels, image_column, label_column)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (dict, bytes)):
        return TorchSource(data, labels, image_column, label_column, log)
    raise TypeError(
        f"data must be a path, a dataset name, a 🤗 Dataset, a torch Dataset with a length, or a uint8 array; got "
        f"{type(data).__name__}."
    )


def _from_path(
    path: Path, written: str, spec: DecodeSpec, labels: str, columns: tuple[str | None, str | None], split: str | None
) -> Source:
    from ddpm_lib.data.tables import from_parquet

    if path.is_dir():
        if _is_saved(path):
            from datasets import load_from_disk

            return _from_hf_object(load_from_disk(str(path)), split, labels, *columns)
        return from_parquet(
            _split_files(sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")]), split, path), labels, *columns
        )
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix in (".npz", ".npy"):
            return open_npz(path, spec, labels, *columns)
        if suffix == ".parquet":
            return from_parquet([path], labels, *columns)
        if suffix in _ARCHIVES:
            raise ValueError(f"{written!r} is an archive. Unpack it, and pass the folder.")
        if suffix.encode() in EXTENSIONS:
            raise ValueError(f"{written!r} is one picture. Pass the folder that holds it ({str(path.parent)!r}).")
        raise ValueError(f"{written!r} is no dataset: pass a folder of pictures, .npz, .npy or .parquet.")
    found = sorted(Path(file) for file in glob.glob(str(path), recursive=True)) if glob.has_magic(written) else []
    if found and all(file.suffix.lower() == ".parquet" for file in found):
        return from_parquet(_split_files(found, split, path.parent), labels, *columns)
    if not found and _HUB_NAME.fullmatch(written) and Path(written).suffix.lower() not in (".npz", ".npy", ".parquet"):
        return _from_hf_object(_from_hub(written, path), split, labels, *columns)
    raise FileNotFoundError(_missing(path, written))


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _is_table(path: Path) -> bool:
    """Whether a folder is a saved 🤗 dataset, or holds parquet files and no picture beside them."""
    if _is_saved(path):
        return True
    tables = [file for pattern in ("*.parquet", "data/*.parquet") for file in path.glob(pattern)]
    if not any(not file.name.startswith("metadata") for file in tables):
        return False
    return not any(os.fsencode(file.suffix.lower()) in EXTENSIONS for file in path.iterdir())


def _split_folder(root: Path, split: str | None) -> Path:
    if split is None:
        return root
    if not (root / split).is_dir() or Path(split).name != split:
        there = sorted(p.name for p in root.iterdir() if p.is_dir())
        raise ValueError(
            f"{str(root)!r} has no sub-folder for split {split!r}. There are: {', '.join(there) or 'none'}."
        )
    return root / split


def _split_files(files: list[Path], split: str | None, where: Path) -> list[Path]:
    """Choose the parquet files of one split: "train-00000-of-00002.parquet", "train.parquet" or "train/0.parquet"."""
    kinds: dict[str, list[Path]] = {}
    for file in files:
        found = re.match(r"(train|test|validation|valid|val|dev|eval)(?![a-z])", file.stem.lower())
        kinds.setdefault(found.group(1) if found else (file.parent.name if file.parent != where else ""), []).append(
            file
        )
    if split is None:
        named = [kind for kind in kinds if kind]
        if len(kinds) > 1 and named:
            raise ValueError(
                f"{str(where)!r} holds several splits: {', '.join(sorted(named))}. Pass split={named[0]!r}."
            )
        return files
    if split not in kinds:
        raise ValueError(f"{str(where)!r} has no split {split!r}. There are: {', '.join(sorted(kinds)) or 'none'}.")
    return kinds[split]


def _from_hf_object(
    data: Any, split: str | None, labels: str, image_column: str | None, label_column: str | None
) -> Source:
    from ddpm_lib.data.tables import from_hf

    if isinstance(data, dict):
        names = list(data)
        if split is None and len(names) > 1:
            raise ValueError(f"The dataset has several splits: {', '.join(names)}. Pass split={names[0]!r}.")
        split = names[0] if split is None else split
        if split not in data:
            hint = nearest(split, names)
            did_you_mean = f" Did you mean {hint!r}?" if hint else ""
            raise ValueError(f"The dataset has no split {split!r}.{did_you_mean} There are: {', '.join(names)}.")
        data = data[split]
    if not hasattr(data, "data"):
        raise TypeError(
            "A streaming (iterable) 🤗 dataset has no order to resume from. Load it without streaming=True."
        )
    return from_hf(data, labels, image_column, label_column)


def _from_hub(name: str, path: Path) -> Any:
    """Load a dataset by its hub name; nothing global (offline mode, tokens) is changed."""
    from datasets import load_dataset

    try:
        return load_dataset(name)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"{name!r} is no local path ({path.absolute()} does not exist), and the dataset of that name could not be "
            f"loaded from the hub: {type(error).__name__}: {text}. Check the path. On nodes without internet download it "
            "before (local data needs no network), and set HF_HUB_OFFLINE=1 to spare retries of about 25 s."
        ) from error


def _missing(path: Path, written: str) -> str:
    parent = path.parent
    text = f"{written!r} does not exist."
    if parent.is_dir():
        hint = nearest(path.name, [entry.name for entry in parent.iterdir()])
        return f"{text} Did you mean {str(parent / hint)!r}?" if hint else f"{text} {str(parent)!r} has no such entry."
    while not parent.is_dir():
        parent = parent.parent
    return f"{text} The path exists only up to {str(parent)!r}."
