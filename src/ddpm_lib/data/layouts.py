"""Layouts of folders that are not one class per sub-folder: splits, masks, two domains, thumbnails."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TRAIN = frozenset(["train", "training", "trn"])
_OTHER = frozenset(
    ["test", "testing", "tst", "val", "valid", "validation", "eval", "evaluation", "dev", "holdout", "heldout"]
    + ["query", "gallery"]
)
    [
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
    ]
)
_TAILS = frozenset(["set", "data", "split", "images", "imgs", "img", "pictures", "photos", "folder", "dir"])


def split_of(name: str) -> str | None:
    """Say whether a folder's or a file's name is that of a split: "train", "other" or None.

    Any case and the usual tails count: Training, train_set, test-images, val2017, trainset, bounding_box_train.
    """
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    for kind, names in (("train", _TRAIN), ("other", _OTHER)):
        plain = [word for word in words if word not in _TAILS]
        if len(plain) == 1 and (plain[0] in names or any(plain[0] == n + tail for n in names for tail in _TAILS)):
            return kind
        if len(words) > 1 and words[:2] == ["bounding", "box"] and words[-1] in names:
            return kind
    return None


def best_split(names: Sequence[str]) -> str:
    """Choose the split to propose: the training one, else a validation one, never a test set where others are."""

    def rank(name: str) -> int:
        kind = split_of(name)
        return 0 if kind == "train" else (1 if kind is None else (2 if "val" in name.lower() else 3))

    return min(names, key=rank)
