"""The sets of images that the metrics of samples compare, and which metrics can run at all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.evaluation.engine import Engine
from ddpm_lib.evaluation.feature_store import FeatureStore, Need, ReferenceStats, layer_of
from ddpm_lib.evaluation.image_sets import ImageSet, dataset_images, safe_word
from ddpm_lib.evaluation.metric_table import METRICS
from ddpm_lib.evaluation.pictures import open_pictures
from ddpm_lib.evaluation.run_images import RunImages
from ddpm_lib.evaluation.sample_metrics import SampleMetric
from ddpm_lib.metrics import MissingWeightsError, Statistics, read_statistics
from ddpm_lib.metrics.moments import contents

if TYPE_CHECKING:
    from ddpm_lib.evaluation.evaluation_options import EvaluationOptions


def plan_features(
    options: EvaluationOptions, engine: Engine, without: Collection[str] = ()
) -> tuple[dict[str, list[Need]], dict[str, str]]:
    """Say what each metric of samples needs, and which cannot run for want of weights.

    Args:
        options: Name the metrics and features.
        engine: Looks for weights.
        without: Metrics that cannot run anyway.

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
    if skipped and len(skipped) + len(without) == len(options.metric_names):
        raise MissingWeightsError(
            f"{next(iter(skipped.values()))}\n  without weights features='random64' (--features"
            " random64), for a first look"
        )
    return needs, skipped


def open_feature_store(
    samples: ImageSet,
    needs: Iterable[Need],
    engine: Engine,
    options: EvaluationOptions,
    own: RunImages | None,
    dataset: Any,
) -> FeatureStore:
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
        images, given = _reference(options, own, dataset)
        sets |= {} if images is None else {"reference": images}
    if "train" in roles:
        if own is not None:
            sets["train"] = dataset_images(own.get("train"), "train")
        elif "reference" in sets:
            sets["train"] = sets["reference"]
    if "held_out" in roles or (options.references and own is not None and own.are_open):
        if options.held_out is not None:
            sets["held_out"] = open_pictures(options.held_out, "heldout", options, like=own)
        elif own is not None and (held_out := own.sets()[1]) is not None:
            sets["held_out"] = dataset_images(held_out, "heldout")
    if options.reader != "training" and all(
        images.reader == "training" for images in sets.values()
    ):
        raise ConfigError(
            f"{option('reader', options.reader)} reads folders of pictures, and none is evaluated."
            " Leave it"
            " (--reader) out."
        )
    return FeatureStore(engine, sets, given)


def _reference(
    options: EvaluationOptions, own: RunImages | None, dataset: Any
) -> tuple[ImageSet | None, ReferenceStats | None]:
    """Open the reference: images, statistics, or a file that holds both."""
    own_names = ("train", "held-out")
    name = options.reference
    if name is None and dataset is not None:
        return open_pictures(dataset, "given", options, like=own), None
    if name is None:
        name = "train" if own is not None and options.data in own_names else options.data
    if own is None and name in own_names:
        raise ConfigError(
            "Images are compared with a reference. Name it with"
            f" {option('reference', 'path/to/others')}: a folder of pictures, an .npz of images or"
            " of statistics. Several such evaluations stand side by side in `ddpm compare`."
        )
    if own is not None and name in own_names:
        return dataset_images(own.get(name), name), None
    path = Path(name)
    word = safe_word(path.stem)
    held = contents(path) if path.is_file() else set()
    given = None
    if held & {"statistics", "spatial"}:
        given = _read_reference_stats(path, word, held, options)
    if given is not None and "images" not in held:
        return None, given
    return open_pictures(name, word, options, like=own), given


def _read_reference_stats(
    path: Path,
    word: str,
    held: set[str],
    options: EvaluationOptions,
) -> ReferenceStats:
    layers: dict[str, Statistics] = {}
    if "statistics" in held:
        statistics, about = read_statistics(path)
        # A published file does not say of which features it is; the first ones asked for must have
        # its dimension.
        layers[about.get("features", layer_of(options.feature_names[0]))] = statistics
    if "spatial" in held:
        layers["inception/spatial"] = read_statistics(path, spatial=True)[0]
    return ReferenceStats(word, layers)
