"""The words of a run's page, explained on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.report.marking_up import facts, section

WORDS = {
    "held-out": (
        "Images that are set aside and never trained on. What the network does with them says what"
        " it has learned, and not only remembered."
    ),
    "gap": "The loss of held-out images less that of training images, under the same noise.",
    "±": "One standard error: that of a mean over so few images. Bands in curves show two.",
    "best": (
        "The step with the lowest held-out loss so far, marked in the curve of the loss. The loss"
        " is not the look of samples: compare grids too."
    ),
    "since": "The step from which on the verdict holds, marked in the curve of the loss.",
    "averaged weights": (
        "An exponential moving average of the weights over the last steps (EMA). It draws samples"
        " and measures the held-out loss; “last weights” are those without an average."
    ),
    "t": "How noisy an image is made in training: from 0, clean, to T, noise alone.",
    "copy": "A sample to which one training image is three times nearer than the next one.",
    "variety": (
        "How much two samples differ, over how much two training images do, both averaged to 8"
        " pixels a side: 1 is like the data, 0 is one picture again and again."
    ),
    "grain": (
        "How rough samples are from one pixel to the next (their mean squared Laplacian), over that"
        " of training images: 1 is like the data, far above is noise, below is blur."
    ),
    "grid": "Samples of the same noise each time, so that only training changes what they show.",
    "passes over the data": "How often each training image was seen on average (epochs).",
}
"""Words of the page with their meaning."""

_LOGGED = {
    "held-out": "val_loss",
    "gap": "val_gap",
    "±": "val_loss",
    "best": "val_loss",
    "copy": "sample_copies",
    "variety": "sample_spread",
    "grain": "sample_grain",
    "passes over the data": "epoch",
}
"""Words that are explained only where a run has logged what they name."""


def words_part(records: RunRecords) -> str:
    """Return the words that the page of a run uses, with what they mean."""
    return section("words", "Words", facts(used_words(records).items()))


def used_words(records: RunRecords) -> Mapping[str, str]:
    """Return the words that apply to a run."""
    logged: set[str] = set()
    for row in records.rows:
        logged |= {name for name, value in row.items() if value is not None}
    left: dict[str, Any] = {"grid": bool(records.grids)}
    return {
        word: text
        for word, text in WORDS.items()
        if left.get(word, True) and (word not in _LOGGED or _LOGGED[word] in logged)
    }
