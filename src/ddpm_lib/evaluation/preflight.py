"""Checks before the work: options without effect, metrics that cannot run, places that cannot be
written to.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.files import try_writing
from ddpm_lib.core.spelling import option
from ddpm_lib.evaluation.evaluation_options import (
    DRAWING,
    READING,
    EvaluationOptions,
    flag,
    non_default,
)
from ddpm_lib.evaluation.metric_table import GAPS, looks_at_images

if TYPE_CHECKING:
    from ddpm_lib.evaluation.run_images import RunImages
    from ddpm_lib.runs.loading import LoadedRun


def refuse_unwritable(folder: Path, option: str) -> None:
    """Refuse a folder for results that cannot be written, before the work and not after it.

    Raises:
        ConfigError: If it cannot be written, naming the option that says where else.
    """
    try:
        try_writing(folder)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(
            f"{folder} cannot be written to ({why}). Say with {option} where the results are to go."
        ) from error


def check_options(options: EvaluationOptions, loaded: LoadedRun | None) -> None:
    """Refuse options that would have no effect.

    Raises:
        ConfigError: If there are any.
    """
    if loaded is None:
        found = non_default(options, ("weights", "ema_decay", "condition", *DRAWING))
        if found:
            raise ConfigError(
                f"Images are scored here, and {flag(found[0])} is for a run, which draws them."
                " Leave it out, or give a run."
            )
        return
    size = loaded.diffusion.image_size
    if options.image_size is not None and set(size) != {options.image_size}:
        raise ConfigError(
            f"Images are compared at the run's own size, {'×'.join(map(str, size))}: leave"
            " image_size (--image-size) out. It is for sets of pictures without a run."
        )
    found = non_default(options, READING)
    if found:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in found)
        raise ConfigError(
            f"Images are opened as the run opened its own: leave {', '.join(found)} ({flags}) out."
        )


def without_held_out(
    options: EvaluationOptions,
    own: RunImages | None,
    dataset: Any,
) -> dict[str, str]:
    """Say which metrics cannot run as nothing was held out, before hours go into the others.

    Raises:
        ConfigError: If that is all that was asked for.
    """
    if own is None:
        return {}
    compared = [name for name in options.metric_names if name in GAPS]
    looking = [name for name in options.metric_names if looks_at_images(name)]
    if options.data != "held-out" or dataset is not None:
        looking = []
    if not (compared or looking) or own.sets()[1] is not None:
        return {}
    nothing = own.why_nothing_is_held_out()
    found = dict.fromkeys(looking, f"{nothing} Use data='train' (--data train), or name images.")
    found |= dict.fromkeys(
        compared,
        f"{nothing} It compares held-out with training images: train with {option('val_every')} and"
        f" {option('val_fraction')} above 0, or with {option('val_data')}.",
    )
    if len(found) == len(options.metric_names):
        raise ConfigError("; ".join(f"{name}: {why}" for name, why in found.items()))
    return found


def clamped_gap(
    asked: EvaluationOptions,
    options: EvaluationOptions,
    own: RunImages | None,
) -> list[str]:
    """Say that fewer images were compared than were asked for."""
    names = [name for name in options.metric_names if name in GAPS]
    if not names or own is None or asked.num is None or own.sets()[1] is None:
        return []
    n = min(len(images) for images in own.sets() if images is not None)
    if asked.num <= n:
        return []
    return [
        f"{', '.join(names)}: num={asked.num:,} is more than can be compared; {n:,} images of each"
        " set were taken."
    ]
