"""How further images of a run are read, now and when its record is opened: as its training images
were.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.validation import is_path
from ddpm_lib.training.config import TrainingConfig

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset

_PIXELS = ("fit", "background", "value_range", "max_pixels", "normalize", "slice_axis")
"""Options of `open_dataset` by which a pixel means the same in two sets."""
_PLACES = ("labels", "image_column", "label_column")
"""Those that say where images and labels are found."""


def read_alike(config: TrainingConfig, train: ImageDataset) -> TrainingConfig:
    """Return options by which held-out images, additions and later sets are read as the training
    images were: an open set has options of its own, which count where the run names none.
    """
    from ddpm_lib.data.decode_spec import colour_of
    from ddpm_lib.data.fits import DEFAULTS

    found: dict[str, Any] = {}
    for name in (*_PIXELS, *_PLACES):
        value = train.opened_with.get(name)
        if value is not None and getattr(config, name) == DEFAULTS[name]:
            found[name] = value
    if not isinstance(found.get("background", ""), str):
        found["background"] = "#{:02x}{:02x}{:02x}".format(*colour_of(found["background"]))
    if "value_range" in found:
        found["value_range"] = tuple(map(float, found["value_range"]))
    return replace(config, **found) if found else config


def in_its_places(data: Any, config: TrainingConfig, alike: TrainingConfig) -> TrainingConfig:
    """Return the options of `read_alike` for one set that is opened here: objects have labels and
    columns of their own, where the run names none, and a path may lead to what has no columns.
    """
    from ddpm_lib.data.fits import may_have_columns

    if not is_path(data):
        return replace(alike, **{name: getattr(config, name) for name in _PLACES})
    return alike if may_have_columns(data) else replace(alike, image_column=None, label_column=None)


def transform_alike(config: TrainingConfig, train: ImageDataset) -> Any:
    """Return the transform of the training images, for held-out images and additions that are
    opened here: an open set has had its own. None: there is none, or nothing to open.

    Raises:
        ConfigError: If it is needed, and not known in this process.
    """
    from ddpm_lib.data import ImageDataset

    others = [config.val_data, *config.add_data]
    if all(other is None or isinstance(other, ImageDataset) for other in others):
        return None
    said, transform = train.opened_with.get("transform"), train.applied.transform
    if said is not None and transform is None:
        raise ConfigError(
            f"The training images were opened with transform={said}, which pickling them has left"
            f" behind, so that {option('val_data')} and {option('add_data')} cannot be read like"
            " them. Open these with open_dataset(…, transform=…), too."
        )
    return transform
