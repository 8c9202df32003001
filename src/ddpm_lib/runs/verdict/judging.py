"""From the records of a run to a verdict: which rules there are, and what explains what."""

from __future__ import annotations

from collections.abc import Callable

from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.verdict import curve_rules, sample_rules
from ddpm_lib.runs.verdict.findings import KINDS, Finding, Verdict
from ddpm_lib.runs.verdict.readings import FEWEST, Readings

RULES: tuple[Callable[[Readings], Finding | None], ...] = (
    sample_rules.wrong_range,
    curve_rules.unstable,
    sample_rules.copying,
    curve_rules.dead_average,
    sample_rules.collapsed,
    sample_rules.colour_cast,
    curve_rules.overfitting,
    curve_rules.noise,
    sample_rules.classes_unused,
    curve_rules.too_little,
    curve_rules.progress,
)

_PROGRESS = ("learning", "flat_rate", "flat")

EXPLAINS = {
    "wrong_range": ("noise", "collapsed", "colour_cast", "unstable", "overfitting", *_PROGRESS),
    "unstable": ("noise", "collapsed", "colour_cast", "dead_average", "overfitting", *_PROGRESS),
    "copying": ("noise", *_PROGRESS),
    "dead_average": ("noise", "collapsed", "colour_cast", "overfitting", *_PROGRESS),
    "collapsed": ("noise", "colour_cast", *_PROGRESS),
    "overfitting": ("noise", *_PROGRESS),
    "noise": ("colour_cast",),
}
"""What a finding brings with it: that is no finding of its own."""


def judge(records: RunRecords) -> Verdict:
    """Judge how a run goes from what it has written.

    Args:
        records: See `read_records`.
    """
    return judge_readings(Readings.of(records))


def judge_readings(r: Readings) -> Verdict:
    """Judge how a run goes from its numbers; see `judge`."""
    seen = [finding for rule in RULES if (finding := rule(r)) is not None]
    found = {finding.kind: finding for finding in reversed(seen)}  # of a kind, the first
    explained = {kind for cause in found for kind in EXPLAINS.get(cause, ())}
    order = list(KINDS)
    holds = sorted(
        (finding for kind, finding in found.items() if kind not in explained),
        key=lambda finding: order.index(finding.kind),
    )
    first, *others = holds
    return Verdict(first.kind, first.since, first.evidence, tuple(others), _unknown(r))


def _unknown(r: Readings) -> tuple[str, ...]:
    """Name what could not be judged."""
    missing = {
        "validation": len(r.curve("val_loss")) < FEWEST,
        "samples": len(r.curve("sample_n")) < 2,
        "data": not r.data,
    }
    return tuple(name for name, lacks in missing.items() if lacks)
