"""Measured values of a run: one normalization for what is trained on and what is held out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.data.measurements.normalization import Normalization
    from ddpm_lib.diffusion import GaussianDiffusion


def units_of_teacher(diffusion: GaussianDiffusion) -> Normalization | None:
    """Return how the values were normalized that the weights of a process know, where training
    must not change it: a student has its teacher's units, whatever images it learns from.
    """
    return None if diffusion.pairs is None else diffusion.normalization


def in_one_range(
    train: ImageDataset,
    held_out: ImageDataset | None,
    kind: str | None,
    saved: Normalization | None,
    log: Callable[[str], None],
) -> tuple[ImageDataset, ImageDataset | None]:
    """Normalize both sets of a run by what is fitted on the training images; pictures stay as they
    are.

    An open set brings a map that was fitted on all its images: where some of them are held out, it
    is fitted anew on the others, as it is where the run opens the data itself. A `Normalization`
    that the set was opened with is taken as it is.

    Args:
        train: The training images.
        held_out: The held-out ones, if any.
        kind: "affine", "quantile", or None for pictures.
        saved: Of a run that goes on: its normalization, which counts.
        log: Gets lines.

    Raises:
        ConfigError: If a set is of pictures and the other of measured values, or the run was
            normalized in another way.
    """
    kind = kind or (train.normalization.kind if train.normalization is not None else None)
    if saved is not None and (not train.measured or saved.kind != (kind or saved.kind)):
        raise ConfigError(
            f"This run learns measured values with {option('normalize', saved.kind)}; what its"
            " network has learned means nothing in another range. Leave that option as it was, or"
            " start another run."
        )
    if not train.measured:
        if held_out is not None and held_out.measured:
            raise ConfigError(
                f"{option('val_data')} holds measured values, and the training data pictures. Open"
                f" both with {option('normalize')}, or none."
            )
        return train, held_out
    from ddpm_lib.data.measurements.opening_measured import fit_to, fits_others, normalized

    if saved is not None:
        _refuse_another(train, saved)
        train = normalized(train, saved)
    elif train.normalization is None or fits_others(train):
        before = len(train.notes)
        if train.normalization is not None:
            log(
                "The open set was normalized by others of its images too. The run takes the range"
                f" of the {len(train):,} that it trains on, which is diffusion.normalization."
            )
        train = fit_to(train, kind or "affine")
        for note in train.notes[before:]:
            log(note)
    if held_out is None:
        return train, None
    if not held_out.measured:
        raise ConfigError(
            f"{option('val_data')} holds pictures, and the training data measured values. Open both"
            f" with {option('normalize')}, or none."
        )
    return train, normalized(held_out, train.normalization)


def _refuse_another(train: ImageDataset, saved: Normalization) -> None:
    """Refuse a normalization that was handed over, where a run goes on with its own.

    Raises:
        ConfigError: If they differ.
    """
    given = train.normalization
    if given is None or "fitted_to" in train.measured:
        return
    if not given.same_map(saved):
        raise ConfigError(
            f"The data were opened with another normalization than this run has learned with"
            f" ({given.line()}; the run's: {saved.line()}). Open them with"
            f' normalize="{saved.kind}", or with load_run(…).diffusion.normalization.'
        )
