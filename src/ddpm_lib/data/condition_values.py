"""The values of a condition, one per image, and what kind they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.nn.condition_table import DROP_PROB
from ddpm_lib.nn.pixel_conditions import UNKNOWN


class Pictures(Protocol):
    """Images that are read on demand: what is used of an `ImageDataset`."""

    fingerprint: str

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Return {"image": (n, c, h, w)}."""
        ...

    def subset(self, indices: np.ndarray) -> Any:
        """Return some of them."""
        ...


@dataclass(frozen=True)
class TakenFrom:
    """Where values outside of the data were found.

    Attributes:
        path: A table, an array or a folder.
        entries: By image, the number of its entry there; −1 for none, int64 (n,).
        by: What tells which is whose: the order, the name, or a longer part of the path.
    """

    path: str
    entries: np.ndarray
    by: Literal["order", "name", "path"] = "name"


@dataclass(frozen=True)
class ConditionValues:
    """A condition of all images of a dataset.

    Attributes:
        kind: A name of `KINDS`.
        values: By image: float32 (n,) of numbers and angles, (n, d) of vectors, texts and tags,
            int64 (n,) of labels, uint8 (n, *size) of masks, (n, c, *size) of images,
            or those as an `ImageDataset`.
        drop_prob: Probability of hiding it in training.
        more: What else the network's table says of it, such as names or classes.
        written: Of texts, a hash of each as it is written, int64 (n,): a text is the same where
            another machine encodes it with other last digits.
        texts: Of texts, what names each and its encoder, of `text_keys`, uint8 (n, 16).
        taken: Where they are from, if not from the data themselves.
        white: Whether masks were black and white alone, 0 and 255, which was read as two classes.
    """

    kind: str
    values: np.ndarray | Pictures
    drop_prob: float = DROP_PROB
    more: Mapping[str, Any] = field(default_factory=dict)
    written: np.ndarray | None = None
    texts: np.ndarray | None = None
    taken: TakenFrom | None = None
    white: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def get(self, rows: np.ndarray) -> Tensor:
        """Return the values of some images, first dimension len(rows)."""
        if isinstance(self.values, np.ndarray):
            return torch.from_numpy(self.values[rows])
        return self.values.batch(rows)["image"]

    def take(self, rows: np.ndarray) -> ConditionValues:
        """Return those of some images."""
        taken = None
        if self.taken is not None:
            taken = replace(self.taken, entries=self.taken.entries[rows])
        if isinstance(self.values, np.ndarray):
            written = None if self.written is None else self.written[rows]
            texts = None if self.texts is None else self.texts[rows]
            same = replace(self, values=self.values[rows], written=written, texts=texts)
            return replace(same, taken=taken)
        return replace(self, values=self.values.subset(rows), taken=taken)

    @property
    def known(self) -> np.ndarray:
        """Which images have a value, bool (n,)."""
        values = self.values
        if self.kind == "label" and isinstance(values, np.ndarray):
            return np.asarray(values >= 0)
        if not isinstance(values, np.ndarray) or self.kind == "image":
            return np.ones(len(values), dtype=bool)
        each = tuple(range(1, values.ndim))
        if self.kind == "mask":
            return np.asarray((values != UNKNOWN).any(each))
        return np.asarray(~np.isnan(values).any(each))

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of labels, tags or classes of masks; None for none."""
        names = self.more.get("names")
        return None if names is None else tuple(names)

    def entry(self) -> dict[str, Any]:
        """Return what the table of a network says of it, but for what is measured later."""
        return {"kind": self.kind, "drop_prob": self.drop_prob, **self.more}

    def digest(self) -> str:
        """Hash the values, in order; of texts, the texts and the name of their encoder."""
        found = hashlib.blake2b(repr((self.kind, self.names)).encode(), digest_size=16)
        if self.written is not None:
            encoder = str(self.more.get("encoder")).rstrip("/").rpartition("/")[2]
            found.update(repr((encoder, self.more.get("size"))).encode())
            found.update(np.ascontiguousarray(self.written).tobytes())
        elif isinstance(self.values, np.ndarray):
            found.update(np.ascontiguousarray(self.values).tobytes())
        else:
            found.update(self.values.fingerprint.encode())
        return found.hexdigest()

    def renamed(self, names: Sequence[str], what: str) -> ConditionValues:
        """Return the same labels or tags by the numbers of other names.

        Raises:
            ValueError: If one that is in use is not among them.
        """
        own, values = self.names, self.values
        if own is None or own == tuple(names) or not isinstance(values, np.ndarray):
            return self
        used = {own[k] for k in self._used(values)}
        unknown = sorted(used - set(names))
        if unknown:
            raise ValueError(
                f"{what} has {', '.join(unknown[:5])}, which the network does not know. It knows:"
                f" {', '.join(names[:50])}{', …' * (len(names) > 50)}."
            )
        to = [names.index(word) if word in names else -1 for word in own]
        if self.kind == "label":
            moved = np.array([*to, -1], dtype=np.int64)[values]
        else:
            moved = np.zeros((len(values), len(names)), dtype=np.float32)
            for k, place in enumerate(to):
                if place >= 0:
                    moved[:, place] = values[:, k]
            moved[np.isnan(values).any(1)] = math.nan
        return replace(self, values=moved, more={**self.more, "names": list(names)})

    def _used(self, values: np.ndarray) -> list[int]:
        if self.kind == "label":
            return [int(k) for k in np.unique(values) if k >= 0]
        return np.flatnonzero((np.nan_to_num(values) > 0).any(0)).tolist()


_OF_KIND = {
    "classes": "mask",
    "channels": "image",
    "factor": "image",
    "period": "angle",
    "encoder": "text",
}
"""Options that say something of one kind alone."""


def check_options(name: str, kind: str, options: Mapping[str, Any]) -> None:
    """Refuse what was said of a condition and means nothing for its kind.

    Raises:
        ValueError: Naming the option and the kind that it is for.
    """
    for word, theirs in _OF_KIND.items():
        if word in options and kind != theirs:
            raise ValueError(
                f"{word} is for conditions of kind {theirs}, and {name!r} is of kind {kind}. Leave"
                f" it out, or say kind={theirs}."
            )


def mask_values(
    name: str, raw: np.ndarray, options: Mapping[str, Any], drop: float
) -> ConditionValues:
    """Make masks of whole numbers (n, *size); 255 is unknown.

    Raises:
        ValueError: If they are no whole numbers from 0 to 255, or beyond `classes`.
    """
    if raw.dtype.kind not in "iub" or (
        len(raw) and not 0 <= int(raw.min()) <= int(raw.max()) < 256
    ):
        raise ValueError(
            f"The condition {name!r} must hold whole numbers from 0 to 255, the class of each"
            f" pixel; got {raw.dtype} from {raw.min():g} to {raw.max():g}."
        )
    values = raw.astype(np.uint8)
    highest = int(values[values != UNKNOWN].max(initial=0))
    classes = options.get("classes", highest + 1)
    if highest >= classes:
        raise ValueError(
            f"The condition {name!r} has the class {highest}; classes={classes} allows 0 to"
            f" {classes - 1}."
        )
    return ConditionValues("mask", values, drop, {"classes": classes, "names": None})


def images_of_array(
    name: str, raw: np.ndarray, options: Mapping[str, Any], drop: float
) -> ConditionValues:
    """Make images of uint8, or of floats in [0, 1], (n, c, h, w).

    Raises:
        ValueError: If they are neither.
    """
    if raw.dtype.kind == "f" and raw.size and raw.min() >= 0 and raw.max() <= 1:
        raw = (raw * 255).round().astype(np.uint8)
    if raw.dtype != np.uint8:
        raise ValueError(
            f"The condition {name!r} must be images of uint8 or floats in [0, 1]; got {raw.dtype}."
        )
    channels = options.get("channels", raw.shape[1])
    if channels != raw.shape[1]:
        raise ValueError(
            f"The condition {name!r} is an array of images of {raw.shape[1]} channels (its second"
            f" axis), and channels={channels} was said. Leave that out, or convert them."
        )
    more = {"channels": channels, "factor": options.get("factor", 1)}
    return ConditionValues("image", raw, drop, more)


def black_and_white(mask: np.ndarray, classes: int | None = None) -> np.ndarray:
    """Return 0 and 1 for masks that are black and white alone, 0 and 255; others stay. What is
    negative lies outside of an image, and stays as well.

    Args:
        mask: One or several masks.
        classes: How many there are, where that is known: two make white the second one, even where
            there is no black, and any other number leaves 255 unknown.
    """
    seen = {value for value in np.unique(mask).tolist() if value >= 0}
    known = seen <= {0, UNKNOWN} if classes == 2 else classes is None and seen == {0, UNKNOWN}
    return np.minimum(mask, 1).astype(mask.dtype) if known else mask
