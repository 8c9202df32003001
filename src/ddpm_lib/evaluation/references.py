"""What a score is compared with: the same metric of held-out images, of blurred ones and of noise
in the place of the samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.core import keys
from ddpm_lib.core.digests import digest_of
from ddpm_lib.core.spread import evenly
from ddpm_lib.evaluation.feature_store import FeatureStore
from ddpm_lib.evaluation.image_sets import ImageSet
from ddpm_lib.evaluation.sample_metrics import SAMPLE_METRICS
from ddpm_lib.evaluation.scores import Score, count_word
from ddpm_lib.evaluation.tasks import SampleTask
from ddpm_lib.metrics.neighbours import TooFewImagesError

WEIGHT_FREE = ("random64", "pixels")
MOST, MOST_OF_NETWORKS = 1000, 500
"""Images of each set, of features without weights and of those that a network makes."""
FEWEST = 20
"""Images below which a set is no reference."""
ENOUGH = 10
"""So many times as many reference images as samples add nearly nothing to a Fréchet distance."""
BLUR = 6 / 64
"""Standard deviation of the blur as a share of the shorter side."""
HALF, HELD_OUT, BLURRED, NOISE = "half", "held-out", "blurred", "noise"
WORDS = {
    HALF: "images of one half of the reference against the other",
    HELD_OUT: "held-out images",
    BLURRED: "blurred reference images",
    NOISE: "images of uniform noise",
}
"""Sets by the word in names of scores, and what they are."""


def reference_rows(task: SampleTask, names: Sequence[str]) -> dict[str, dict[str, Score]]:
    """Score what everybody can judge in the place of the samples.

    Held-out images are as good as samples can be; where there are fewer than 20, one half of the
    reference against the other stands for them. Blurred images and noise say what is bad. There are
    as many of each as of the samples, at most 1,000 (500 for features that a network makes), and
    their features are remembered as those of the reference are.

    Args:
        task: What the samples were scored on.
        names: The metrics that were run.

    Returns:
        Scores by the name of the samples' score and by the word of the set (`WORDS`). Fréchet
        distances of fewer images are larger, whatever the images: those of held-out images and
        halves are there only where there are as many as of the samples, of halves only where the
        other half has ten times as many. Coverage and inception score grow with the number of
        images: rows of fewer than the samples are left out, and coverage of halves.
    """
    chosen = [name for name in names if name in SAMPLE_METRICS]
    found: dict[str, dict[str, Score]] = {}
    for word, store in _views(task, chosen).items():
        for name in chosen:
            if name == "memorisation" and word != HELD_OUT:
                continue
            for score in _scores(dataclasses.replace(task, bank=store), name):
                key = _renamed(score.name, store.n, task.bank.n)
                if key is not None and not _biased(key, word, store, task.bank.n):
                    unit = f"{score.unit}, of {store.n:,} {WORDS[word]}"
                    row = dataclasses.replace(score, name=f"{key}/{word}", unit=unit, remark="")
                    found.setdefault(key, {})[word] = row
    return found


def to_json(rows: dict[str, dict[str, Score]]) -> dict[str, dict[str, Any]]:
    """Return the rows as plain values: value, standard error and interval by score and set."""
    return {
        name: {
            word: {
                "value": row.value,
                "standard_error": row.standard_error,
                "interval": row.interval,
                "unit": row.unit,
            }
            for word, row in of_score.items()
        }
        for name, of_score in rows.items()
    }


def _renamed(name: str, n: int, samples: int) -> str | None:
    """Return the name of the samples' score; None for parts of scores, and for those of copying
    that compare with held-out images anyway.
    """
    if "/" in name or name.startswith("copying"):
        return None
    if name.startswith("value_") and not name.startswith("value_spectrum"):
        return None  # the data's own number stands beside it
    return name.removesuffix(f"_{count_word(n)}") + f"_{count_word(samples)}"


def _biased(name: str, word: str, store: FeatureStore, samples: int) -> bool:
    """Whether numbers of images alone part a row from the score of so many samples."""
    others = store.n != samples
    if name.startswith("coverage_"):  # half as many reference images are covered twice as easily
        return others or word == HALF
    if name.startswith("is_"):
        return others
    if word not in (HALF, HELD_OUT) or not name.startswith(("fd_", "fid_", "sfid_")):
        return False
    return others or (word == HALF and store.sets["reference"].n < ENOUGH * samples)


def _scores(task: SampleTask, name: str) -> list[Score]:
    metric = SAMPLE_METRICS[name]
    needs = [need for need in metric.needs(task.options) if need.which == "samples"]
    try:
        task.bank.prepare(dataclasses.replace(need, only_statistics=False) for need in needs)
        return metric(task)
    except TooFewImagesError:  # nothing to compare with, which is no fault of the samples
        return []


def _views(task: SampleTask, names: Sequence[str]) -> dict[str, FeatureStore]:
    """Return the store with each set in the place of the samples."""
    store, sets = task.bank, task.bank.sets
    free = all(name in WEIGHT_FREE for name in task.options.feature_names)
    n = min(store.n, MOST if free else MOST_OF_NETWORKS)
    found: dict[str, FeatureStore] = {}
    reference, held_out = sets.get("reference"), sets.get("held_out")
    if held_out is not None and reference is not None and _same(held_out, reference):
        held_out = None
    if held_out is not None and min(n, held_out.n) >= FEWEST:
        found[HELD_OUT] = _in_place(store, _part(held_out, min(n, held_out.n)))
        del found[HELD_OUT].sets["held_out"]
    if reference is None:
        return found
    if not found and reference.n >= 2 * FEWEST:
        half = _halves(task, reference, n, names)
        found |= {} if half is None else {HALF: half}
    found[BLURRED] = _in_place(store, _blurred(_part(reference, min(n, reference.n))))
    found[NOISE] = _in_place(store, _noise(reference, n))
    return found


def _same(a: ImageSet, b: ImageSet) -> bool:
    return a.fingerprint == b.fingerprint


def _in_place(store: FeatureStore, images: ImageSet) -> FeatureStore:
    """Return a store of the same features with other samples."""
    return dataclasses.replace(store, sets={**store.sets, "samples": images})


def _part(images: ImageSet, n: int) -> ImageSet:
    """Return n images spread over a set."""
    if n == images.n:
        return dataclasses.replace(images, notes=())
    rows = evenly(n, images.n)

    def read(wanted: range) -> Tensor:
        return torch.cat([images.read(range(row, row + 1)) for row in rows[wanted].tolist()])

    digest = digest_of("part", images.fingerprint, [n])
    return dataclasses.replace(images, n=n, read=read, fingerprint=digest, notes=())


def _halves(
    task: SampleTask, reference: ImageSet, n: int, names: Sequence[str]
) -> FeatureStore | None:
    """Return a store in which the even rows of the reference are compared with the odd ones, from
    the features that are there; None without such.
    """
    store = task.bank
    layers = {
        need.features
        for name in names
        for need in SAMPLE_METRICS[name].needs(task.options)
        if need.which in ("samples", "reference")
    }
    if not layers or not all(store.has("reference", layer) for layer in layers):
        return None
    view = dataclasses.replace(store, sets=dict(store.sets), given=None)
    for role, start in (("samples", 0), ("reference", 1)):
        rows = torch.arange(start, reference.n, 2)
        if role == "samples":
            rows = rows[torch.from_numpy(evenly(min(n, len(rows)), len(rows)))]
        digest = digest_of("half", reference.fingerprint, [start, len(rows)])
        view.sets[role] = dataclasses.replace(
            reference, n=len(rows), fingerprint=digest, cached=False, notes=()
        )
        for layer in layers:
            view.give(role, layer, store.features("reference", layer)[rows])
    return view


def _blurred(images: ImageSet) -> ImageSet:
    """Return images blurred by a Gaussian, renormalised at the border."""

    def read(rows: range) -> Tensor:
        read = images.read(rows)
        x = read.float()
        deviation = BLUR * min(x.shape[2:])
        for axis, side in enumerate(x.shape[2:], 2):
            weights = _gaussian(side, deviation).to(x)
            x = (x.transpose(axis, -1) @ weights.T).transpose(axis, -1)
        if read.dtype != torch.uint8:
            return x.clamp(0.0, 1.0)
        return x.round().clamp(0, 255).to(torch.uint8)

    digest = digest_of("blurred", images.fingerprint, [BLUR])
    return dataclasses.replace(images, name="blurred", read=read, fingerprint=digest)


def _gaussian(side: int, deviation: float) -> Tensor:
    """Return the matrix (side, side) that blurs one direction."""
    place = torch.arange(side, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((place[:, None] - place) / deviation) ** 2)
    return weights / weights.sum(1, keepdim=True)


def _noise(like: ImageSet, n: int) -> ImageSet:
    """Return n images whose values are all equally probable, of the shape of others."""
    shape = tuple(like.read(range(1)).shape[1:])

    def read(rows: range) -> Tensor:
        every = [
            torch.randint(256, shape, generator=keys.generator("cpu", i, 0, "noise images"))
            for i in rows
        ]
        pixels = torch.stack(every).to(torch.uint8)
        return pixels if like.normalization is None else pixels.float() / 255.0

    units = None if like.normalization is None else like.normalization.to_json()
    digest = digest_of("noise images", list(shape), [n, *([] if units is None else [units])])
    return dataclasses.replace(
        like, name="noise", n=n, read=read, fingerprint=digest, notes=(), jpeg=None, shape=shape[1:]
    )
