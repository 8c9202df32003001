"""What datasets do with conditions: take them from a caller, and describe them for a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch

from ddpm_lib.core.registry import unknown_name
from ddpm_lib.core.spelling import option
from ddpm_lib.data.condition_cells import make_values
from ddpm_lib.data.condition_values import ConditionValues
from ddpm_lib.data.condition_words import OPTIONS
from ddpm_lib.nn.condition_table import check_name

D = TypeVar("D")


def with_conditions(self: D, values: Mapping[str, Any], **options: Mapping[str, Any]) -> D:
    """Return the same images with further conditions, or others in the place of some.

    Numbers make a condition of kind "number"; words "label"; lists of words, or words with "|"
    between them, "tags"; arrays (n, d) "vector", (n, h, w) "mask", (n, c, h, w) "image".

    Args:
        self: The images.
        values: By name, one entry per image, in their order: a list, an array or a tensor.
        **options: By name, what else is to be said: {"kind": "angle", "drop": 0.2, "period": 360,
            "missing": "null", "classes": 4, "encoder": …}.

    Raises:
        ValueError: If an entry is missing, values make no condition, or masks and images would not
            lie on the images, as these are no images of two dimensions or cut into parts.

    >>> data = Shapes(size=8, n=3)  # doctest: +SKIP
    >>> data.with_conditions({"size": [1.0, 2.0, 1.5]})[0]["size"]  # doctest: +SKIP
    tensor(1.)
    """
    for name in options:
        if name not in values:
            raise ValueError(unknown_name("condition", name, values))
        for word in options[name]:
            if word not in OPTIONS:
                raise ValueError(unknown_name(f"word of the condition {name!r}", word, OPTIONS))

    data: Any = self

    def place(row: int) -> str:
        return f"image {data.names[row]}"

    made = dict(data.conditions)
    for name, value in values.items():
        check_name(name)
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        if not isinstance(value, ConditionValues) and len(value) == len(data):
            value = make_values(name, value, place, options.get(name, {}))
        if len(value) != len(data):
            raise ValueError(
                f"The condition {name!r} has {len(value):,} entries for {len(data):,} images. It"
                " must have one per image, in their order."
            )
        if value.kind in ("mask", "image"):
            _lies_on_images(name, value.kind, data)
        made[name] = value
    same = copy.copy(data)
    same.conditions = made
    return same


def _lies_on_images(name: str, kind: str, data: Any) -> None:
    """Refuse masks and images where they would not lie on the images of the data.

    Raises:
        ValueError: For data of another number of dimensions, and where parts are cut out.
    """
    dims = len(data.image_size)
    if dims != 2:
        raise ValueError(
            f"The condition {name!r} is of kind {kind}, which has two dimensions; the data have"
            f" {dims}. Learn slices of volumes ({option('slice_axis')}), or take a number, vector"
            " or label of each volume."
        )
    if data.opened_with.get("fit") == "patch":
        raise ValueError(
            f"The condition {name!r} ({kind}) would not lie on its image: {option('fit', 'patch')}"
            " cuts out another part in each reading, and not of the condition. Cut images and"
            f" {kind}s into parts alike and store those, or leave {option('fit')} out."
        )


def condition_table(self: Any) -> dict[str, dict[str, Any]]:
    """Return what `Unet(conditions=…)` takes for a network that learns all of them."""
    return {name: values.entry() for name, values in self.conditions.items()}


def taken(
    conditions: Mapping[str, ConditionValues], rows: np.ndarray
) -> dict[str, ConditionValues]:
    """Return the conditions of some images."""
    return {name: values.take(rows) for name, values in conditions.items()}
