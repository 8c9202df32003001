"""Sets of measured values that are compared without a run: opened as they are stored."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spread import evenly
from ddpm_lib.evaluation.overviews import drawn_samples

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.evaluation.evaluation_options import EvaluationOptions

_LOOKED_AT = 64


def open_value_set(data: Any, word: str, options: EvaluationOptions) -> ImageDataset:
    """Open measured values at the size and with the channels that they have.

    Args:
        data: What `open_dataset` takes with `normalize`.
        word: The set's word in messages.
        options: Give normalize, image_size, split and on_bad_image.

    Raises:
        ConfigError: If their sizes differ and none is asked for, or they cannot be opened.
    """
    from ddpm_lib.data import BadImagesError, open_dataset

    if isinstance(data, (str, Path)) and Path(data).is_dir():
        data = drawn_samples(Path(data), word)[0]
    try:
        channels, size = _stored_shape(data, word, options)
        return open_dataset(
            data,
            image_size=options.image_size or size,
            channels=channels,
            labels="none",
            normalize=options.normalize,
            on_bad_image=options.on_bad_image or "error",
            split=options.split if isinstance(data, (str, Path)) else None,
        )
    except BadImagesError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{word} cannot be opened as measured values: {error}") from error


def _stored_shape(data: Any, word: str, options: EvaluationOptions) -> tuple[int, tuple[int, ...]]:
    """Return channels and size of the images.

    Raises:
        ConfigError: If sizes differ, and none is asked for.
    """
    from ddpm_lib.data.measurements.measured_spec import WHOLE, fit_values
    from ddpm_lib.data.measurements.value_source import first_values
    from ddpm_lib.data.measurements.value_survey import opened_values

    def opened(volumes: bool) -> Any:
        return opened_values(data, volumes, None, None, {"labels": "none"})

    try:
        found = opened(False)
        whole = found.slice_axis is not None
    except ValueError:  # an array of volumes; what is wrong in both ways is said of this one
        whole = True
    if whole:
        found = opened(True)
    spec = dataclasses.replace(found.spec, fit=WHOLE)
    rows = evenly(min(_LOOKED_AT, len(found.source)), len(found.source)).tolist()
    first_values(found.source)
    shapes: dict[tuple[int, ...], str] = {}
    for row in rows:
        shape = fit_values(found.source.values(row).array, spec).pixels.shape[1:]
        shapes.setdefault(shape, str(found.source.names[row]))
    if len(shapes) > 1 and options.image_size is None:
        (a, first), (b, second) = list(shapes.items())[:2]
        raise ConfigError(
            f"The images of {word} differ in size: {first} is {'×'.join(map(str, a))}, {second}"
            f" {'×'.join(map(str, b))}. Say at which size to evaluate with image_size="
            f" (--image-size {min(a)})."
        )
    return spec.channels, next(iter(shapes))
