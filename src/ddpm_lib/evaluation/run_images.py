"""The images of a run: its own, checked against what it was trained on, or others opened as it
opens its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.data.fits import may_have_columns
from ddpm_lib.data.torchvision_sets import set_named
from ddpm_lib.nn.condition_table import known_texts_of
from ddpm_lib.nn.text_vectors import known_texts
from ddpm_lib.runs.loading import LoadedRun
from ddpm_lib.runs.state import DataDescription
from ddpm_lib.training.added_conditions import refuse_values_of_training
from ddpm_lib.training.conditions_of_data import suited, with_condition_words
from ddpm_lib.training.config import TrainingConfig
from ddpm_lib.training.growing import digests
from ddpm_lib.training.option_values import is_described
from ddpm_lib.training.other_conditions import elsewhere, words_of_others
from ddpm_lib.training.run_config import started_data
from ddpm_lib.training.same_data import (
    fraction_held_out,
    is_same,
    other_conditions,
    read_data_index,
)
from ddpm_lib.training.sources import (
    asks_for_files,
    open_images,
    open_training_data,
    without_files,
)

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset

OnBadImage = Literal["error", "skip"] | None


class RunImages:
    """The sets of a run, opened again when asked for, once.

    Args:
        loaded: The run.
        given: Images that may be those it was trained on, whole, as they were given to its
            training.
        files: data_root and download, for sets of torchvision; None for the run's own data_root.
        words: Where the conditions of other images are, NAME=SOURCE[:COLUMN]; of those that are not
            named, where those of the training images are.
    """

    def __init__(
        self,
        loaded: LoadedRun,
        given: Any = None,
        files: tuple[str | None, bool] = (None, False),
        words: Sequence[str] = (),
    ) -> None:
        self.loaded, self.words = loaded, tuple(words)
        self._files = files
        self.given = given
        self._sets: tuple[ImageDataset, ImageDataset | None] | None = None

    @property
    def config(self) -> TrainingConfig:
        """The options of the run's training; of a pretrained folder, the defaults."""
        if self.loaded.pretrained is not None:
            return TrainingConfig()
        options = dict(self.loaded.run_state.training)
        root, download = self._files
        options |= {"data_root": root or options.get("data_root"), "download": download}
        return TrainingConfig.from_options(options, str(self.loaded.checkpoint))

    def check_words(self, data: str, dataset: Any) -> None:
        """Refuse sources of conditions of images that have their own, and of a network that takes
        none.

        Args:
            data: The option of that name.
            dataset: Images that are given as an object.

        Raises:
            ConfigError: If so, or if a name is not that of a condition.
        """
        if not self.words:
            return
        words_of_others(self.loaded.diffusion, (), self.words)
        if dataset is None and data in ("held-out", "train"):
            raise ConfigError(
                f"{option('condition')} says where the conditions of other images are, and"
                f" {option('data', data)} are the run's own, which have theirs. Name the images"
                f" with {option('data')}, or leave it out."
            )

    @property
    def are_open(self) -> bool:
        """Whether the run's own sets have been opened."""
        return self._sets is not None

    def get(self, which: str) -> ImageDataset:
        """Return "train" or "held-out".

        Raises:
            ConfigError: If the data cannot be opened, has changed, or holds nothing out.
        """
        train, held_out = self.sets()
        if which == "train":
            return train
        if held_out is None:
            raise ConfigError(
                f"{self.why_nothing_is_held_out()} Use data='train' (--data train), or name images."
            )
        return held_out

    def why_nothing_is_held_out(self) -> str:
        """Say why there are no held-out images."""
        if is_described(self.config.val_data):
            return (
                f"the held-out images of this run were an object of Python, {self.config.val_data},"
                " which cannot be opened again. Pass them: evaluate(run, dataset)."
            )
        return (
            "this run held nothing out (val_every or val_fraction was 0, or it had fewer than 10"
            " images)."
        )

    def sets(self) -> tuple[ImageDataset, ImageDataset | None]:
        """Return the training set and, where there is one, the held-out set; neither is augmented.

        Raises:
            ConfigError: If the data cannot be opened, or is not what the run was trained on.
        """
        if self._sets is None:
            self._sets = self._open()
        return self._sets

    def _open(self) -> tuple[ImageDataset, ImageDataset | None]:
        described = self.loaded.run_state.trained_on  # an error for a pretrained folder
        known = self._from_given(described)
        if known is not None:
            return known
        if not described.is_known:
            raise ConfigError(
                "The images that these weights were trained on are not known here: the run was made"
                " from another program's file. Name images with data= (--data PATH)."
            )
        run, called = self.loaded.run, self.loaded.state.get("training", {}).get("output_dir")
        source = started_data(run, called, str(described.source))
        if source.isidentifier() and source[0].isupper() and not Path(source).exists():
            # The name of a class, not a path: somebody's object, which no hub has either.
            raise ConfigError(
                f"This run was trained on an object of Python ({source}), which cannot be opened"
                " again. Pass it: evaluate(run, dataset); or name images with data= (--data PATH)."
            )
        config = self.config
        if set_named(config.val_data, asks_for_files(config)) is None:
            config = without_files(source, config)
        if is_described(config.val_data):
            config = dataclasses.replace(config, val_data=None, val_condition=(), val_fraction=0.0)
        try:
            fraction = fraction_held_out(self.loaded.run_state)
            diffusion = self.loaded.diffusion
            train, held_out = open_training_data(
                source,
                config,
                diffusion,
                _quiet,
                fraction,
                normalization=diffusion.normalization,
            )
        except (OSError, TypeError, ValueError) as error:
            raise ConfigError(
                f"The data of this run, {described.source!r}, cannot be opened from here: {error}"
                " Name images with data= (--data PATH), or pass them in Python: evaluate(run,"
                " dataset)."
            ) from error
        if not is_same(train, described):
            raise ConfigError(
                f"{described.source!r} is not the data that this run was trained on: "
                f"{len(train):,} training images now, {described.images:,} then, or other files. "
                "Restore it, or name images with data= (--data PATH)."
            )
        others = _changes(train, held_out, described)
        if others:
            raise ConfigError(
                f"The data of this run, {described.source!r}, are not what they were: {others[0]}."
                " Restore it, or name images with data= (--data PATH)."
            )
        return train, held_out

    def opened(self, dataset: Any, split: str | None, on_bad_image: OnBadImage) -> ImageDataset:
        """Return a dataset given as an object: opened as the run opens its own, if it is not one of
        ours.

        Raises:
            ConfigError: If it does not fit the run.
        """
        from ddpm_lib.data import ImageDataset

        if isinstance(dataset, ImageDataset) and self.words:
            words = words_of_others(self.loaded.diffusion, (), self.words)
            with known_texts([*known_texts_of(self.loaded.diffusion.conditioners).values()]):
                config = dataclasses.replace(self.config, condition=words)
                told = with_condition_words(self._in_its_range(dataset), config)
                return told.steady()
        if isinstance(dataset, ImageDataset):
            return self._in_its_range(dataset).steady()
        return self.other(dataset, split, on_bad_image)

    def _in_its_range(self, dataset: ImageDataset) -> ImageDataset:
        """Return measured values of an open set normalized as the run's are; pictures as they are.

        Raises:
            ConfigError: If one is of pictures and the other of measured values, or of another type.
        """
        known = self.loaded.diffusion.normalization
        if bool(dataset.measured) != (known is not None):
            kinds = ("measured values", "pictures")
            ours, theirs = kinds if known is not None else kinds[::-1]
            way = "with" if known is not None else "without"
            raise ConfigError(
                f"The run learned {ours}, and the dataset holds {theirs}. Open it {way} normalize."
            )
        if known is None:
            return dataset
        from ddpm_lib.data.measurements.opening_measured import normalized

        try:
            return normalized(dataset, known)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _from_given(
        self,
        described: DataDescription,
    ) -> tuple[ImageDataset, ImageDataset | None] | None:
        """Cut the images given as training did, and return the two sets if they are those of the
        run.
        """
        from ddpm_lib.data import ImageDataset

        given = self.given
        if given is None or self.loaded.pretrained is not None:
            return None
        try:
            if isinstance(given, ImageDataset):
                given = self._in_its_range(given)
            fraction = fraction_held_out(self.loaded.run_state)
            found = open_training_data(
                given,
                self.config,
                self.loaded.diffusion,
                _quiet,
                fraction,
                normalization=self.loaded.diffusion.normalization,
            )
        except (OSError, TypeError, ValueError):
            return None  # other images, of other sizes or classes
        same = is_same(found[0], described) and not _changes(*found, described)
        return found if same else None

    def other(self, data: Any, split: str | None, on_bad_image: OnBadImage) -> ImageDataset:
        """Open other images as the run opens its own, whole.

        Args:
            data: What `ddpm_lib.data.open_dataset` takes.
            split: Split of a dataset that has several.
            on_bad_image: "error" or "skip"; None: as the run was trained.

        Raises:
            ConfigError: If they do not fit the run.
        """
        config, diffusion = self.config, self.loaded.diffusion
        words = words_of_others(diffusion, config.condition, self.words)
        known = diffusion.normalization
        kind: Any = None if known is None else known.kind  # also of a set that came open
        alone = dataclasses.replace(
            config,
            condition=words,
            normalize=kind,
            val_data=None,
            val_condition=(),
            val_fraction=0.0,
            add_data=(),
            add_condition=(),
            split=split,
            files=None,
            batch_size=1,
            accumulation_steps=1,
            shards=None,
            on_bad_image=on_bad_image or config.on_bad_image,
        )
        alone = without_files(data, alone)
        opened, _ = open_training_data(data, alone, diffusion, _quiet, normalization=known)
        index = None if self.loaded.pretrained else read_data_index(self.loaded.run)
        refuse_values_of_training(opened, data, index, elsewhere(config.condition, words))
        return check_matches_run(opened, self.loaded)

    def image_column(self, data: Any) -> str | None:
        """Return the run's column of images for data that may have columns."""
        return (
            self.config.image_column
            if isinstance(data, (str, Path)) and may_have_columns(data)
            else None
        )

    def pictures(self, data: Any, split: str | None, on_bad_image: OnBadImage) -> ImageDataset:
        """Open images to compare samples with as the run opens its own: size, channels, fit; no
        labels.

        Of folders a source comes here, which knows its frames.
        """
        known = self.loaded.diffusion.normalization
        kind: Any = None if known is None else known.kind
        bare = dataclasses.replace(
            self.config,
            normalize=kind,
            labels="none",
            label_column=None,
            image_column=self.image_column(data),
            frames="first",
            files=None,
            condition=(),
        )
        if on_bad_image is not None:
            bare = dataclasses.replace(bare, on_bad_image=on_bad_image)
        bare = without_files(data, bare)
        diffusion = self.loaded.diffusion
        size, channels = diffusion.image_size, diffusion.channels
        return open_images(data, bare, size, channels, split, _quiet, normalization=known)


def _changes(
    train: ImageDataset, held_out: ImageDataset | None, described: DataDescription
) -> list[str]:
    """Say what a run's conditions and held-out images are now that they were not in training."""
    found = other_conditions(digests(train), described.conditions)
    if held_out is None:
        return found
    known = described.val_fingerprint if described.fingerprint_version > 1 else None
    if known and known != held_out.fingerprint:
        return [*found, "the held-out images are others"]
    theirs = other_conditions(digests(held_out), described.val_conditions)
    return [*found, *(f"{words}, of the held-out images" for words in theirs)]


def check_matches_run(dataset: ImageDataset, loaded: LoadedRun) -> ImageDataset:
    """Check that a dataset has the run's shape and, where the network reads labels, its classes."""
    wanted, got = loaded.diffusion.image_shape, (dataset.channels, *dataset.image_size)
    if wanted != got:
        raise ConfigError(
            f"The run needs entries of shape {wanted}; the dataset has {got}. Open it with that"
            " image_size."
        )
    names = loaded.diffusion.conditioners or {}
    if "class_label" in names and dataset.class_names != loaded.class_names:
        raise ConfigError(
            f"The run was trained on the classes {', '.join(loaded.class_names or ['none'])}; the"
            f" data has {', '.join(dataset.class_names or ['none'])}. They must be the same."
        )
    return suited(dataset, loaded.diffusion)


def _quiet(_: str) -> None:
    """Drop the lines that opening data says: they were said when the run was trained."""
