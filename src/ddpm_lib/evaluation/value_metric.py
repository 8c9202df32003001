"""Samples against data by their values: mean, deviation, quantiles and power spectrum of each
channel, in units of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.spelling import option
from ddpm_lib.evaluation.feature_store import Need
from ddpm_lib.evaluation.image_sets import ImageSet
from ddpm_lib.evaluation.metric_options import MetricOptions
from ddpm_lib.evaluation.scores import Score, count_word
from ddpm_lib.evaluation.tasks import SampleTask
from ddpm_lib.metrics import bootstrap_interval
from ddpm_lib.metrics.value_statistics import spectrum_distance

QUANTILES = {"q01": 0.01, "q50": 0.5, "q99": 0.99}
LAYERS = ("moments", "levels", "spectrum")
APART = 0.1
"""A difference of this share of the data's standard deviation is remarked upon, where it is more
than chance.
"""
Z95 = 1.96


@dataclass(frozen=True)
class _Known:
    """A number of a set, its standard error and its 95 % interval."""

    value: float
    error: float | None
    interval: tuple[float, float] | None


def value_needs(_: MetricOptions) -> list[Need]:
    """Say what the metric wants extracted."""
    return [
        Need(which, f"values/{layer}") for layer in LAYERS for which in ("samples", "reference")
    ]


def values(task: SampleTask) -> list[Score]:
    """Score each channel: mean, standard deviation and quantiles, each beside the data's, and the
    distance of the power spectra.
    """
    store = task.bank
    mine, data = store.sets["samples"], store.sets["reference"]
    channels = store.features("samples", "values/moments").shape[1] // 2
    theirs = store.features("reference", "values/moments").shape[1] // 2
    if channels != theirs:
        raise ConfigError(
            f"values compares channel by channel; the samples have {channels}, {data.name} has"
            f" {theirs}. Name others with {option('reference')}."
        )
    found: list[Score] = []
    for k in range(channels):
        own, other = (_Channel(task, which, k) for which in ("samples", "reference"))
        unit = mine.unit
        beside = f"{unit}, of {data.n:,} images of {data.name}"
        for name in ("mean", "std", *QUANTILES):
            a, b = own.known(name), other.known(name)
            word = f"value_{name}_c{k}"
            remark = _remark(a, b, other.known("std").value)
            found.append(Score(word, a.value, a.error, unit, interval=a.interval, remark=remark))
            found.append(
                Score(f"{word}/{data.name}", b.value, b.error, beside, interval=b.interval)
            )
        found.append(_spectrum(task, own, other, f"value_spectrum_c{k}_{data.name}"))
    return found


def _spectrum(task: SampleTask, own: _Channel, other: _Channel, name: str) -> Score:
    wanted = other.spectra().mean(0)
    distance, influence = spectrum_distance(own.spectra(), wanted)
    known = _of_mean(distance, influence, task.options.seed)
    interval = known.interval  # to first order only: a distance is never negative
    if interval is not None:
        interval = max(0.0, interval[0]), interval[1]
    full = f"{name}_{count_word(task.bank.n)}"
    return Score(full, distance, known.error, "dB, log-spectral distance", interval=interval)


class _Channel:
    """One channel of a set, in units of the data."""

    def __init__(self, task: SampleTask, which: str, k: int) -> None:
        self._task, self._which, self._k = task, which, k
        images: ImageSet = task.bank.sets[which]
        self._low, self._span = (float(values[k]) for values in images.scale(k + 1))
        moments = self._features("moments")
        channels = moments.shape[1] // 2
        self._channels = channels
        self._means, self._variances = moments[:, k], moments[:, channels + k]

    def _features(self, layer: str) -> np.ndarray:
        return self._task.bank.features(self._which, f"values/{layer}").double().numpy()

    def _own(self, layer: str) -> np.ndarray:
        every = self._features(layer)
        return every.reshape(len(every), self._channels, -1)[:, self._k]

    def spectra(self) -> np.ndarray:
        """Return the power of each image by wave number, (n, k)."""
        return self._own("spectrum") * self._span**2

    def known(self, name: str) -> _Known:
        """Return a number of the channel: mean, std or one of `QUANTILES`."""
        seed, mean = self._task.options.seed, self._means.mean()
        if name == "mean":
            return _of_mean(self._low + self._span * mean, self._span * (self._means - mean), seed)
        if name == "std":
            squares = self._variances + (self._means - mean) ** 2
            std = math.sqrt(max(float(squares.mean()), 0.0))
            influence = (squares - squares.mean()) / (2 * std) if std else np.zeros(len(squares))
            return _of_mean(self._span * std, self._span * influence, seed)
        return self._quantile(QUANTILES[name])

    def _quantile(self, share: float) -> _Known:
        """Return a quantile with Woodruff's interval (1952): the quantiles at the ends of that of
        the share, whose spread over images is known.
        """
        levels = self._own("levels")
        ordered = np.sort(levels, axis=None)

        def at(p: float) -> float:
            level = float(np.quantile(ordered, min(1.0, max(0.0, p))))
            return self._low + self._span * round(level, 7)  # as exact as float32 is

        value = float(np.quantile(ordered, share))
        if len(levels) < 2:
            return _Known(at(share), None, None)
        below = ((levels < value).mean(1) + (levels <= value).mean(1)) / 2
        spread = Z95 * float(below.std(ddof=1)) / math.sqrt(len(levels))
        ends = at(share - spread), at(share + spread)
        if ends[0] == ends[1]:  # no spread was seen
            return _Known(at(share), None, None)
        return _Known(at(share), (ends[1] - ends[0]) / (2 * Z95), ends)


def _of_mean(value: float, influence: np.ndarray, seed: int) -> _Known:
    n = len(influence)
    error = float(influence.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    if not error:  # no spread was seen, which does not mean that there is none
        return _Known(float(value), None, None)
    return _Known(
        float(value), error, bootstrap_interval(value, torch.from_numpy(influence), seed=seed)
    )


def _remark(samples: _Known, data: _Known, std: float) -> str:
    """Say that a number differs from the data's by more than chance, and by enough to matter."""
    apart = samples.value - data.value
    error = math.hypot(samples.error or 0.0, data.error or 0.0)
    if abs(apart) <= max(2 * error, APART * std):
        return ""
    if std == 0.0:
        return "differs from the data, which are constant"
    word = "high" if apart > 0 else "low"
    return f"too {word} by {abs(apart) / std:.2g} of the data's standard deviations"
