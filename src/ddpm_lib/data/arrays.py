"""Images from uint8 arrays (`.npz`, `.npy`, numpy, torch) and from any torch Dataset."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddpm_lib.data.dataset import Source
from ddpm_lib.data.decode import Decoded, DecodeSpec, ImageError, fit_array, fit_picture
from ddpm_lib.data.names import NumberedNames
from ddpm_lib.data.values import propose
from ddpm_lib.registry import nearest

IMAGE_NAMES = ("image", "img", "images", "pixel_values", "picture", "photo", "jpg", "png", "webp", "x", "arr_0", "data")
LABEL_NAMES = ("class_label", "label", "labels", "fine_label", "coarse_label", "class", "target", "cls", "y", "arr_1")


def choose(kind: str, asked: str | None, usual: Sequence[str], there: Sequence[str], where: str) -> str | None:
    """Choose a column: the one asked for, else the first usual name that is there (any case), else None.

    Raises:
        ValueError: If the one asked for is not there, naming the nearest and all there are.
    """
    if asked is not None:
        if asked in there:
            return asked
        hint = nearest(asked, there)
        did_you_mean = f" Did you mean {hint!r}?" if hint else ""
        raise ValueError(
            f"{where} has no {kind} column {asked!r}.{did_you_mean} There are: {', '.join(map(str, there))}."
        )
    lower = {str(name).lower(): name for name in reversed(there)}
    return next((lower[name] for name in usual if name in lower), None)


def make_labels(
    values: Sequence[Any] | np.ndarray, class_names: Sequence[str] | None, insist: bool, notes: list[str]
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Turn a column of labels into int64 numbers and class names.

    Whole numbers count as class numbers; words are sorted. Missing ones (None or negative) leave the set without
    labels, with a note, or are an error if the user named the column.

    Raises:
        ValueError: If a label is no word or whole number, is out of range, or is missing and `insist` is set.
    """
    array = np.asarray(values)
    missing = (
        array < 0
        if array.dtype.kind in "iuf"
        else np.array([v is None or (isinstance(v, int) and v < 0) for v in values])
    )
    if array.dtype.kind == "f":
        missing |= ~np.isfinite(array)
    if missing.any():
        count = int(missing.sum())
        if insist:
            raise ValueError(
                f"{count:,} of {len(array):,} images have no label. Leave them out, or train without labels."
            )
        notes.append(f"no labels: {count:,} of {len(array):,} images have none")
        return None, None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"Labels must be one number or word per image; got an array of shape {array.shape}.")
    if array.dtype.kind == "b" or (array.dtype.kind == "f" and (array == array.round()).all()):
        array = array.astype(np.int64)
    if array.dtype.kind in "iu":
        highest = int(array.max())
        if class_names is not None and highest >= len(class_names):
            raise ValueError(f"Label {highest} is out of range: there are {len(class_names)} classes.")
        if class_names is None and highest >= max(1000, 2 * len(array)):
            raise ValueError(f"Labels must be class numbers from 0 on; got {highest}. Number the classes without gaps.")
        return array.astype(np.int64), tuple(class_names or (str(k) for k in range(highest + 1)))
    words = [v.decode() if isinstance(v, bytes) else v for v in array.tolist()]
    if not all(isinstance(word, str) for word in words):
        raise ValueError(f"Labels must be whole numbers or words; got {array.dtype} such as {words[0]!r}.")
    found, numbers = np.unique(np.array(words), return_inverse=True)
    return numbers.astype(np.int64), tuple(found.tolist())


class ArraySource(Source):
    """Images in one uint8 array (n, h, w), (n, h, w, c) or (n, c, h, w); used as it is if its shape is right.

    Args:
        images: The array.
        labels: One per image, or None.
        spec: What is asked for.
        insist: Whether a missing label is an error.

    Raises:
        ValueError: If the array does not hold uint8 images, saying how to convert it.
    """

    def __init__(self, images: np.ndarray, labels: Any, spec: DecodeSpec, insist: bool = False) -> None:
        self.notes = []
        if images.ndim == 3 and len(images) in (3, 4):
            self.notes.append(
                f"an array of shape {images.shape} is taken for {len(images)} grey images; one image (c, h, w) would be x[None]"
            )
        images = as_images(images, spec.value_range is not None)
        if images.shape[3] in (1, 3, 4) and images.shape[1:] != spec.shape:
            images = images.transpose(0, 3, 1, 2)
        self.images = images
        self.names = NumberedNames(len(images))
        ready = images.shape[1:] == spec.shape and images.dtype == np.uint8
        self.ready = np.ascontiguousarray(images) if ready else None
        if labels is not None:
            if len(labels) != len(images):
                raise ValueError(f"There are {len(images):,} images but {len(labels):,} labels.")
            self.labels, self.class_names = make_labels(labels, None, insist, self.notes)

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Fit one image."""
        return fit_array(self.images[row], spec)

    def sizes(self) -> np.ndarray:
        """Return a hash of each image, int64 (n,)."""
        return np.array([content_hash(image) for image in self.images], dtype=np.int64)


def as_images(images: np.ndarray, ranged: bool) -> np.ndarray:
    """Check that an array holds images, and return it with four dimensions.

    Raises:
        ValueError: If its values or its shape are not those of images, saying what to do.
    """
    if images.dtype != np.uint8 and not (ranged and images.dtype.kind in "iuf"):
        raise ValueError(_convert(images))
    if images.dtype == np.uint8 and ranged:
        raise ValueError("The array is uint8 already: value_range is for values of more than 8 bits. Leave it out.")
    shape = images.shape
    if len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) > 4:
        raise ValueError(
            f"An array of shape {shape} is one image (h, w, c), not many. Give it a first dimension, and stack as many "
            f"as there are: numpy.stack([...]) of shape (n, {shape[0]}, {shape[1]}, {shape[2]})."
        )
    if len(shape) == 2:
        raise ValueError(
            f"An array of shape {shape} is one image or a table, not many images. Stack images to (n, h, w): "
            "numpy.stack([...])."
        )
    if len(shape) == 3:
        images = images[..., None]
    if images.ndim != 4 or not len(images) or not (images.shape[3] in (1, 3, 4) or images.shape[1] in (1, 3, 4)):
        raise ValueError(
            f"Arrays of images are (n, h, w), (n, h, w, c) or (n, c, h, w) with n ≥ 1 and c of 1, 3 or 4; got "
            f"shape {shape}. Other numbers of channels: ddpm_lib.data.tensor_dataset."
        )
    return images


def content_hash(array: np.ndarray) -> int:
    """Hash an array's bytes to 63 bits."""
    return int.from_bytes(hashlib.blake2b(array.tobytes(), digest_size=8).digest(), "little") >> 1


def _convert(images: np.ndarray) -> str:
    """Say how to get uint8 from another dtype, judged by the range of the values."""
    text = f"Arrays of images must be uint8 (0 … 255); got {images.dtype}."
    if images.dtype.kind not in "fiu" or not images.size:
        return text
    low, high = float(np.min(images)), float(np.max(images))
    if not np.isfinite(low + high):
        return f"{text} It also holds NaN or infinite values."
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return f"{text} The values look like [0, 1]: save (255 * x).round().astype(numpy.uint8)."
    if images.dtype.kind == "f" and low >= -1 and high <= 1:
        return f"{text} The values look like [-1, 1]: save (127.5 * (x + 1)).round().astype(numpy.uint8)."
    if low >= 0 and high <= 255:
        return f"{text} The values fit: save x.astype(numpy.uint8)."
    return f"{text} Values go from {low:,.6g} to {high:,.6g}: {propose(low, high)}."


def open_npz(
    path: Path, spec: DecodeSpec, labels: str, image_column: str | None, label_column: str | None
) -> ArraySource:
    """Open `.npz` or `.npy`; never unpickles.

    Raises:
        ValueError: If the file is damaged, holds objects, or has no array of images.
    """
    from ddpm_lib.data.numpy_files import check_npy, check_npz, name_arrays

    try:
        with open(path, "rb") as file:
            plain = file.read(6) == b"\x93NUMPY"
        if plain:
            check_npy(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return ArraySource(loaded, None, spec)
        with loaded as archive:
            there = archive.files
            column = choose("image", image_column, IMAGE_NAMES, there, path.name)
            if column is None:
                raise ValueError(name_arrays(check_npz(path, ()), path.name))
            usual = [name for name in LABEL_NAMES if name != column]
            label = None if labels == "none" else choose("label", label_column, usual, there, path.name)
            check_npz(path, [name for name in (column, label) if name is not None])
            images, numbers = archive[column], None if label is None else archive[label]
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is damaged or no numpy file: {error}") from None
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(
                f"{path} holds Python objects, which are never loaded (they can run code). Save plain uint8 arrays."
            ) from None
        raise
    return ArraySource(images, numbers, spec, label_column is not None)


class TorchSource(Source):
    """Images of any torch Dataset of dicts, (image, label) tuples or images: uint8 tensors or arrays, or PIL pictures.

    Args:
        data: The dataset, with a length.
        labels: "auto" or "none".
        image_column: Key of the image in dicts.
        label_column: Key of the label in dicts.
        log: Is told when all items must be read for their labels.

    Raises:
        TypeError: If the items are of another kind.
        ValueError: If it is empty or a key is wrong.
    """

    def __init__(
        self,
        data: Any,
        labels: str,
        image_column: str | None,
        label_column: str | None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.notes = []
        self._data = data
        n = len(data)
        if not n:
            raise ValueError("The dataset is empty.")
        self.names = NumberedNames(n)
        item = data[0]
        self._image: Any = None
        self._label: Any = None
        if isinstance(item, Mapping):
            keys, where = list(item), type(data).__name__
            self._image = choose("image", image_column, IMAGE_NAMES, keys, where)
            if self._image is None:
                raise ValueError(f"{where} has no key named image. There are: {', '.join(keys)}. Pass image_column.")
            self._label = choose("label", label_column, LABEL_NAMES, keys, where)
        elif isinstance(item, (tuple, list)):
            self._image, self._label = 0, 1 if len(item) > 1 else None
        if not isinstance(item, Mapping) and (image_column is not None or label_column is not None):
            option = "image_column" if label_column is None else "label_column"
            raise ValueError(
                f"{option} does not fit a Dataset whose items are no dicts: the image comes first, then the label. "
                "Leave it out."
            )
        if labels == "none":
            self._label = None
        self._pixels(item)
        if self._label is not None:
            self.labels, self.class_names = make_labels(
                self._all_labels(item, log), self._class_names(), label_column is not None, self.notes
            )

    def load(self, row: int, spec: DecodeSpec) -> Decoded:
        """Fetch and fit one image."""
        try:
            pixels = self._pixels(self._data[row])
        except TypeError as error:
            raise ImageError(str(error)) from None
        return fit_picture(pixels, spec) if isinstance(pixels, Image.Image) else fit_array(pixels, spec)

    def sizes(self) -> np.ndarray:
        """Return zeros: what a Dataset holds cannot be known without reading it all."""
        return np.zeros(len(self), dtype=np.int64)

    def _pixels(self, item: Any) -> Image.Image | np.ndarray:
        value = item if self._image is None else item[self._image]
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        if isinstance(value, np.ndarray) and value.dtype != np.uint8:
            raise TypeError(
                f"Items of {type(self._data).__name__} are {value.dtype}; images must be uint8 (0 … 255) or PIL "
                "pictures. Leave ToTensor() and Normalize() out of its transform."
            )
        if not isinstance(value, (np.ndarray, Image.Image)):
            raise TypeError(
                f"Items of {type(self._data).__name__} must be dicts, (image, label) tuples or images (uint8 or "
                f"PIL); got {type(value).__name__}."
            )
        return value

    def _all_labels(self, first: Any, log: Callable[[str], None] | None) -> list[Any]:
        """Take the list torchvision's datasets keep, if it agrees with the first item; else read every item."""
        for name in ("targets", "labels", "_labels"):
            known = getattr(self._data, name, None)
            if known is not None and hasattr(known, "__len__") and len(known) == len(self):
                values = [_plain(value) for value in known]
                if values[0] == _plain(first[self._label]):
                    return values
        if log is not None:
            log(f"reading {len(self):,} items for their labels")
        return [_plain(self._data[i][self._label]) for i in range(len(self))]

    def _class_names(self) -> list[str] | None:
        names = getattr(self._data, "classes", None)
        return list(names) if isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names) else None


def _plain(value: Any) -> Any:
    """Turn a tensor or numpy scalar into a Python one."""
    return value.item() if isinstance(value, (torch.Tensor, np.generic)) else value
