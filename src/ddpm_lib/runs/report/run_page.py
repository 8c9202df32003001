"""The page of one run."""

from __future__ import annotations

import dataclasses
from typing import Any

from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.report.charts import run_charts
from ddpm_lib.runs.report.marking_up import duration, section, text
from ddpm_lib.runs.report.page_facts import best_validation, progress_words
from ddpm_lib.runs.report.page_frame import charts_json, now_words, page
from ddpm_lib.runs.report.page_parts import (
    command_box,
    curves_part,
    data_part,
    grids_part,
    nearest_part,
    run_part,
    scores_part,
)
from ddpm_lib.runs.report.page_words import words_part
from ddpm_lib.runs.verdict import (
    ELLIPSIS,
    Proposal,
    Verdict,
    judge,
    next_steps,
    symptom_line,
    words,
)
from ddpm_lib.runs.verdict.sentences import NAMES

TONES = {
    "learning": "good",
    "flat": "good",
    "noise": "warn",
    "flat_rate": "warn",
    "too_little": "warn",
    "classes_unused": "warn",
}
"""How a verdict is coloured; the others are bad."""

_SHARES = {"grids": 0.55, "data": 0.2, "nearest": 0.25}
"""Of the bytes for pictures."""


def run_page(records: RunRecords, points: int, pictures: int) -> str:
    """Return the page of a run.

    Args:
        records: What the run says.
        points: Points per line at most.
        pictures: Bytes for all pictures.
    """
    verdict = judge(records)
    proposals = next_steps(records, verdict)
    best = best_validation(records)
    marks = [("best", best[0])] if best else []
    if verdict.since is not None:
        marks.append((f"since {verdict.since:,}", verdict.since))
    marks += [(f"{event.images:,} images", event.step) for event in records.grown]
    charts = run_charts(records, marks)
    share = {name: int(part * pictures) for name, part in _SHARES.items()}
    written, shown = now_words()
    sections = [
        verdict_part(verdict, proposals),
        grids_part(records, share["grids"]),
        curves_part(charts),
        nearest_part(records, share["nearest"]),
        scores_part(records),
        data_part(records, share["data"]),
        run_part(records),
        words_part(records),
    ]
    return page(
        title=f"{records.run.resolve().name} · ddpm",
        header=_header(records, verdict, shown, written),
        sections=sections,
        data={
            **page_data(written, records.status.word == "running"),
            "run": str(records.run),
            "verdict": dataclasses.asdict(verdict),
            "next": [dataclasses.asdict(proposal) for proposal in proposals],
            "charts": charts_json(charts, points),
            **run_data(records),
        },
        footer=footer(shown),
    )


def page_data(written: str, live: bool) -> dict[str, Any]:
    """Return what the page's script needs to know of the page itself."""
    return {"format": 1, "written": written, "live": live}


def run_data(records: RunRecords) -> dict[str, Any]:
    """Return a run's own words, for other programs."""
    return {
        "status": {k: v for k, v in dataclasses.asdict(records.status).items() if k != "owner"},
        "about": records.about,
        "options": records.config,
        "grown": [event.to_json() for event in records.grown],
        "evaluations": records.evaluations[-20:],
    }


def footer(shown: str) -> str:
    """Return the last lines of a page."""
    return (
        f"<p>Written {text(shown)} by ddpm_lib; nothing in this file asks a network. Its numbers"
        " are inside, as JSON in the element run-data. Plots: uPlot (MIT License, Leon"
        " Sorokin).</p>"
    )


def verdict_part(verdict: Verdict, proposals: tuple[Proposal, ...]) -> str:
    """Return the judgement with its evidence, and what to do next."""
    headline, *lines = words(verdict)
    evidence = "".join(f"<li>{text(line)}</li>" for line in lines)
    content = f'<p class="headline">{text(headline)}</p>'
    content += f'<ul class="plain">{evidence}</ul>' if evidence else ""
    content += f'<p class="hint">{text(symptom_line(verdict))}</p>'
    steps = "".join(
        f"<li><p>{text(one.why)}{_minutes(one)}</p>{command_box(one.command)}</li>"
        for one in proposals
    )
    content += f'<h3>Next</h3><ol class="next">{steps}</ol>' if steps else ""
    if any(one.python for one in proposals):
        content += f'<p class="hint">{text(ELLIPSIS)}</p>'
    return section("verdict", "Verdict", content, f"verdict {tone(verdict)}")


def tone(verdict: Verdict) -> str:
    """Return how a verdict is coloured: good, warn or bad."""
    return TONES.get(verdict.kind, "bad")


def _minutes(proposal: Proposal) -> str:
    if proposal.minutes is None:
        return ""
    return f' <span class="soft">about {text(duration(60 * proposal.minutes))} here</span>'


_STATES = {
    "running": ("soft", "running"),
    "finished": ("soft", "finished"),
    "stopped": ("warn", "stopped early"),
    "killed": ("bad", "killed"),
    "lost": ("bad", "lost a process"),
    "failed": ("bad", "failed"),
    "none": ("warn", "not trained yet"),
}


def state_pill(records: RunRecords) -> str:
    """Return how far the run came, in a word: it has a colour only where that is amiss. How the run
    went is the verdict's, see `verdict_pill`.
    """
    colour, word = _STATES.get(records.status.word, ("warn", records.status.word))
    return f'<span class="pill {colour}">{text(word)}</span>'


def verdict_pill(verdict: Verdict) -> str:
    """Return the verdict in a word or two, in its colour, leading to what shows it."""
    name = NAMES[verdict.kind]
    return f'<a class="pill {tone(verdict)}" href="#verdict">{text(name)}</a>'


def _header(records: RunRecords, verdict: Verdict, shown: str, written: str) -> str:
    status = records.status
    parts = "".join(f"<span>{text(words)}</span>" for words in progress_words(records))
    bar = ""
    if status.max_steps and status.step is not None:
        bar = (
            f'<progress max="{status.max_steps}" value="{min(status.step, status.max_steps)}"'
            ' aria-label="steps done"></progress>'
        )
    reason = ""
    if status.reason and (status.word not in ("running", "finished") or status.stopped_by):
        colour = "soft" if status.stopped_by else "bad"
        reason = f'<p class="{colour}">{text(status.reason)}</p>'
    return (
        f"<h1>{text(records.run.resolve().name)}</h1>"
        f'<p class="state">{state_pill(records)}{verdict_pill(verdict)}{parts}'
        f'<span class="soft">written <time id="written" datetime="{text(written)}">{text(shown)}'
        f'</time> <span id="reload"></span></span></p>{reason}{bar}'
    )
