"""A verdict in plain sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddpm_lib.runs.verdict.findings import KINDS, Evidence, Finding, Verdict

NAMES = {
    "wrong_range": "values of a wrong range",
    "unstable": "unstable",
    "copying": "copies",
    "dead_average": "a dead average",
    "collapsed": "collapsed",
    "colour_cast": "a colour cast",
    "overfitting": "over-fitting",
    "noise": "only noise yet",
    "classes_unused": "classes unused",
    "too_little": "too little to judge",
    "learning": "learning",
    "flat_rate": "flat at a decayed rate",
    "flat": "flat",
}
"""Kinds of verdicts in a word or two."""

LOSSES = {"val_loss": "the held-out loss", "loss": "the training loss"}

UNKNOWN = {
    "validation": "whether it over-fits: there are too few validations",
    "samples": "how samples look: there are too few sample grids",
    "data": "anything of the data: about.json is missing",
}


def headline(verdict: Verdict) -> str:
    """Return the verdict in one line, as `over-fitting since step 1,200: the training images …`."""
    return finding_headline(Finding(verdict.kind, verdict.since, verdict.evidence))


def words(verdict: Verdict) -> list[str]:
    """Return the verdict in plain sentences: the headline, what shows it, what holds besides, and
    what is not known.
    """
    lines = [headline(verdict), *map(sentence, verdict.evidence)]
    for finding in verdict.also:
        if finding.kind == "too_little" and verdict.unknown:
            continue  # what is not known says it
        lines.append(f"Besides, {finding_headline(finding)}")
        lines += map(sentence, finding.evidence)
    unknown = "; ".join(UNKNOWN[name] for name in verdict.unknown)
    return [*lines, f"Not known is {unknown}."] if unknown else lines


def finding_headline(finding: Finding) -> str:
    """Return a finding in one line; see `headline`."""
    since = "" if finding.since is None else f" since step {finding.since:,}"
    return f"{NAMES[finding.kind]}{since}: {KINDS[finding.kind]}."


def sentence(evidence: Evidence) -> str:
    """Say one reading in a sentence."""
    return TEMPLATES[evidence.name](evidence)


def _counted(number: float, one: str, many: str) -> str:
    return f"{int(number):,} {one if number == 1 else many}"


def percent(share: float, sign: str = "") -> str:
    """Write a share in per cent with two digits.

    >>> percent(0.0241), percent(-0.00012), percent(0.5), percent(0.031, "+")
    ('2.4 %', '−0.012 %', '50 %', '+3.1 %')
    """
    hundred = 100 * share
    digits = (
        0 if abs(hundred) >= 10 else 1 if abs(hundred) >= 1 else 2 if abs(hundred) >= 0.1 else 3
    )
    return f"{hundred:{sign}.{digits}f} %".replace("-", "−")


def figure(value: float | None) -> str:
    """Write a number with three significant digits.

    >>> figure(0.045123), figure(1234.6), figure(2.1e-9), figure(None)
    ('0.0451', '1,235', '2.1e-09', '?')
    """
    if value is None:
        return "?"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2g}".replace("-", "−", value < 0)
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def _with_error(e: Evidence) -> str:
    return figure(e.value) + ("" if not e.error else f" ± {figure(e.error)}")


def _at(e: Evidence, word: str = "at") -> str:
    return "" if e.step is None else f" {word} step {e.step:,}"


def _fall(e: Evidence) -> str:
    name, error = LOSSES[e.text], "" if not e.error else f" ± {percent(e.error)}"
    done = "fell" if e.value > 0 else "rose"
    return f"Since step {e.step or 0:,} {name} {done} by {percent(abs(e.value))}{error}."


def _cooldown_fall(e: Evidence) -> str:
    return (
        f"That came with the cool-down of the rate: before it, up to step {e.step or 0:,},"
        f" {LOSSES[e.text]} fell by less than 1 % in a fifth of the run, if at all."
    )


def _rate(e: Evidence) -> str:
    return f"The learning rate was {percent(e.value)} of its highest in the last fifth."


def _copies(e: Evidence) -> str:
    count = round(e.value * (e.reference or 0))
    return f"{count:,} of {int(e.reference or 0):,} samples are copies{_at(e)}."


def _average(e: Evidence) -> str:
    stands = f"The average's held-out loss is {figure(e.value)}, that of the weights themselves"
    return f"{stands} {figure(e.reference)}: they were as far as the average{_at(e)}."


def _cast(e: Evidence) -> str:
    return (
        f"The mean of samples in {e.text} is {figure(e.value)} of 1, that of the data"
        f" {figure(e.reference)} (± {figure(e.error)} for so few samples){_at(e, 'since')}."
    )


def _gap(e: Evidence) -> str:
    share = "" if not e.reference else f", {percent(e.value / e.reference)} of the training loss"
    return f"The gap to training images is {_with_error(e)}{share}{_at(e)}."


def _trivial(e: Evidence) -> str:
    return (
        f"The loss is {figure(e.value)} in the last fifth; knowing the mean image alone gives"
        f" {figure(e.reference)}."
    )


def _chance(e: Evidence) -> str:
    return f"By chance that happens with probability {figure(e.value)}."


def _contrast(e: Evidence) -> str:
    return (
        f"The values of the images have a standard deviation of {figure(255 * e.value)} of 255;"
        f" pictures have more than {figure(255 * (e.reference or 0))}."
    )


TEMPLATES: dict[str, Callable[[Evidence], str]] = {
    "fall": _fall,
    "fall_before": lambda e: (
        f"Before the rate had fallen {LOSSES[e.text]} still fell by {percent(e.value)} in a fifth"
        " of the run."
    ),
    "cooldown_fall": _cooldown_fall,
    "rate": _rate,
    "copies": _copies,
    "copies_p": _chance,
    "evaluated_copies_p": lambda e: (
        f"The last evaluation finds copies: by chance with probability {figure(e.value)}."
    ),
    "average": _average,
    "cast": _cast,
    "gap": _gap,
    "rise": lambda e: (
        f"The held-out loss was lowest at step {int(e.reference or 0):,} and is"
        f" {percent(e.value)} higher{_at(e)}; the curve scatters by {percent(e.error or 0.0)}."
    ),
    "trivial": _trivial,
    "grain": lambda e: f"Samples have {figure(e.value)} times the grain of training images.",
    "spread": lambda e: (
        f"Two samples differ by {percent(e.value)} of what two training images do{_at(e)}."
    ),
    "spikes": lambda e: (
        f"The training loss jumped to more than {figure(e.reference)} times that around it"
        f" {int(e.value):,} {'time' if e.value == 1 else 'times'}, first{_at(e)}."
    ),
    "wander": lambda e: (
        f"The held-out loss of the weights jumps about, or lies above that of their average, by"
        f" {percent(e.value)}, with the same images and noise each time."
    ),
    "loss_back": lambda e: (
        f"The training loss was {figure(e.reference)}{_at(e)} and ends at {figure(e.value)}."
    ),
    "diverged": lambda e: f"Training ended in losses that are not finite{_at(e, 'after')}.",
    "parted": lambda e: (
        f"The held-out loss is {e.value:.1f} times that of training images under the same noise;"
        f" {_at(e).strip()} it was {e.reference or 0:.1f} times."
    ),
    "learning_rate": lambda e: f"The learning rate is {figure(e.value)}.",
    "contrast": _contrast,
    "data_mean": lambda e: f"Their mean is {figure(255 * e.value)} of 255.",
    "levels": lambda e: f"They take {int(e.value):,} different values.",
    "classes": lambda e: f"The images are of {int(e.value):,} classes.",
    "validations": lambda e: (
        f"{_counted(e.value, 'validation was', 'validations were')} made;"
        f" {int(e.reference or 0):,} are needed."
    ),
    "logged_losses": lambda e: (
        f"{_counted(e.value, 'loss was', 'losses were')} logged;"
        f" {int(e.reference or 0):,} are needed."
    ),
}
"""Sentences by name of the evidence."""


def plain(value: Any) -> Any:
    """Return a verdict, finding or reading as JSON values, for pages and files."""
    if isinstance(value, (Verdict, Finding, Evidence)):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return value
