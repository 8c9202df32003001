"""Which checkpoint of a run and which of its averages to use, from what was measured; loads no
torch.

A choice is no better than its evidence. Scores of samples come first, as they measure what is
wanted; the loss on held-out images comes second. Where neither tells two checkpoints apart the
later one is taken, as longer training is what was paid for, and that is said.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.runs.cadences import Cadences
from ddpm_lib.runs.names import checkpoint_name, step_in
from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.run_status import nothing_saved, number

LOWER_IS_BETTER = ("fid", "fd", "kid", "kd", "sfid")
"""Metrics of samples that may decide, those first that are trusted most."""

SIGMAS = 2.0
"""Standard errors by which two values must differ to be told apart."""

FEWEST = 5
"""Validations from which on their jitter is reckoned."""


@dataclass(frozen=True)
class Value:
    """A measured number.

    Attributes:
        value: It.
        error: Its standard error, None where it is not known.
        step: Where it was measured.
    """

    value: float
    error: float | None
    step: int


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that is on disk.

    Attributes:
        step: Its step.
        weights: What it holds: "ema 0.9999" for each average, then "model".
        held_out: Loss of the first average on held-out images, of the nearest validation.
        held_out_model: The same of the trained weights themselves.
        scores: Scores of samples by the weights and the metric's name.
        copies: p of the test for copies of training images among the samples drawn there, None
            where it was not made.
    """

    step: int
    weights: tuple[str, ...]
    held_out: Value | None = None
    held_out_model: Value | None = None
    scores: dict[tuple[str, str], Value] | None = None
    copies: float | None = None

    @property
    def name(self) -> str:
        """The name of its directory."""
        return checkpoint_name(self.step)


@dataclass(frozen=True)
class Choice:
    """What to use of a run.

    Attributes:
        candidates: All checkpoints on disk, oldest first.
        chosen: The one to use.
        weights: Which of its weights.
        by: What decided on the checkpoint: "only", "score", "held-out", "latest".
        metric: The score that decided, or that there is of the most checkpoints; "" for none.
        tied: Steps of others that the evidence does not tell from it.
        margin: By how much values must differ to be told apart.
        weights_by: What decided on the weights: "only", "score", "held-out", "habit" (the first
            average, unmeasured against the others).
        lowest: The lowest loss on held-out images of all validations.
        lowest_kept: Whether that is of a checkpoint on disk.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    weights: str
    by: str
    metric: str
    tied: tuple[int, ...]
    margin: float | None
    weights_by: str
    lowest: Value | None
    lowest_kept: bool


def choose(records: RunRecords) -> Choice:
    """Choose a checkpoint and an average.

    Raises:
        ConfigError: If the run has no checkpoint.
    """
    candidates = candidates_of(records)
    if not candidates:
        raise ConfigError(nothing_saved(records.run))
    validations = _validations(records, "val_loss")
    lowest = min(validations, key=lambda v: v.value, default=None)
    metric, weights = _metric(candidates)
    scored = [
        (c, value)
        for c in candidates
        if (value := (c.scores or {}).get((weights, metric))) is not None
    ]
    losses = [(c, c.held_out) for c in candidates if c.held_out is not None]
    chosen = candidates[-1]
    tied: tuple[int, ...] = ()
    margin: float | None = None
    if len(candidates) == 1:
        by = "only"
    elif len(scored) > 1:
        by, (chosen, tied, margin) = "score", _latest_of_the_best(scored, None)
    elif len(losses) > 1:
        by, (chosen, tied, margin) = "held-out", _latest_of_the_best(losses, jitter(validations))
    else:
        by = "latest"
    own, weights_by = _weights(chosen, jitter(validations))
    kept = lowest is not None and any(c.held_out == lowest for c in candidates)
    return Choice(candidates, chosen, own, by, metric, tied, margin, weights_by, lowest, kept)


def _latest_of_the_best(
    pairs: Sequence[tuple[Candidate, Value]], noise: float | None
) -> tuple[Candidate, tuple[int, ...], float | None]:
    """Return the latest of those that cannot be told from the lowest, the steps of the others, and
    the margin of the lowest; `noise` is the error of each where the values are of the same images.
    """
    best = min((value for _, value in pairs), key=lambda v: v.value)

    def margin(value: Value) -> float:
        own = noise if noise is not None else value.error or 0.0
        others = noise if noise is not None else best.error or 0.0
        return SIGMAS * math.hypot(own, others)

    tied = [c for c, value in pairs if value.value - best.value <= margin(value)]
    chosen = max(tied, key=lambda c: c.step)
    return chosen, tuple(c.step for c in tied if c is not chosen), margin(best)


def jitter(validations: Sequence[Value]) -> float | None:
    """Return the standard error of a validation against its neighbours, None for too few.

    All are of the same images and the same noise, so the error of the mean over images, which is
    common to them, does not part them. What does is how far each lies from the line between its
    neighbours, which has the variance 3/2 σ²; of these the median is taken, as a curve that bends
    at its beginning is no noise. The last 20 count.
    """
    values = [v.value for v in validations[-20:]]
    if len(values) < FEWEST:
        return None
    off = [abs(b - (a + c) / 2) for a, b, c in zip(values, values[1:], values[2:])]
    return statistics.median(off) / 0.6745 / math.sqrt(1.5)


def candidates_of(records: RunRecords) -> tuple[Candidate, ...]:
    """Return the checkpoints of a run that are on disk and legible, with what was measured of
    them, oldest first.
    """
    losses, raw = _validations(records, "val_loss"), _validations(records, "val_loss_model")
    found = []
    for step, state in _states(records.run):
        decays = state.get("ema_decay")
        kept = [f"ema {decay}" for decay in decays] if isinstance(decays, list) else []
        found.append(
            Candidate(
                step,
                (*kept, "model"),
                _nearest(losses, step, records),
                _nearest(raw, step, records),
                _scores(records.evaluations, step),
                _copies(records, step),
            )
        )
    return tuple(found)


def _states(run: Path) -> list[tuple[int, dict[str, Any]]]:
    found = []
    try:
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
    except OSError:
        return []
    for name in names:
        step, folder = step_in(name), run / "checkpoints" / name
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if step is not None and isinstance(state, dict) and (folder / "manifest.json").is_file():
            found.append((step, state))
    return sorted(found, key=lambda one: one[0])


def _validations(records: RunRecords, name: str) -> list[Value]:
    found = []
    for row in records.rows:
        value = number(row.get(name))
        if value is not None:
            found.append(Value(value, number(row.get(f"{name}_error")), row["step"]))
    return found


def _nearest(values: Sequence[Value], step: int, records: RunRecords) -> Value | None:
    """Return the value at a step, else the nearest one within half of the way between two."""
    nearest = min(values, key=lambda v: abs(v.step - step), default=None)
    if nearest is None or nearest.step == step:
        return nearest
    every = Cadences.of(records.config).val_every
    return nearest if abs(nearest.step - step) <= every / 2 else None


def _copies(records: RunRecords, step: int) -> float | None:
    every = Cadences.of(records.config).sample_every
    rows = [row for row in records.rows if number(row.get("sample_copies_p")) is not None]
    nearest = min(rows, key=lambda row: abs(row["step"] - step), default=None)
    if nearest is None or abs(nearest["step"] - step) > every / 2:
        return None
    return number(nearest["sample_copies_p"])


def _scores(evaluations: Sequence[dict[str, Any]], step: int) -> dict[tuple[str, str], Value]:
    """Return the newest score of each kind of samples, by weights and name; the name has the number
    of images, and how they were drawn is put behind it.
    """
    found: dict[tuple[str, str], Value] = {}
    for said in evaluations:
        if said.get("step") != step or not isinstance(said.get("scores"), list):
            continue
        drawn = said.get("samples") if isinstance(said.get("samples"), dict) else {}
        how = " ".join(str(drawn.get(k)) for k in ("sampler", "steps") if drawn and k in drawn)
        scale = guidance_of(said)
        how += f" guided {scale:g}" if scale != 1.0 else ""
        for score in said["scores"]:
            name = str(score.get("name")) if isinstance(score, dict) else ""
            value = number(score.get("value")) if name else None
            if value is None or name.split("_")[0] not in LOWER_IS_BETTER or "/" in name:
                continue
            error = number(score.get("standard_error"))
            found[str(said.get("weights")), f"{name}, {how}"] = Value(value, error, step)
    return found


def guidance_of(said: Mapping[str, Any]) -> float:
    """Return the scale of classifier-free guidance with which an evaluation drew its samples,
    whether it was named or chosen by `ddpm tune`; 1 for none.
    """
    drawn, named = _object(said, "samples"), _object(said, "options")
    tuned = _object(_object(drawn, "default"), "sampling")
    scales = (number(one.get("guidance_scale")) for one in (drawn, named, tuned))
    return next((scale for scale in scales if scale is not None), 1.0)


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _metric(candidates: Sequence[Candidate]) -> tuple[str, str]:
    """Return the score, and the weights it is of, that the most checkpoints have; "" for none."""
    counts: dict[tuple[str, str], int] = {}
    for candidate in candidates:
        for key in candidate.scores or {}:
            counts[key] = counts.get(key, 0) + 1
    if not counts:
        return "", ""

    def rank(key: tuple[str, str]) -> tuple[int, int]:
        return -counts[key], LOWER_IS_BETTER.index(key[1].split("_")[0])

    weights, name = min(counts, key=rank)
    return name, weights


def _weights(chosen: Candidate, noise: float | None) -> tuple[str, str]:
    """Return which weights of a checkpoint to use, and what decided."""
    if len(chosen.weights) == 1:
        return chosen.weights[0], "only"
    by_metric: dict[str, dict[str, Value]] = {}
    for (weights, name), value in (chosen.scores or {}).items():
        if weights in chosen.weights:
            by_metric.setdefault(name, {})[weights] = value
    compared = max(by_metric.values(), key=len, default={})
    if len(compared) > 1:
        return min(compared, key=lambda w: compared[w].value), "score"
    average, raw = chosen.held_out, chosen.held_out_model
    if average is not None and raw is not None:
        # Of the same images and the same noise: the error of the mean is common to both.
        margin = SIGMAS * math.sqrt(2) * noise if noise is not None else 0.1 * raw.value
        worse = average.value - raw.value > margin
        return ("model" if worse else chosen.weights[0]), "held-out"
    return chosen.weights[0], "habit"
