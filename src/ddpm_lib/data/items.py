"""Images from any torch Dataset: what its items are, and whether they stay the same, is looked at
in a forked reader.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddpm_lib.core import spelling
from ddpm_lib.data.arrays import as_array
from ddpm_lib.data.columns import IMAGE_NAMES, LABEL_NAMES, choose_column
from ddpm_lib.data.decode import Decoded, ImageError, fit_array, fit_picture
from ddpm_lib.data.decode_spec import DecodeSpec
from ddpm_lib.data.item_values import content, not_uint8, part, what_happened
from ddpm_lib.data.labels import Label, make_labels, plain_label
from ddpm_lib.data.names import NumberedNames
from ddpm_lib.data.readers import (
    generator_states,
    generators_kept,
    may_fork,
    run_readers,
    seed_generators,
)
from ddpm_lib.data.source import (
    BadImagesError,
    Examined,
    Source,
    load_patiently,
    reason,
)
from ddpm_lib.data.values import NarrowValuesError

_LOOKED_AT = 12
_SAMPLED = 64
_KNOWN_LABELS = ("targets", "labels", "_labels")


@dataclass
class _Look:
    """What the first look at a Dataset showed."""

    image: Any = None
    label: Any = None
    found: bool = False
    random: bool = False
    content: dict[int, int] = field(default_factory=dict)
    labels: dict[int, Label] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    wrong: TypeError | None = None


class TorchSource(Source):
    """Images of any torch Dataset of dicts, (image, label) tuples or images: tensors or arrays, or
    PIL pictures.

    Tensors and arrays are uint8; with a `value_range`, numbers of any other kind.

    Args:
        data: The dataset, with a length. It is only used in `look` and `load`, which run in a
            reader.
        labels: "auto" or "none".
        image_column: Key of the image in dicts.
        label_column: Key of the label in dicts.
        insist: Whether labels were asked for.
        here: Whether to read in this process.

    Raises:
        ValueError: If it is empty.
    """

    foreign = True

    def __init__(
        self,
        data: Any,
        labels: str,
        image_column: str | None,
        label_column: str | None,
        insist: bool = False,
        here: bool = False,
    ) -> None:
        self.notes = []
        self.data = data
        self.here = here
        self.sampled: dict[int, int] = {}
        self._asked = image_column, label_column, labels
        self._insist = insist or label_column is not None
        self._image: Any = None
        self._label: Any = None
        self._ranged = False
        n = len(data)
        if not n:
            raise ValueError("The dataset is empty.")
        self.names = NumberedNames(n)

    @property
    def kind(self) -> str:
        """The name of the Dataset's type, for messages."""
        return type(self.data).__name__

    def place(self, row: int) -> str:
        """Return words for a row: "row 000012 of Photos"."""
        return f"row {self.names[row]} of {self.kind}"

    def look(self, spec: DecodeSpec, whole: bool, say: Callable[[str], None] | None = None) -> None:
        """Look at some items, twice each: what they are made of, and whether they are the same in
        every reading.

        Args:
            spec: How to fit images.
            whole: Whether all items will be read after this; if not, more are looked at, and known
                lists of labels are used.
            say: Gets a line when an item takes long.

        Raises:
            TypeError: If the items are of another kind.
            ValueError: If a key is wrong, value_range is given for uint8, or no item that was
                looked at could be read.
        """
        self._ranged = spec.value_range is not None
        rows = _spread(len(self), _LOOKED_AT if whole else _SAMPLED)
        known = None if whole or self._asked[2] == "none" else self._known_labels()
        checked = _first_of_each(known) if known is not None else []

        def work(rank: int, at: np.ndarray) -> _Look:
            return self._look(rows, checked, spec, at)

        if self.here or not may_fork():
            with generators_kept():
                seen = work(0, np.zeros(1, dtype=np.int64))
        else:
            seen = run_readers(work, 1, self.data, self.place, say)[0]
        self._image, self._label, self.random, self.sampled = (
            seen.image,
            seen.label,
            seen.random,
            seen.content,
        )
        if seen.wrong is not None:
            raise seen.wrong
        if len(seen.bad) == len(rows):
            raise BadImagesError(
                [(self.names[row], why) for row, why in seen.bad.items()],
                len(rows),
                self.failing_hint(),
            )
        self.gives_labels = self._label is not None and whole
        if self._label is not None and not whole:
            self._use_known(known, seen.labels, checked)

    def failing_hint(self) -> str:
        """Say what it means that no item can be read."""
        return (
            f"No item of {self.kind} that was looked at can be read: an error in its code or its"
            " paths, rather than in single images. Call its [0] yourself to see the whole"
            " traceback. (num_workers=0 reads in this process, for Datasets that cannot be used in"
            " another one.)"
        )

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Fetch and fit one image; raises `ImageError` or OSError."""
        return self._fit(self._pixels(self._item(row)), spec)

    def examine(self, row: int, spec: DecodeSpec) -> Examined:
        """Fetch and fit one image, hash it as it came, and take its label."""
        item = self._item(row)
        pixels = self._pixels(item)
        decoded = self._fit(pixels, spec)
        return Examined(
            decoded, content(pixels), self._label_of(item) if self.gives_labels else None
        )

    def sizes(self) -> np.ndarray:
        """Return zeros: the items of a Dataset have no files of a size."""
        return np.zeros(len(self), dtype=np.int64)

    def take_labels(self, values: dict[int, Any]) -> None:
        """Make labels of those that were read, by row; other rows get 0."""
        rows = sorted(values)
        names = [self.names[row] for row in rows]
        made, self.class_names = make_labels(
            [values[row] for row in rows], self._class_names(), self._insist, self.notes, names
        )
        if made is not None:
            self.labels = np.zeros(len(self), dtype=np.int64)
            self.labels[rows] = made

    def _look(self, rows: list[int], checked: list[int], spec: DecodeSpec, at: np.ndarray) -> _Look:
        seen, first = _Look(), {}
        for row in rows:
            at[0] = row
            try:
                item, fitted, drawn = self._read_once(row, spec, 0, seen)
            except TypeError as error:
                seen.wrong = error
                return seen
            except (ImageError, OSError) as error:
                seen.bad[row] = reason(error)
                continue
            seen.content[row], first[row] = content(self._pixels(item)), (fitted, drawn)
            seen.labels[row] = self._label_of(item)
        for row in list(first)[:: max(1, len(first) // _LOOKED_AT)]:
            at[0] = row
            try:
                _, fitted, drawn = self._read_once(row, spec, 1, seen)
            except (ImageError, OSError) as error:
                seen.bad[row] = f"{reason(error)} (at the second reading)"
                continue
            # Numbers that were drawn from another seed are others, unless the item sets the seed
            # itself.
            others = any(
                now != then and None not in (now, then) for now, then in zip(drawn, first[row][1])
            )
            seen.random |= others or fitted != first[row][0]
        for row in checked:
            at[0] = row
            with contextlib.suppress(ImageError, OSError):
                seen.labels[row] = self._label_of(self._item(row))
        return seen

    def _read_once(
        self, row: int, spec: DecodeSpec, reading: int, seen: _Look
    ) -> tuple[Any, bytes, list[Any]]:
        """Return an item, its fitted pixels, and where each of the global generators stands if it
        drew from it.
        """
        seed_generators("look", row, reading)
        begun = generator_states()
        item = load_patiently(lambda row, _: self._item(row), row, spec)
        drawn = [now if now != then else None for now, then in zip(generator_states(), begun)]
        self._find(item, seen)
        fitted = self._fit(self._pixels(item), spec).pixels.tobytes()
        return item, fitted, drawn

    def _label_of(self, item: Any) -> Label:
        if self._label is None:
            return None
        try:
            return plain_label(part(item, self._label))
        except (KeyError, IndexError, AttributeError, TypeError):
            return None

    def _find(self, item: Any, seen: _Look) -> None:
        """Find the image and the label in the first item that can be read."""
        if seen.found:
            return
        image_column, label_column, labels = self._asked
        if hasattr(item, "_fields") and choose_column(
            "image", image_column, IMAGE_NAMES, item._fields, self.kind
        ):
            item = dict(zip(item._fields, item))
        if isinstance(item, Mapping):
            keys = [str(name) for name in item]
            self._image = choose_column("image", image_column, IMAGE_NAMES, keys, self.kind)
            if self._image is None:
                raise ValueError(
                    f"{self.kind} has no key named image. There are: {', '.join(keys)}. Pass"
                    " image_column."
                )
            rest = [name for name in keys if name != self._image]
            self._label = choose_column("label", label_column, LABEL_NAMES, rest, self.kind)
        elif isinstance(item, (tuple, list)):
            self._image, self._label = 0, 1 if len(item) > 1 else None
        if not isinstance(item, Mapping) and (image_column is not None or label_column is not None):
            option = "image_column" if label_column is None else "label_column"
            raise ValueError(
                f"{option} does not fit a Dataset whose items are no dicts: the image comes first,"
                " then the label. Leave it out."
            )
        if labels == "none":
            self._label = None
        value = part(item, self._image)
        self._check_kind(value)
        if self._ranged and getattr(value, "dtype", None) in (torch.uint8, np.uint8):
            raise NarrowValuesError(
                f"Items of {self.kind} are uint8 already: {spelling.option('value_range')} is for"
                " values of"
                " more than 8"
                " bits. Leave it out."
            )
        seen.image, seen.label, seen.found = self._image, self._label, True

    def _item(self, row: int) -> Any:
        """Read one item; whatever the user's code raises is what is wrong with this item."""
        try:
            item = self.data[row]
        except OSError:
            raise
        except Exception as error:
            raise ImageError(what_happened(error)) from None
        if item is None:
            raise ImageError("no image in this row (None)")
        return item

    def _pixels(self, item: Any) -> Image.Image | np.ndarray:
        try:
            value = part(item, self._image)
            self._check_kind(value)
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise ImageError(
                str(error) if isinstance(error, TypeError) else what_happened(error)
            ) from None
        return as_array(value) if isinstance(value, torch.Tensor) else value

    def _check_kind(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            value = as_array(value)
        usable = "iuf" if self._ranged else ""
        if (
            isinstance(value, np.ndarray)
            and value.dtype != np.uint8
            and value.dtype.kind not in usable
        ):
            raise TypeError(not_uint8(self.data, value))
        if value is None:
            raise ImageError("no image in this row (None)")
        if not isinstance(value, (np.ndarray, Image.Image)):
            raise TypeError(
                f"Items of {self.kind} must be dicts, (image, label) tuples or images (uint8 or"
                f" PIL); got {type(value).__name__}."
            )

    def _fit(self, pixels: Image.Image | np.ndarray, spec: DecodeSpec) -> Decoded:
        try:
            return (
                fit_picture(pixels, spec)
                if isinstance(pixels, Image.Image)
                else fit_array(pixels, spec)
            )
        except (ImageError, OSError):
            raise
        except (
            Exception
        ) as error:  # a lazily opened picture that breaks in the middle, whatever Pillow raises
            raise ImageError(what_happened(error)) from None

    def _known_labels(self) -> list[Label] | None:
        """Return the list that torchvision's datasets keep, unless a transform changes it."""
        if getattr(self.data, "target_transform", None) is not None:
            return None
        for name in _KNOWN_LABELS:
            known = getattr(self.data, name, None)
            if known is not None and hasattr(known, "__len__") and len(known) == len(self):
                return [plain_label(value) for value in known]
        return None

    def _use_known(
        self, known: list[Label] | None, seen: dict[int, Label], checked: list[int]
    ) -> None:
        """Take the list of labels if all items that were looked at agree with it; else read all for
        them, if asked to.
        """
        if known is not None and all(known[row] == label for row, label in seen.items()):
            self.take_labels(dict(enumerate(known)))
        elif self._insist:
            self.gives_labels = True
        else:
            self.notes.append(
                "no labels: they lie in the items, which are not read now (verify=False)"
            )

    def _class_names(self) -> list[str] | None:
        names = getattr(self.data, "classes", None)
        return (
            list(names)
            if isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)
            else None
        )


def _spread(n: int, count: int) -> list[int]:
    """Return up to `count` rows spread over 0 … n-1, the first and the last among them."""
    return sorted({round(k * (n - 1) / max(1, count - 1)) for k in range(count)})


def _first_of_each(labels: Sequence[Label]) -> list[int]:
    """Return the first row of each label, of up to 256."""
    first: dict[Any, int] = {}
    for row, label in enumerate(labels):
        if len(first) == 256:
            break
        first.setdefault(label, row)
    return list(first.values())
