"""The two datasets of a run, training and held-out, checked against the process that is to learn
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.core.validation import is_path
from ddpm_lib.nn.condition_table import known_texts_of
from ddpm_lib.nn.text_vectors import known_texts
from ddpm_lib.process.conditions import class_count
from ddpm_lib.training.added_conditions import refuse_values_of_others, words_of_held_out
from ddpm_lib.training.conditions_of_data import measure, suited, with_condition_words
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.growing import grown
from ddpm_lib.training.holding_out import held_fraction, hold_out
from ddpm_lib.training.measured_data import in_one_range, units_of_teacher
from ddpm_lib.training.option_values import refuse_described
from ddpm_lib.training.reading_alike import in_its_places, read_alike, transform_alike

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.measurements.normalization import Normalization
    from ddpm_lib.diffusion import GaussianDiffusion


def data_name(data: Any) -> str:
    """Return a short name of a data source, safe as a directory name.

    Names that half of all data sets have, such as train or images, get the folders above them in
    front.
    """
    from ddpm_lib.data.torchvision_sets import PREFIX

    if not isinstance(data, (str, Path)):
        return _safe(type(data).__name__)
    if str(data).startswith(PREFIX):
        return _safe(str(data).removeprefix(PREFIX))
    path = Path(data).resolve()
    parts = [path.name if path.is_dir() else path.stem]
    for folder in path.parents:
        if _safe(parts[0]) not in _USUAL or not folder.name:
            break
        parts.insert(0, folder.name)
    return _safe("-".join(parts))


_USUAL = frozenset(
    (
        "data",
        "dataset",
        "datasets",
        "train",
        "training",
        "trainset",
        "train_data",
        "training_data",
        "train_images",
        "training_set",
        "train_set",
        "val",
        "valid",
        "validation",
        "test",
        "all",
        "full",
        "raw",
        "processed",
        "images",
        "image",
        "imgs",
        "img",
        "pictures",
        "photos",
        "pics",
        "png",
        "jpg",
        "jpeg",
        "faces",
        "samples",
        "x_train",
    )
)
"""Names of folders and files that say nothing of what is in them."""


def _safe(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in str(name)).strip(".-")
    return safe.lower() or "run"


def open_training_data(
    data: Any,
    config: TrainingConfig,
    diffusion: GaussianDiffusion,
    log: Callable[[str], None],
    held_before: float | None = None,
    transform: Callable[[Any], Any] | None = None,
    normalization: Normalization | None = None,
) -> tuple[ImageDataset, ImageDataset | None]:
    """Open the training set and the held-out set as the config says.

    Args:
        data: What `Trainer` takes.
        config: The options.
        diffusion: The process that is to learn it.
        log: Gets lines for the user.
        held_before: For a run that goes on, the val_fraction that it holds images out by (0: none),
            else None. What was held out stays out of the training, and what was trained on stays in
            it, whatever becomes of the validation.
        transform: A callable on each picture of both sets; an open set brings its own.
        normalization: Of measured values, for a run that goes on; else it is a teacher's, or
            fitted on what is trained on.

    Returns:
        The training images and the held-out ones, or None where there are none.
    """
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.missing_paths import look_for
    from ddpm_lib.data.torchvision_sets import validation_split

    refuse_described(config.val_data)
    if config.val_data is not None and is_path(config.val_data):
        look_for(os.fspath(config.val_data))  # before the training images are decoded
    train = _open(data, _for_training(data, config), diffusion, config.split, log, transform)
    alike = read_alike(config, train)
    own_split = validation_split(data, config.split, asks_for_files(config))
    if held_fraction(config, None) and own_split is not None:
        whole = replace(config, files=None)
        split = _open(data, whole, diffusion, own_split, log, transform)
        held_out: ImageDataset | None = split
        log(
            f"Validation: the {len(split):,} images of the split {own_split}; all"
            f" {len(train):,} of the split that is trained on are trained on."
        )
    else:
        train, held_out = hold_out(train, config, held_before, log)
    transform = transform_alike(config, train)
    if config.val_data is not None:
        given = validation_split(config.val_data, None, asks_for_files(config))
        # What is open already has its transform, or none.
        after = None if isinstance(config.val_data, ImageDataset) else transform
        options = _for_held_out(in_its_places(config.val_data, config, alike))
        held_out = _open(config.val_data, options, diffusion, given, log, after)
        check_same_classes(train, held_out, diffusion)
        refuse_values_of_others(held_out, train, config.val_data, data)
    units = normalization or units_of_teacher(diffusion)
    train, held_out = in_one_range(train, held_out, config.normalize, units, log)
    if config.batch_size != "auto" and len(train) < config.batch_size:
        log(
            f"The batch of {config.batch_size} is larger than the {len(train)} training images:"
            " each batch repeats some of them."
        )
    check_classes(train, diffusion)
    train = suited(train, diffusion, log)
    cache: Literal["ram", "none"] = "ram" if train.in_memory else "none"
    kind = train.normalization.kind if train.measured else config.normalize
    kept = replace(alike, files=None, cache=cache, normalize=kind)

    def open_more(more: Any, words: tuple[str, ...]) -> ImageDataset:
        is_open = isinstance(more, ImageDataset)
        options = _as_opened(kept) if is_open else in_its_places(more, config, kept)
        options = replace(options, condition=words)
        after = None if is_open else transform
        return suited(_open(more, options, diffusion, None, log, after), diffusion)

    train = grown(train, held_out, config, open_more, log, reads_labels(diffusion))
    measure(diffusion, train)
    held_out = None if held_out is None else suited(held_out, diffusion)
    if train.num_classes and not reads_labels(diffusion):
        log(unused_classes(train.num_classes))
    return train, held_out


def asks_for_files(config: TrainingConfig) -> bool:
    """Whether an option says that a set of torchvision is meant."""
    return config.data_root is not None or config.download


def without_files(data: Any, config: TrainingConfig) -> TrainingConfig:
    """Return the options without those for files of torchvision's sets, where `data` is none of
    them.
    """
    from ddpm_lib.data.torchvision_sets import set_named

    if set_named(data, asks_for_files(config)) is not None:
        return config
    return replace(config, data_root=None, download=False)


def _for_training(data: Any, config: TrainingConfig) -> TrainingConfig:
    """Return the options for the training data; those for files may be of val_data alone."""
    from ddpm_lib.data.torchvision_sets import set_named

    if set_named(config.val_data, asks_for_files(config)) is None:
        return config
    return without_files(data, config)


def unused_classes(count: int) -> str:
    """Word that classes were found and are not learned."""
    return (
        f"The data have {count:,} classes, which this run does not learn. --class-conditional"
        f" would, in Python Unet(num_classes={count})."
    )


def _for_held_out(config: TrainingConfig) -> TrainingConfig:
    """Return the data options for val_data: those of the training data that fit its kind."""
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.fits import may_have_columns

    words = words_of_held_out(config.condition, config.val_condition, config.val_data)
    config = replace(config, condition=words, val_condition=())
    if isinstance(config.val_data, ImageDataset):
        return _as_opened(config)
    config = replace(without_files(config.val_data, config), files=None)
    if may_have_columns(config.val_data) and config.val_labels == "auto":
        return replace(config, labels=config.val_labels)
    return replace(config, labels=config.val_labels, image_column=None, label_column=None)


def _as_opened(config: TrainingConfig) -> TrainingConfig:
    """Return the data options for a set that is open already, with options of its own."""
    from ddpm_lib.data.fits import DEFAULTS

    usual: dict[str, Any] = {
        f.name: f.default for f in fields(TrainingConfig) if f.name in DEFAULTS
    }
    return replace(config, **usual)


def _open(
    data: Any,
    config: TrainingConfig,
    diffusion: GaussianDiffusion,
    split: str | None,
    log: Callable[[str], None],
    transform: Callable[[Any], Any] | None = None,
) -> ImageDataset:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.fits import check_fits
    from ddpm_lib.data.tensors import collect

    refuse_described(data)
    if transform is not None and (len(diffusion.image_size) != 2 or isinstance(data, ImageDataset)):
        raise ConfigError(
            "transform is for pictures and arrays of images that are opened here: give it to"
            " open_dataset for an ImageDataset, and transform sequences and volumes beforehand."
        )
    known = known_texts([*known_texts_of(diffusion.conditioners).values()])
    shaped = len(diffusion.image_size) == 2 or config.normalize is not None
    if not shaped and not isinstance(data, ImageDataset):
        data = collect(data, reads_labels(diffusion))
    if isinstance(data, ImageDataset):
        check_fits(
            "an ImageDataset that is open already", data_options(config, split), data.opened_with
        )
        wanted = (diffusion.channels, *diffusion.image_size)
        got = (data.channels, *data.image_size)
        if wanted != got:
            raise ConfigError(
                f"The dataset's entries are {got} (channels, then sizes) but the diffusion is built"
                f" for {wanted}."
            )
        with known:
            return with_condition_words(data, config).steady()
    needed = reads_labels(diffusion)
    size, channels = diffusion.image_size, diffusion.channels
    with known:
        return open_images(data, config, size, channels, split, log, needed, transform).steady()


def reads_labels(diffusion: GaussianDiffusion) -> bool:
    """Whether the network is conditional on classes."""
    return "class_label" in (diffusion.conditioners or {})


def data_options(config: TrainingConfig, split: str | None) -> dict[str, Any]:
    """Return the options of a config that say how data is read, as `open_dataset` takes them."""
    return {
        "split": split,
        "files": config.files,
        "data_root": config.data_root,
        "download": config.download,
        "fit": config.fit,
        "labels": config.labels,
        "image_column": config.image_column,
        "label_column": config.label_column,
        "on_bad_image": config.on_bad_image,
        "background": config.background,
        "max_pixels": config.max_pixels,
        "value_range": config.value_range,
        "normalize": config.normalize,
        "slice_axis": config.slice_axis,
        "frames": config.frames,
    }


def open_images(
    data: Any,
    config: TrainingConfig,
    size: tuple[int, ...],
    channels: int,
    split: str | None,
    log: Callable[[str], None],
    require_labels: bool = False,
    transform: Callable[[Any], Any] | None = None,
    normalization: Normalization | None = None,
) -> ImageDataset:
    """Open any source of images with the data options of a config.

    Args:
        data: What `ddpm_lib.data.open_dataset` takes.
        config: Gives fit, labels, columns, cache and workers.
        size: Height and width.
        channels: 1, 3 or 4; any number of measured values.
        split: Split of a dataset that has several.
        log: Gets lines for the user.
        require_labels: Whether the labels that are found must make classes.
        transform: A callable on each picture, before it gets its size.
        normalization: Of measured values, fitted before; None: it is fitted later, on the part that
            is trained on.
    """
    from ddpm_lib.data import open_dataset

    chosen = data_options(config, split)
    if config.normalize is not None:
        from ddpm_lib.data.measurements.normalization import Unfitted

        chosen["normalize"] = normalization or Unfitted(config.normalize)
    return open_dataset(
        data,
        image_size=size,
        channels=channels,
        **chosen,
        cache=config.cache,
        cache_limit_mb=config.cache_limit_mb,
        num_workers=config.num_workers,
        log=log,
        require_labels=require_labels,
        transform=transform,
        conditions=config.condition,
    )


def check_classes(dataset: ImageDataset, diffusion: GaussianDiffusion) -> None:
    """Check that a class-conditional network finds its labels, and enough classes for them.

    Raises:
        ConfigError: If not.
    """
    classes = class_count(diffusion.conditioners)
    if classes is None:
        return
    if dataset.num_classes is None:
        raise ConfigError(
            f"The network is conditional on {classes} classes but the data has no labels. "
            f"Sort the images into one sub-folder per class, set {option('labels', 'prefix')} or"
            f" {option('label_column')}, "
            "or build the Unet without num_classes."
        )
    if dataset.num_classes > classes:
        raise ConfigError(
            f"The data has {dataset.num_classes} classes but the network num_classes={classes}. "
            f"Set num_classes={dataset.num_classes}."
        )


def check_same_classes(
    train: ImageDataset, held_out: ImageDataset, diffusion: GaussianDiffusion
) -> None:
    """Check that label i means the same class in both sets, where the network reads labels.

    Raises:
        ConfigError: If not.
    """
    if reads_labels(diffusion) and train.class_names != held_out.class_names:
        found = ", ".join(held_out.class_names or ["none"])
        raise ConfigError(
            f"{option('val_data')} has the classes {found}, the training data"
            f" {', '.join(train.class_names or ['none'])}. They must be the same;"
            f" {option('val_labels')} says"
            f" where the labels of {option('val_data')} are (folder, prefix)."
        )
