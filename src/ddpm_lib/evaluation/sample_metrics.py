"""Metrics of samples: distances to a reference set, inception score, neighbours, memorisation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ddpm_lib.core.copy_alarm import COPY_ALARM
from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.evaluation.feature_store import Need, layer_of
from ddpm_lib.evaluation.metric_options import MetricOptions
from ddpm_lib.evaluation.scores import Score, count_word
from ddpm_lib.evaluation.tasks import SampleTask
from ddpm_lib.evaluation.value_metric import value_needs, values
from ddpm_lib.metrics import (
    bootstrap_interval,
    copy_test,
    frechet_infinity,
    frechet_of_features,
    inception_score,
    kernel_distance,
    manifolds,
    measure_copying,
    share_interval,
)
from ddpm_lib.metrics.extractors import LOGITS, SPATIAL
from ddpm_lib.metrics.kernel import inception_influence, kernel_influence
from ddpm_lib.metrics.neighbours import TooFewImagesError

FEW = 10_000
"""Below so many samples the bias of Fréchet distances is large: the value comes with a warning and
an estimate without it.
"""
SPLITS = 10
"""Of the inception score."""
NEIGHBOURS = 3
NEIGHBOURS_DC = 5


@dataclass(frozen=True)
class SampleMetric:
    """A metric that looks at samples.

    Attributes:
        needs: What it wants extracted, for given options.
        score: From the task, with its store filled, to scores.
    """

    needs: Callable[[MetricOptions], list[Need]]
    score: Callable[[SampleTask], list[Score]]

    def __call__(self, task: SampleTask) -> list[Score]:
        """Score."""
        return self.score(task)


def _features(task: SampleTask, which: str, layer: str) -> Tensor:
    """Return features where comparing all pairs is fastest: on a GPU that has float64, else on the
    CPU.
    """
    found = task.bank.features(which, layer)
    return found.to(task.state.device) if task.state.device.type == "cuda" else found


def influenced(
    task: SampleTask,
    name: str,
    value: float,
    influence: Tensor,
    unit: str,
    share: bool = False,
    more: float = 0.0,
) -> Score:
    """Return a score with its standard error and interval: Wilson's for a share, else what
    resampling gives. `more` is a standard error of a share besides that of its own values.
    """
    n, influence = len(influence), influence.cpu()
    error = math.hypot(float(influence.std()) / math.sqrt(n), more) if n > 1 else None
    interval = (
        share_interval(influence, more=more)
        if share
        else bootstrap_interval(value, influence, seed=task.options.seed)
    )
    if not error:  # no spread was seen, which does not mean that there is none
        return Score(name, value, None, unit, interval=interval if share else None)
    return Score(name, value, error, unit, interval=interval)


def _extractor_pairs(options: MetricOptions) -> list[tuple[str, str]]:
    return [(name, layer_of(name)) for name in options.feature_names]


def _distance_word(kind: str, features: str) -> str:
    """FID and KID are Inception's; with other features the distance has another name."""
    inception = features.startswith(("inception", "pytorchfid"))
    return {"fid": "fid" if inception else "fd", "kid": "kid" if inception else "kd"}[kind]


def _both(options: MetricOptions, only_statistics: bool = False) -> list[Need]:
    return [
        need
        for _, layer in _extractor_pairs(options)
        for need in (Need("samples", layer), Need("reference", layer, only_statistics))
    ]


def _frechet(task: SampleTask, name: str, layer: str) -> list[Score]:
    store = task.bank
    reference, mine = store.statistics("reference", layer), store.statistics("samples", layer)
    features = store.features("samples", layer)
    value, influence = frechet_of_features(features, reference, mine)
    score = influenced(task, name, value, influence, "squared distance")
    if (
        score.interval is not None and score.interval[0] < 0
    ):  # to first order only: a squared distance is never negative
        score = dataclasses.replace(score, interval=(0.0, score.interval[1]))
    found = [score]
    if store.n < FEW:
        corrected = frechet_infinity(features, reference, task.options.seed)
        if corrected is not None:
            found.append(
                Score(
                    f"{name}/infinity", corrected, None, "extrapolated to infinitely many samples"
                )
            )
    return found


def fid(task: SampleTask) -> list[Score]:
    """Fréchet distance of features to the reference's (Heusel et al. 2017)."""
    store, suffix = task.bank, count_word(task.bank.n)
    return [
        score
        for features, layer in _extractor_pairs(task.options)
        for score in _frechet(
            task,
            f"{_distance_word('fid', features)}_{features}_{store.word('reference')}_{suffix}",
            layer,
        )
    ]


def _layers(options: MetricOptions, table: dict[str, str], metric: str) -> dict[str, str]:
    """Find the layer of another kind in the extractors of the chosen features."""
    names = dict.fromkeys(layer.split("/")[0] for _, layer in _extractor_pairs(options))
    found = {name: f"{name}/{table[name]}" for name in names if name in table}
    if not found:
        raise ConfigError(
            f"{metric} is defined for features of {', '.join(table)}; got"
            f" {option('features', options.features)}. Add one of them."
        )
    return found


def sfid(task: SampleTask) -> list[Score]:
    """Fréchet distance of spatial features (Nash et al. 2021)."""
    store = task.bank
    ends = f"{store.word('reference')}_{count_word(store.n)}"
    layers = _layers(task.options, SPATIAL, "sfid")
    return [
        score
        for name, layer in layers.items()
        for score in _frechet(task, f"sfid_{name}_{ends}", layer)
    ]


def inception(task: SampleTask) -> list[Score]:
    """Inception score over ten splits, shuffled as torch-fidelity does (Salimans et al. 2016)."""
    store, found = task.bank, []
    for name, layer in _layers(task.options, LOGITS, "is").items():
        logits = store.features("samples", layer)
        value, _ = inception_score(logits, SPLITS)
        (n, classes), unit = logits.shape, "exp(nat)"
        most = -(-n // min(SPLITS, n))  # images of a split: so many classes can be told apart
        if most < classes:
            unit += f"; highest possible {most:,}"
        found.append(
            influenced(
                task,
                f"is_{name}_{count_word(store.n)}",
                value,
                inception_influence(logits),
                unit,
            )
        )
    return found


def kid(task: SampleTask) -> list[Score]:
    """Kernel distance over 100 subsets of at most 1,000 images (Bińkowski et al. 2018)."""
    store, found = task.bank, []
    for features, layer in _extractor_pairs(task.options):
        x, y = _features(task, "samples", layer), _features(task, "reference", layer)
        kind, sets = _distance_word("kid", features), store.word("reference")
        name = f"{kind}_{features}_{sets}_{count_word(store.n)}"
        found.append(influenced(task, name, kernel_distance(x, y), kernel_influence(x, y), "MMD²"))
    return found


def precision_recall(task: SampleTask) -> list[Score]:
    """Improved precision and recall, k = 3 (Kynkäänniemi et al. 2019)."""
    return _neighbours(task, NEIGHBOURS, ("precision", "recall"))


def density_coverage(task: SampleTask) -> list[Score]:
    """Density and coverage, k = 5 (Naeem et al. 2020)."""
    return _neighbours(task, NEIGHBOURS_DC, ("density", "coverage"))


def _neighbours(task: SampleTask, k: int, names: tuple[str, str]) -> list[Score]:
    store, found = task.bank, []
    ends = f"{store.word('reference')}_{count_word(store.n)}"
    for features, layer in _extractor_pairs(task.options):
        balls = manifolds(_features(task, "samples", layer), _features(task, "reference", layer), k)
        for name in names:
            values = getattr(balls, name)
            unit = {
                "precision": "of samples",
                "recall": "of reference",
                "coverage": "of reference",
            }.get(name, "mean count/k")
            found.append(
                influenced(
                    task,
                    f"{name}_k{k}_{features}_{ends}",
                    float(values.mean()),
                    values,
                    unit,
                    name != "density",
                    getattr(balls, f"{name}_error", 0.0),
                )
            )
    return found


def memorisation(task: SampleTask) -> list[Score]:
    """Copies of training images among the samples, and C_T against held-out images, in pixels and
    in features.
    """
    store, found = task.bank, []
    ends = f"{store.word('train')}_{count_word(store.n)}"
    for name, layer in {"pixels": "pixels/pixels", **dict(_extractor_pairs(task.options))}.items():
        if not (store.has("samples", layer) and store.has("train", layer)):
            continue
        samples, train = _features(task, "samples", layer), _features(task, "train", layer)
        held_out = _features(task, "held_out", layer) if store.has("held_out", layer) else None
        found += _copies(task, f"copies_{name}_{ends}", samples, train, held_out)
        if held_out is not None:
            found += _copying(task, f"copying_ct_{name}_{ends}", samples, train, held_out)
    return found


def _copies(
    task: SampleTask,
    name: str,
    samples: Tensor,
    train: Tensor,
    held_out: Tensor | None,
) -> list[Score]:
    if len(train) < 3:
        raise TooFewImagesError(f"memorisation needs at least 3 training images; got {len(train)}.")
    test = copy_test(samples, train, held_out)
    usual = float(test.controls.mean())
    remark = ""
    if test.rings:
        remark = f"MEMORISES: {usual:.1%} of images that are no copies look like ones"
    elif not test.can_ring:
        remark = f"cannot tell: {len(samples)} samples are too few for the alarm"
    share = influenced(task, name, float(test.copies.mean()), test.copies, "of samples", share=True)
    controls = f"{len(test.controls):,} images that are no copies"
    unit = f"p-value; alarm at {COPY_ALARM:g} (Fisher, {controls})"
    return [dataclasses.replace(share, remark=remark), Score(f"{name}/p", test.p_value, None, unit)]


def _copying(
    task: SampleTask,
    name: str,
    samples: Tensor,
    train: Tensor,
    held_out: Tensor,
) -> list[Score]:
    test = measure_copying(samples, held_out, train, seed=task.options.seed)
    score = influenced(
        task, name, test.statistic, test.influence, f"z-score; lowest possible {test.least:.1f}"
    )
    remark = ""
    if not test.can_ring:
        images = "image" if len(held_out) == 1 else "images"
        remark = (
            f"cannot tell with {len(held_out)} held-out {images}: no p-value below"
            f" {test.lowest:.2g} is possible"
        )
    elif test.p_value <= COPY_ALARM:
        remark = (
            "nearer to training images than held-out ones are: copies, or blurred and uniform"
            " samples"
        )
    unit = f"p-value; alarm at {COPY_ALARM:g} (Mann-Whitney, held-out images: {len(held_out):,})"
    return [score, Score(f"{name}/p", test.p_value, None, unit, remark=remark)]


def _memorisation_needs(options: MetricOptions) -> list[Need]:
    layers = {"pixels/pixels": False, **{layer: True for _, layer in _extractor_pairs(options)}}
    return [
        Need(which, layer, optional=optional or which == "held_out")
        for layer, optional in layers.items()
        for which in ("samples", "train", "held_out")
    ]


SAMPLE_METRICS = {
    "fid": SampleMetric(lambda o: _both(o, only_statistics=True), fid),
    "sfid": SampleMetric(
        lambda o: [
            need
            for layer in _layers(o, SPATIAL, "sfid").values()
            for need in (Need("samples", layer), Need("reference", layer, only_statistics=True))
        ],
        sfid,
    ),
    "is": SampleMetric(
        lambda o: [Need("samples", layer) for layer in _layers(o, LOGITS, "is").values()], inception
    ),
    "kid": SampleMetric(_both, kid),
    "pr": SampleMetric(_both, precision_recall),
    "dc": SampleMetric(_both, density_coverage),
    "memorisation": SampleMetric(_memorisation_needs, memorisation),
    "values": SampleMetric(value_needs, values),
}
