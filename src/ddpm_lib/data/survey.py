"""A first look at a set of images, before it is known at which size they will be learned: how many,
how large, of which classes, grey or not, mirrored or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.core.spread import evenly
from ddpm_lib.data.dataset import ImageDataset, StreamStore
from ddpm_lib.data.decode import ImageError
from ddpm_lib.data.measurements.normalization import Unfitted
from ddpm_lib.data.measurements.value_survey import are_values, survey_values
from ddpm_lib.data.opening import open_dataset
from ddpm_lib.data.survey_facts import LOOKED_AT, SIDE, Survey, mirrored_farther


def survey(data: Any, **options: Any) -> Survey:
    """Look at a set of images.

    Args:
        data: What `open_dataset` takes.
        **options: Options of `open_dataset`, but those of reading. With `normalize` the data are
            taken for measured values; without, where no picture can hold them and no value_range
            makes pictures of them.

    Raises:
        ValueError, OSError: As `open_dataset` does.
    """
    words, size = options.pop("conditions", ()), options.pop("image_size", None)
    if isinstance(data, ImageDataset):
        seen = of_dataset(data, fixed=True)
        return _with_conditions(seen, data, data, words, {}, size)
    asked = options.pop("normalize", None) is not None
    how = {name: options.pop(name, None) for name in ("channels", "slice_axis")}
    if asked or (options.get("value_range") is None and are_values(data)):
        volumes = size is not None and len(size) == 3
        seen = survey_values(data, volumes=volumes, asked=asked, **how, **options)
        return _with_conditions(seen, data, None, words, options, size)
    opened = open_dataset(
        data, image_size=SIDE, channels=3, cache="none", verify=False, num_workers=1, **options
    )
    return _with_conditions(of_dataset(opened), data, None, words, options, size)


def _with_conditions(
    seen: Survey,
    data: Any,
    opened: ImageDataset | None,
    words: Sequence[str],
    options: dict[str, Any],
    size: Sequence[int] | None,
) -> Survey:
    """Return what was seen with the conditions that words and the dataset itself name."""
    if not words:
        return seen if opened is None else replace(seen, conditions=opened.condition_table)
    how: dict[str, Any] = {"image_size": tuple(size or (SIDE, SIDE)), "channels": 3}
    if opened is not None:
        how = {"image_size": opened.image_size, "channels": opened.channels}
    how["image_size"] = how["image_size"] if len(how["image_size"]) > 1 else how["image_size"][0]
    if seen.values is not None:
        how["channels"], how["slice_axis"] = seen.channels, seen.values.slice_axis
        how["normalize"] = Unfitted(seen.values.kind)
    if opened is None:
        how |= {"cache": "none", "verify": False, "num_workers": 1}
    made = open_dataset(data, conditions=tuple(words), **how, **options)
    return replace(seen, conditions=made.condition_table)


def of_dataset(data: ImageDataset, fixed: bool = False) -> Survey:
    """Look at a dataset that is open.

    Args:
        data: The images; those that are read on demand tell how large they are stored.
        fixed: Whether their size and channels cannot be chosen.
    """
    rows = evenly(min(len(data), LOOKED_AT), len(data))
    pixels, sizes = _read(data, rows)
    labels, names = data.labels, data.class_names
    counts = None
    if labels is not None:
        counts = tuple(torch.bincount(labels, minlength=data.num_classes or 0).tolist())
        names = names or tuple(map(str, range(len(counts))))
    pictures = pixels.ndim == 4
    return Survey(
        images=len(data),
        looked_at=len(pixels),
        sizes=sizes,
        grey=pictures and bool((pixels == pixels[:, :1]).all()),
        fixed=fixed,
        channels=data.channels,
        class_names=None if labels is None else names,
        class_counts=counts,
        farther=mirrored_farther(pixels) if pictures else None,
        notes=tuple(data.notes),
    )


def _read(data: ImageDataset, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Return images, uint8 (m, c, *spatial), and their width and height as stored (m, 2)."""
    store = data._store
    if not isinstance(store, StreamStore):
        pixels = data.batch(rows.tolist())["image"]
        height, width = data.image_size if len(data.image_size) == 2 else (1, data.image_size[0])
        return pixels, np.tile([width, height], (len(rows), 1))
    found, sizes = [], []
    for row in data._rows[rows].tolist():
        try:
            decoded = store.source.load(row, store.spec)
        except (ImageError, OSError):
            continue  # training names it, and says what to do
        found.append(torch.from_numpy(decoded.pixels))
        sizes.append((decoded.width, decoded.height))
    if not found:  # then all are bad, and this says which
        return data.batch(rows[:1].tolist())["image"], np.array([[1, 1]])
    return torch.stack(found), np.array(sizes)
