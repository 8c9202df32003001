"""Sequences, volumes and points as datasets: tensors of any spatial shape, taken as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.data.dataset import ImageDataset, MemoryStore
from ddpm_lib.data.labels import make_labels
from ddpm_lib.images import check_unit_range


def tensor_dataset(
    values: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
) -> ImageDataset:
    """Make a dataset of tensors that are already what the network is to learn; nothing is resized
    or converted.

    Args:
        values: uint8, or float in [0, 1], of shape (n, c, *spatial): sequences (n, c, length),
            images (n, c, h, w), volumes (n, c, d, h, w). Data of another range is scaled by its
            owner, who also has to scale samples back.
        labels: One class number per entry.
        class_names: One name per class.

    Raises:
        ValueError: If there is nothing, the shape has no spatial size, values are outside [0, 1] or
            labels do not fit.
        TypeError: If the values are neither uint8 nor float.
    """
    tensor = torch.as_tensor(values)
    if tensor.ndim < 3 or not len(tensor):
        raise ValueError(
            f"Data must have shape (n, channels, *spatial) with n ≥ 1; got {tuple(tensor.shape)}."
        )
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise TypeError(f"Data must be uint8, or float in [0, 1]; got {tensor.dtype}. Convert it.")
    tensor = tensor if tensor.dtype == torch.uint8 else tensor.float()
    check_unit_range(tensor)
    numbers = None if labels is None else np.asarray(labels, dtype=np.int64)
    if numbers is not None and (numbers.shape != (len(tensor),) or numbers.min() < 0):
        raise ValueError(
            f"labels must be {len(tensor)} class numbers from 0; got shape {numbers.shape}."
        )
    if numbers is not None and class_names is not None and numbers.max() >= len(class_names):
        raise ValueError(
            f"The label {numbers.max()} has no name: class_names has {len(class_names)}."
        )
    digest = hashlib.blake2b(repr(tuple(tensor.shape)).encode(), digest_size=16)
    digest.update(tensor.contiguous().numpy().tobytes())
    if numbers is not None:
        digest.update(numbers.tobytes())
    return ImageDataset(
        MemoryStore(tensor), labels=numbers, class_names=class_names, fingerprint=digest.hexdigest()
    )


def collect(data: Any, require_labels: bool = False) -> ImageDataset:
    """Gather a torch Dataset of tensors, (tensor, label) tuples or {"image", "class_label"} dicts,
    or an array, into RAM.

    Labels that make no classes are left out, with a note, unless they are required.
    """
    if isinstance(data, (Tensor, np.ndarray)):
        return tensor_dataset(data)
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TypeError(
            f"Sequences and volumes come as an array or a torch Dataset; got {type(data).__name__}."
        )
    values: list[Tensor] = []
    labels: list[Any] = []
    for i in range(len(data)):
        try:
            item = data[i]
            if isinstance(item, dict):
                item = (
                    (item["image"], item["class_label"])
                    if "class_label" in item
                    else (item["image"],)
                )
            elif not isinstance(item, (tuple, list)):
                item = (item,)
            values.append(torch.as_tensor(item[0]))
        except Exception as error:
            raise ValueError(
                f"Item {i} of {type(data).__name__} cannot be used: {type(error).__name__}:"
                f" {str(error)[:200]}"
            ) from error
        labels.extend(item[1:2])
    if len({tuple(v.shape) for v in values}) > 1:
        raise ValueError(
            "All entries must have one shape (c, *spatial); they differ. Crop or pad them."
        )
    notes: list[str] = []
    numbers = names = None
    if len(labels) == len(values):
        numbers, names = make_labels(labels, None, require_labels, notes)
    made = tensor_dataset(torch.stack(values), numbers, names)
    made.notes += notes
    return made
