"""Names of splits: which folders and files are training images, and which are held out."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TRAIN = frozenset(["train", "training", "trn", "trainval"])
_OTHER = frozenset(
    (
        "test",
        "testing",
        "tst",
        "val",
        "valid",
        "validation",
        "eval",
        "evaluation",
        "dev",
        "holdout",
        "heldout",
        "query",
        "gallery",
    )
)
_TAILS = frozenset(
    [
        "set",
        "data",
        "dataset",
        "split",
        "images",
        "image",
        "imgs",
        "img",
        "pictures",
        "photos",
        "folder",
        "dir",
    ]
)


def split_of(name: str) -> str | None:
    """Say whether a folder's or a file's name is that of a split: "train", "other" or None.

    Any case and the usual tails count: Training, train_set, test-images, val2017, trainset,
    bounding_box_train.
    """
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    words = words[2:] if words[:2] == ["bounding", "box"] else words
    plain = [word for word in words if word not in _TAILS]
    if len(plain) != 1:
        return None
    for kind, names in (("train", _TRAIN), ("other", _OTHER)):
        if plain[0] in names or any(plain[0] == known + tail for known in names for tail in _TAILS):
            return kind
    return None


def best_split(names: Sequence[str]) -> str:
    """Choose the split to propose: the training one, else a validation one, never a test set where
    others are.
    """

    def rank(name: str) -> tuple[int, int]:
        kind = split_of(name) or ("train" if name.lower().startswith("train") else None)
        return {"train": 0, None: 1}.get(kind, 2), "val" not in name.lower()

    return min(names, key=rank)
