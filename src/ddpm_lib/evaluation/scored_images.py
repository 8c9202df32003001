"""The images that metrics of the model look at: what the option `data` names, or images given as an
object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spread import evenly
from ddpm_lib.evaluation.evaluation_options import EvaluationOptions
from ddpm_lib.evaluation.image_sets import clamp
from ddpm_lib.evaluation.metric_table import METRICS, looks_at_images
from ddpm_lib.evaluation.overviews import drawn_samples
from ddpm_lib.evaluation.run_images import RunImages, check_matches_run
from ddpm_lib.evaluation.sample_metrics import SampleMetric
from ddpm_lib.evaluation.tasks import NO_MODEL

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset


@dataclass(frozen=True)
class ScoredImages:
    """Images that the model is scored on.

    Attributes:
        images: In order.
        about: JSON-able: which they are.
        notes: What people are told of them.
    """

    images: ImageDataset
    about: dict[str, Any]
    notes: Sequence[str] = ()


def open_scored_images(
    names: Sequence[str], options: EvaluationOptions, own: RunImages | None, dataset: Any
) -> ScoredImages | None:
    """Open what the named metrics look at; None if all of them are of samples.

    Metrics that compare the run's own two sets get the held-out one.

    Raises:
        ConfigError: If there is no model to score, or the images cannot be opened or do not fit.
    """
    names = [name for name in names if not isinstance(METRICS[name], SampleMetric)]
    if not names:
        return None
    if own is None:
        raise ConfigError(NO_MODEL)
    if not any(looks_at_images(name) for name in names):
        return ScoredImages(own.get("held-out"), {})
    word, whole = whole_set(options, own, dataset)
    n, notes = clamp(options.num, len(whole), word)
    images = whole.subset(evenly(n, len(whole)))
    about = {
        "name": word,
        "images": n,
        "of": len(whole),
        "chosen": "row i·of//images",
        "fingerprint": images.fingerprint,
        "source": None if own.loaded.pretrained else own.loaded.run_state.trained_on.source,
    }
    return ScoredImages(images, {"data": about}, notes)


def whole_set(options: EvaluationOptions, own: RunImages, dataset: Any) -> tuple[str, ImageDataset]:
    """Return all of the images that the model is scored on, with their word in notes."""
    from ddpm_lib.data import ImageDataset

    if dataset is None:
        return options.data, _named_set(options, own)
    if not isinstance(dataset, ImageDataset):
        dataset = own.other(dataset, options.split, options.on_bad_image)
    return "given", check_matches_run(dataset, own.loaded)


def _named_set(options: EvaluationOptions, own: RunImages) -> ImageDataset:
    """Open the images that `options.data` names.

    Raises:
        ConfigError: If the run's own data cannot be opened, has changed, or holds nothing out; or
            classes do not fit.
    """
    if options.data not in ("held-out", "train"):
        folder = Path(options.data)
        data = drawn_samples(folder, "data")[0] if folder.is_dir() else options.data
        return own.other(data, options.split, options.on_bad_image)
    if options.split is not None:
        raise ConfigError(
            f"split goes with a dataset of yours in data; data={options.data!r} is the run's own."
        )
    return own.get(options.data)
