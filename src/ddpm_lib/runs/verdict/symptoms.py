"""Where docs/symptoms.md says more of a verdict: pictures, cause, and what to do."""

from __future__ import annotations

from ddpm_lib.runs.verdict.findings import Verdict

PAGE = "docs/symptoms.md"
WELL = "A run that goes well"
SYMPTOMS = {
    "wrong_range": "9. Grey or black squares",
    "unstable": "5. The loss jumps, or becomes NaN",
    "copying": "4. Samples are training images: copies",
    "dead_average": "7. The loss is good and the samples are noise",
    "collapsed": "10. All samples alike",
    "colour_cast": "6. Too dark, too bright, one colour",
    "overfitting": "3. Training falls, held-out rises: over-fitting",
    "noise": "1. Only noise",
    "classes_unused": "8. All classes mixed",
    "too_little": "Too early to say",
    "learning": WELL,
    "flat_rate": "2. The loss is flat, and the samples are fine",
    "flat": "2. The loss is flat, and the samples are fine",
}
"""Headings of the page, by kind of verdict."""


def slug(heading: str) -> str:
    """Return the anchor of a heading, as Sphinx and GitHub make it.

    >>> slug("4. Samples are training images: copies")
    '4-samples-are-training-images-copies'
    """
    kept = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in " -")
    return kept.replace(" ", "-")


def symptom_line(verdict: Verdict) -> str:
    """Say where pictures, cause and cure of a verdict stand.

    >>> symptom_line(Verdict("noise", None, ()))
    'With pictures, cause and cure: "1. Only noise" in docs/symptoms.md#1-only-noise'
    """
    heading = SYMPTOMS[verdict.kind]
    what = "pictures" if heading == WELL else "pictures, cause and cure"
    return f'With {what}: "{heading}" in {PAGE}#{slug(heading)}'
