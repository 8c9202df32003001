"""What a run's evaluations measured, read from their files; damaged ones are left out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_lib.core.text import printable
from ddpm_lib.runs.run_status import number

logger = logging.getLogger("ddpm_lib")

KINDS = {
    "is": "inception_score",
    "nll": "bits_per_dim",
    "flow": "bits_per_dim",
    "copying": "copying_ct",
}
"""Kinds of scores by the first word of their names, where that says too little."""

TITLES = {
    "fid": "Fréchet inception distance ↓",
    "fd": "Fréchet distance ↓",
    "sfid": "spatial Fréchet distance ↓",
    "kid": "kernel inception distance ↓",
    "kd": "kernel distance ↓",
    "inception_score": "inception score ↑",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "density": "density ↑",
    "coverage": "coverage ↑",
    "copies": "share of copies ↓",
    "value_spectrum": "distance of the power spectrum from the data's ↓",
    "value_mean": "mean of the samples' values",
    "value_std": "standard deviation of the samples' values",
    "value": "quantile of the samples' values",
    "copying_ct": "distance from the training images, C_T ↑",
    "bits_per_dim": "negative log-likelihood ↓",
    "loss_train": "loss on training images ↓",
    "loss_heldout": "loss on held-out images ↓",
    "loss_gap": "loss on held-out images minus that on training images",
    "nll_gap": "bits/dim of held-out images minus those of training images",
}
"""Kinds of scores, or their first two words, in words; with an arrow to where better ones lie."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One score of an evaluation.

    Attributes:
        name: As the evaluation has it: "kid_inception2048_train_10k", parts with a slash.
        value: The score.
        error: Its standard error, None where there is none.
        interval: 95 % interval, None where there is none.
        unit: Such as "bits/dim".
        remark: What a reader must know beside the number.
        reference: Name of the images that it was compared with, or measured on; "" where that is
            not said.
        images: How many these are, None where that is not said.
        samples: How the samples were drawn: n, sampler, steps; empty where there are none.
        file: Name of the evaluation's file.
    """

    name: str
    value: float
    error: float | None = None
    interval: tuple[float, float] | None = None
    unit: str = ""
    remark: str = ""
    reference: str = ""
    images: int | None = None
    samples: Mapping[str, Any]
    file: str

    @property
    def kind(self) -> str:
        """What is measured, in one word: "kid", "bits_per_dim"."""
        first = self.name.split("_", 1)[0]
        return KINDS.get(first, first)

    @property
    def title(self) -> str:
        """What is measured, in words, and which way is better; "" where the name must do."""
        first_two = "_".join(self.name.split("_")[:2])
        return TITLES.get(first_two) or TITLES.get(self.kind, "")

    @property
    def is_share(self) -> bool:
        """Whether it is a share of images, from 0 to 1."""
        return self.kind in ("precision", "recall", "coverage", "copies")

    @property
    def is_part(self) -> bool:
        """Whether it only helps to read another score."""
        return "/" in self.name


@dataclass(frozen=True)
class Measured:
    """All that is known of one checkpoint's weights.

    Attributes:
        scores: Newest of each name, in the order of the evaluations.
        notes: What the evaluations say to be careful about.
        other_step: The step of the newest evaluation, where all are of other checkpoints or of
            other weights.
    """

    scores: tuple[Measurement, ...] = ()
    notes: tuple[str, ...] = ()
    other_step: int | None = None

    def parts(self, of: Measurement) -> list[Measurement]:
        """Return the numbers that help to read a score."""
        return [score for score in self.scores if score.name.startswith(f"{of.name}/")]


def read_measured(run: Path, step: int, weights: str) -> Measured:
    """Read what the evaluations of a run say of one checkpoint.

    Args:
        run: The run directory.
        step: The checkpoint's.
        weights: As `LoadedRun.weights` calls them: "ema 0.9999", "model".
    """
    scores: dict[str, Measurement] = {}
    notes: dict[str, None] = {}
    others: list[int] = []
    for path in sorted((run / "evaluations").glob("eval-*.json")):
        said = _read(path)
        if said.get("step") != step or said.get("weights") != weights:
            others += [said["step"]] if isinstance(said.get("step"), int) else []
            continue
        scores |= {score.name: score for score in _scores(said, path.name)}
        listed = said.get("notes")
        notes |= dict.fromkeys(map(str, listed if isinstance(listed, list) else []))
    other = others[-1] if others and not scores else None
    return Measured(tuple(scores.values()), tuple(notes), other)


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s was left out: it cannot be read (%s).", path, printable(error)[:200])
        return {}
    return said if isinstance(said, dict) else {}


def _scores(said: Mapping[str, Any], file: str) -> list[Measurement]:
    found = []
    rows = said.get("scores")
    for row in rows if isinstance(rows, list) else []:
        value = number(row.get("value")) if isinstance(row, dict) else None
        if value is None:
            continue
        ends = row.get("interval")
        pair = [number(end) for end in ends] if isinstance(ends, list) else []
        low, high = pair if len(pair) == 2 else (None, None)
        name = str(row.get("name", "score"))
        reference, images = _reference(said, name)
        found.append(
            Measurement(
                name=name,
                value=value,
                error=number(row.get("standard_error")),
                interval=None if low is None or high is None else (low, high),
                unit=str(row.get("unit", "")),
                remark=str(row.get("remark") or ""),
                reference=reference,
                images=images,
                samples=_entry(said, "samples") if _drawn(name) else {},
                file=file,
            )
        )
    return found


def _drawn(name: str) -> bool:
    """Whether a score looks at samples; the others score the model on images."""
    return name.split("/")[0].split("_", 1)[0] not in ("nll", "flow", "loss")


def _entry(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = said.get(name)
    return value if isinstance(value, dict) else {}


def _reference(said: Mapping[str, Any], name: str) -> tuple[str, int | None]:
    for start, word in (("loss_train", "train"), ("loss_heldout", "held-out")):
        if name.startswith(start):
            return word, None
    entry = "reference" if _drawn(name) else "data"
    of = _entry(said, "train" if name.startswith(("copies", "copying")) else entry)
    n, called = of.get("n", of.get("images")), of.get("name")
    known = re.split(r"[\\/]", called)[-1] if isinstance(called, str) else ""
    return known, n if isinstance(n, int) and n > 0 else None
