"""What a verdict is made of: its kind, since when, and what shows it, as values."""

from __future__ import annotations

from dataclasses import dataclass, field

KINDS = {
    "wrong_range": "the values of the images are not those of pictures: nothing can be learned",
    "unstable": "training jumps, rises or has diverged: the learning rate is too high",
    "copying": "samples are copies of training images",
    "dead_average": "the averaged weights are far behind the trained ones",
    "collapsed": "samples are all alike, and training does not change that",
    "colour_cast": "samples have another colour or brightness than the data",
    "overfitting": "the training images are learned by heart at the price of others",
    "noise": "nothing of the images is learned but their mean",
    "classes_unused": "the data have classes that the network is not told",
    "too_little": "too few records to judge, or too noisy ones",
    "learning": "the loss still falls",
    "flat_rate": "the loss falls no more, or not for sure, as the learning rate has decayed",
    "flat": "longer training of this kind changes little",
}
"""Kinds of verdicts with their meaning, in order of precedence: the first that holds is the
verdict, what holds besides is said beside it.
"""

GOES_WELL = frozenset(("learning", "flat_rate", "flat"))
"""Kinds that say that nothing is wrong."""


@dataclass(frozen=True)
class Evidence:
    """One reading that a finding rests on.

    Attributes:
        name: What was read; `sentences.TEMPLATES` says it in words.
        value: The reading.
        error: Its standard error, None where that is not known.
        reference: What it is compared with, None where it stands for itself.
        step: Where it was read, None for the whole run.
        text: A word that belongs to it, such as a channel.
    """

    name: str
    value: float
    error: float | None = None
    reference: float | None = None
    step: int | None = None
    text: str = ""


@dataclass(frozen=True)
class Finding:
    """Something that holds of a run.

    Attributes:
        kind: One of `KINDS`.
        since: The first step from which on it holds, None where it has no beginning.
        evidence: What shows it.
    """

    kind: str
    since: int | None = None
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The judgement of a run.

    Attributes:
        kind: One of `KINDS`.
        since: The first step from which on it holds, None where it has no beginning.
        evidence: What shows it.
        also: What holds besides, in order of precedence.
        unknown: What could not be judged, for want of records: "validation", "samples", "data".
    """

    kind: str
    since: int | None
    evidence: tuple[Evidence, ...]
    also: tuple[Finding, ...] = ()
    unknown: tuple[str, ...] = field(default=())

    def has(self, kind: str) -> bool:
        """Whether something of a kind holds."""
        return kind == self.kind or any(found.kind == kind for found in self.also)
