"""Folders and files of one split."""

from __future__ import annotations

import re
from pathlib import Path

from ddpm_lib.data.split_names import best_split, split_of


def split_folder(root: Path, split: str | None) -> Path:
    """Return the sub-folder of a split, or the folder itself where it is that already.

    Raises:
        ValueError: If there is none, saying which sub-folders there are.
    """
    if split is None or (root.absolute().name == split and not (root / split).is_dir()):
        return root  # the whole, or the part itself
    if not (root / split).is_dir() or Path(split).name != split:
        there = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        meant = [
            name
            for name in there
            if name.lower() == split.lower() or split_of(name) == "train" == split_of(split)
        ]
        hint = f" Did you mean {meant[0]!r}?" if meant else ""
        raise ValueError(
            f"{str(root)!r} has no sub-folder for split {split!r}.{hint} There are:"
            f" {', '.join(there) or 'none'}."
        )
    return root / split


def split_files(files: list[Path], split: str | None, where: Path) -> list[Path]:
    """Choose the parquet files of one split: "train-00000-of-00002.parquet", "train.parquet" or
    "train/0.parquet".
    """
    kinds: dict[str, list[Path]] = {}
    for file in files:
        name = split_in(file)
        if (
            not name
            and file.parent != where
            and (file.parent.name != "data" and split_of(file.parent.name))
        ):
            name = file.parent.name
        kinds.setdefault(name, []).append(file)
    if split is None:
        named = sorted(kind for kind in kinds if kind)
        if len(kinds) > 1 and named:
            raise ValueError(
                f"{str(where)!r} holds several splits: {', '.join(named)}. Pass"
                f" split={best_split(named)!r} (--split {best_split(named)})."
            )
        return files
    if split not in kinds:
        there = sorted(kind for kind in kinds if kind)
        raise ValueError(
            f"{str(where)!r} has no split {split!r}. There are: {', '.join(there) or 'none'}."
        )
    return kinds[split]


def split_in(file: Path) -> str:
    """Return the split that a file's name begins with: "train" of "train-00000-of-00002.parquet";
    "" for none.
    """
    found = re.match(r"[a-z]+(?![a-z])", file.stem.lower())
    return found.group(0) if found and split_of(found.group(0)) else ""
