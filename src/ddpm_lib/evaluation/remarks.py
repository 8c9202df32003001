"""What stands beside the numbers: that one is worse than trivial, or says nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm_lib.evaluation.defaults import trains_likelihood
from ddpm_lib.evaluation.feature_store import FeatureStore, layer_of
from ddpm_lib.evaluation.scores import Score

if TYPE_CHECKING:
    from ddpm_lib.diffusion import GaussianDiffusion

UNIFORM_BITS = 8.0
"""Bits/dim of a model that takes every value of 8 bits for equally probable."""
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
    references: Mapping[str, Mapping[str, Score]] | None = None,
) -> Judged:
    """Put beside each score what it is compared with, and what is wrong with it.

    Args:
        scores: Of all metrics.
        store: Features of the samples and what they are compared with; None without a metric of
            samples.
        feature_names: Names of `FEATURES` that the metrics look at.
        diffusion: The process that is scored; None where sets of images are compared.
        references: What other images score, by score and set (`reference_rows`).
    """
    alike, notes = ([], []) if store is None else _alike(store, feature_names)
    found: list[Score] = []
    for score in scores:
        rows = (references or {}).get(score.name, {})
        found += [_remarked(score, rows, alike), *rows.values(), *_uniform(score)]
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


def _uniform(score: Score) -> list[Score]:
    """Return what a model that knows nothing scores in bits/dim."""
    if score.unit != "bits/dim" or score.name not in ("nll", "flow_nll"):
        return []
    unit = "bits/dim, of a model to which every value is equally probable"
    return [Score(f"{score.name}/uniform", UNIFORM_BITS, None, unit)]


def _remarked(score: Score, rows: Mapping[str, Score], alike: Sequence[str]) -> Score:
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
    elif (
        kind in ("fd", "kd", "fid", "kid", "sfid") or score.name.startswith("value_spectrum")
    ) and not _as_good_as_data(score, rows):
        remark = remark or next(
            (
                f"no better than {text}"
                for word, text in (("noise", "uniform noise"), ("blurred", "blurred images"))
                if word in rows and score.value >= rows[word].value
            ),
            "",
        )
    return dataclasses.replace(score, remark=remark)


def _as_good_as_data(score: Score, rows: Mapping[str, Score]) -> bool:
    """Whether a distance may be that of real images, within two standard errors: of few samples it
    may at the same time be that of bad ones, and says nothing of either.
    """
    real = rows.get("held-out") or rows.get("half")
    if real is None or score.standard_error is None:
        return False
    return score.value - 2.0 * score.standard_error <= real.value


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
