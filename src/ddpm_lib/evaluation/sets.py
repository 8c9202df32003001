"""The sets of images that the metrics of samples compare, and which metrics can run at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.evaluation.bank import Bank, Need
from ddpm_lib.evaluation.data import RunData
from ddpm_lib.evaluation.engine import Engine, ImageSet
from ddpm_lib.evaluation.metrics import METRICS
from ddpm_lib.evaluation.sample_metrics import SampleMetric
from ddpm_lib.evaluation.sources import dataset_images, open_pictures, safe_word
from ddpm_lib.metrics import MissingWeightsError, Statistics, read_statistics
from ddpm_lib.metrics.moments import has_statistics
from ddpm_lib.training.config import ConfigError

if TYPE_CHECKING:
    from ddpm_lib.data import ImageDataset
    from ddpm_lib.evaluation.options import EvaluationOptions

Given = tuple[Statistics, dict[str, str], str]


def plan(options: EvaluationOptions, engine: Engine) -> tuple[dict[str, list[Need]], dict[str, str]]:
    """Say what each metric of samples needs, and which cannot run for want of weights.

    Returns:
        Needs by metric, and the reason by metric that is skipped.

    Raises:
        MissingWeightsError: If nothing at all could run.
    """
    needs: dict[str, list[Need]] = {}
    skipped: dict[str, str] = {}
    for name in options.metric_names:
        metric = METRICS[name]
        if not isinstance(metric, SampleMetric):
            continue
        wanted, why = [], ""
        for need in metric.needs(options):
            try:
                engine.digest(need.features.split("/")[0])
                wanted.append(need)
            except MissingWeightsError as error:
                why = why or ("" if need.optional else str(error))
        if why:
            skipped[name] = why
        else:
            needs[name] = wanted
    if skipped and len(skipped) == len(options.metric_names):
        raise MissingWeightsError(next(iter(skipped.values())))
    return needs, skipped


def open_bank(
    samples: ImageSet,
    needs: Iterable[Need],
    engine: Engine,
    options: EvaluationOptions,
    own: RunData | None,
    dataset: ImageDataset | None,
) -> Bank:
    """Open the sets that the needs name.

    Args:
        samples: What is judged.
        needs: Of all metrics.
        engine: Extracts the features.
        options: Name the reference and the held-out images.
        own: The run's sets; None without a run.
        dataset: Images given as an object, which are the reference.

    Raises:
        ConfigError: If a set that is needed is not there.
    """
    roles = {need.which for need in needs}
    sets, given = {"samples": samples}, None
    if roles & {"reference", "train"}:
        found = _reference(options, own, dataset)
        if isinstance(found, ImageSet):
            sets["reference"] = found
        else:
            given = found
    if "train" in roles:
        if own is not None:
            sets["train"] = dataset_images(own.get("train"), "train")
        elif "reference" in sets:
            sets["train"] = sets["reference"]
    if "held_out" in roles:
        if options.held_out is not None:
            sets["held_out"] = open_pictures(options.held_out, "heldout", options)
        elif own is not None and (held_out := own.sets()[1]) is not None:
            sets["held_out"] = dataset_images(held_out, "heldout")
    return Bank(engine, sets, given)


def _reference(options: EvaluationOptions, own: RunData | None, dataset: Any) -> ImageSet | Given:
    own_names = ("train", "held-out")
    name = options.reference
    if name is None and dataset is not None:
        return dataset_images(dataset, "given")
    if name is None:
        name = "train" if own is not None and options.data in own_names else options.data
    if own is None and name in own_names:
        raise ConfigError("Images are compared with a reference. Name it with reference= (--reference PATH), or data=.")
    if own is not None and name in own_names:
        return dataset_images(own.get(name), name)
    path = Path(name)
    if path.is_file() and has_statistics(path):
        statistics, about = read_statistics(path)
        return statistics, about, safe_word(path.stem)
    if own is not None:
        return dataset_images(own.other(name, options.split), safe_word(path.stem))
    return open_pictures(name, None, options)
