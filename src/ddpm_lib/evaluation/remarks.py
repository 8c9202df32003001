"""What stands beside the numbers: that one is worse than trivial, and what trivial images score."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.core.spread import evenly
from ddpm_lib.evaluation.defaults import trains_likelihood
from ddpm_lib.evaluation.feature_store import FeatureStore, layer_of
from ddpm_lib.evaluation.scores import Score
from ddpm_lib.metrics import frechet_of_features, kernel_distance, manifolds, to_rgb

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion

UNIFORM_BITS = 8.0
"""Bits/dim of a model that takes every value of 8 bits for equally probable."""
WEIGHT_FREE = ("random64", "pixels")
NOISE_IMAGES = 200
FEW_HELD_OUT = 20
MIXED = 0.5
"""From this difference in the share of JPEG files on, two sets are said to be stored differently.
"""
_EMPTY = {
    "precision": "no sample lies among the reference images",
    "recall": "the samples cover none of the reference images",
    "density": "no sample lies among the reference images",
    "coverage": "no reference image has a sample near it",
}


@dataclass(frozen=True)
class Judged:
    """Scores with remarks and rows to compare with, and notes on all of them."""

    scores: list[Score]
    notes: list[str]


def judge_scores(
    scores: Sequence[Score],
    store: FeatureStore | None,
    feature_names: Sequence[str],
    diffusion: GaussianDiffusion | None,
) -> Judged:
    """Put beside each score what trivial images score, where that costs next to nothing, and what
    is wrong with it.

    Args:
        scores: Of all metrics.
        store: Features of the samples and what they are compared with; None without a metric of
            samples.
        feature_names: Names of `FEATURES` that the metrics look at.
        diffusion: The process that is scored; None where sets of images are compared.
    """
    alike, notes = ([], []) if store is None else _alike(store, feature_names)
    found: list[Score] = []
    for score in scores:
        rows = [] if store is None else _baselines(score, store)
        noise = next((row for row in rows if row.name.endswith("/noise")), None)
        found += [_remarked(score, noise, alike), *rows]
    notes += [] if store is None else _stored_differently(store)
    if diffusion is not None and any(_beyond_noise(s) for s in found):
        notes.append(_why_bits(diffusion))
    return Judged(found, notes)


def _stored_differently(store: FeatureStore) -> list[str]:
    """Say that one set went through JPEG and the other did not: with the same pictures FID is then
    not 0.
    """
    if not {"samples", "reference"} <= set(store.sets):
        return []
    shares = {which: store.sets[which].jpeg for which in ("samples", "reference")}
    if None in shares.values():
        return []
    lossy, other = sorted(shares, key=lambda which: -(shares[which] or 0.0))
    if (shares[lossy] or 0.0) - (shares[other] or 0.0) < MIXED:
        return []
    return [
        f"{store.word(lossy)} are JPEG files and {store.word(other)} are not: the artefacts of JPEG"
        " alone shift FID, KID and the like. Store both sets alike before reading small"
        " differences."
    ]


def _remarked(score: Score, noise: Score | None, alike: Sequence[str]) -> Score:
    kind = score.name.split("_")[0]
    remark = score.remark
    if not math.isfinite(score.value):
        remark = "not a number: nothing can be read from it"
    elif any(f"_{name}_" in score.name for name in alike):
        remark = "the images of one set are all alike: says nothing"
    elif _beyond_noise(score):
        remark = f"worse than uniform noise ({UNIFORM_BITS:g} bits/dim)"
    elif kind in _EMPTY and score.value == 0.0 and "/" not in score.name:
        remark = _EMPTY[kind]
    elif score.name.endswith("/infinity") and score.value < 0:
        remark = "below 0, as distances are not: no difference can be told"
    elif noise is not None and kind in ("fd", "kd", "fid", "kid") and score.value >= noise.value:
        remark = "no better than uniform noise"
    return dataclasses.replace(score, remark=remark)


def _beyond_noise(score: Score) -> bool:
    whole = score.unit == "bits/dim" and "/" not in score.name
    return (
        whole and "gap" not in score.name and " - " not in score.name and score.value > UNIFORM_BITS
    )


def _why_bits(diffusion: GaussianDiffusion) -> str:
    if trains_likelihood(diffusion):
        return (
            "bits/dim above 8 are worse than taking every value for equally probable: train longer,"
            " or look for values outside [0, 1] in the data."
        )
    weighting = type(diffusion.weighting).__name__
    return (
        "bits/dim above 8 are worse than taking every value for equally probable. The weighting of"
        f" this run ({weighting}) does not train likelihood: judge it by its samples (--metrics"
        " kid,pr,memorisation). For likelihood train with --diffusion.weighting simple and"
        " --diffusion.variance learned_range, or --diffusion.loss vlb."
    )


def _alike(store: FeatureStore, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Find features in which all images of a set are one, and say so."""
    found: list[str] = []
    notes: list[str] = []
    for name in dict.fromkeys([*names, "pixels"]):
        layer = layer_of(name)
        for which in ("samples", "reference"):
            if not store.has(which, layer) or store.sets[which].n < 2:
                continue
            features = store.features(which, layer)
            if float((features - features[0]).abs().max()) <= 1e-6 * float(features.abs().max()):
                found.append(name)
                notes.append(
                    f"all {store.sets[which].n:,} images of {store.word(which)} are the same to"
                    f" {name}: blank, or copies of one picture. Look at them before reading any"
                    " number."
                )
    return found, list(dict.fromkeys(notes))


def _baselines(score: Score, store: FeatureStore) -> list[Score]:
    """Return what held-out images and noise score instead of the samples, for features without
    weights.
    """
    kind = score.name.split("_")[0]
    if "/" in score.name or kind not in ("fd", "kd", "precision", "recall", "density", "coverage"):
        return []
    features = next((name for name in WEIGHT_FREE if f"_{name}_" in score.name), None)
    layer = layer_of(features) if features else ""
    if not features or not store.has("samples", layer) or "reference" not in store.sets:
        return []
    found: list[Score] = []
    for word, other in _others(store, layer):
        value = _measure(kind, score, store, layer, other)
        if value is not None:
            unit = (
                f"{score.unit}, of {len(other):,}"
                f" {'held-out images' if word == 'held-out' else 'images of noise'}"
            )
            found.append(Score(f"{score.name}/{word}", value, None, unit))
    return found


def _others(store: FeatureStore, layer: str) -> list[tuple[str, Tensor]]:
    found = []
    has_held_out = store.sets.get("held_out") is not None
    same = has_held_out and store.word("held_out") == store.word("reference")
    if store.has("held_out", layer) and not same:
        features = store.features("held_out", layer)
        n = min(store.n, len(features))
        if n >= FEW_HELD_OUT:
            found.append(("held-out", features[torch.from_numpy(evenly(n, len(features)))]))
    found.append(("noise", store.remember(f"noise {layer}", lambda: _noise(store, layer))))
    return found


def _noise(store: FeatureStore, layer: str) -> Tensor:
    """Return features of images whose values are all equally probable."""
    shape = store.sets["reference"].read(range(1)).shape[1:]
    n = min(NOISE_IMAGES, store.n)
    images = torch.stack(
        [
            torch.randint(256, shape, generator=keys.generator("cpu", i, 0, "noise images"))
            for i in range(n)
        ]
    ).to(torch.uint8)
    extractor, wanted = layer.split("/")
    pixels = to_rgb(images).to(store.state.device)
    return store.engine.extractor(extractor, [wanted])(pixels)[wanted].float().cpu()


def _measure(
    kind: str,
    score: Score,
    store: FeatureStore,
    layer: str,
    other: Tensor,
) -> float | None:
    if kind == "fd":
        # Biased by the number of images: another number would not be comparable.
        if len(other) != store.n:
            return None
        return frechet_of_features(other, store.statistics("reference", layer))[0]
    if not store.has("reference", layer):
        return None
    reference = store.features("reference", layer)
    if kind == "kd":
        return kernel_distance(other, reference)
    k = int(score.name.split("_k")[1].split("_")[0])
    if len(other) <= k:
        return None
    return float(getattr(manifolds(other, reference, k), kind).mean())
