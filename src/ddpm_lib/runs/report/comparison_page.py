"""One page about several runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.report.charts import comparison_charts
from ddpm_lib.runs.report.marking_up import duration, number_words, section, table, text
from ddpm_lib.runs.report.page_facts import (
    best_validation,
    last_number,
    option_rows,
    score_rows,
    seconds_trained,
)
from ddpm_lib.runs.report.page_frame import charts_json, now_words, page
from ddpm_lib.runs.report.page_parts import curves_part, grid_pictures, image, slider
from ddpm_lib.runs.report.run_page import footer, page_data, run_data, state_pill, verdict_pill
from ddpm_lib.runs.verdict import judge, words

COLOURS = 8

Runs = Sequence[tuple[str, RunRecords]]


def comparison_page(runs: Runs, points: int, pictures: int) -> str:
    """Return the page of several runs.

    Args:
        runs: Names and records.
        points: Points per line at most.
        pictures: Bytes for all pictures.
    """
    charts = comparison_charts(runs)
    written, shown = now_words()
    live = any(records.status.word == "running" for _, records in runs)
    verdicts = [judge(records) for _, records in runs]
    states = "".join(
        f'<span><span class="key" data-colour="{k % COLOURS}"></span>{text(name)}'
        f" {state_pill(records)} {verdict_pill(verdicts[k])}</span>"
        for k, (name, records) in enumerate(runs)
    )
    return page(
        title=f"{len(runs)} runs · ddpm",
        header=(
            f'<h1>{len(runs)} runs side by side</h1><p class="state">{states}</p>'
            f'<p class="soft">written <time id="written" datetime="{text(written)}">{text(shown)}'
            '</time> <span id="reload"></span></p>'
        ),
        sections=[
            section("verdict", "Verdicts", _summary(runs, [words(v)[0] for v in verdicts])),
            curves_part(charts),
            _grids(runs, pictures),
            section("scores", "Scores", _scores(runs)),
            section("options", "Options that differ", _differences(runs)),
        ],
        data={
            **page_data(written, live),
            "charts": charts_json(charts, points),
            "runs": [
                {"name": name, "verdict": dataclasses.asdict(verdict), **run_data(records)}
                for (name, records), verdict in zip(runs, verdicts)
            ],
        },
        footer=footer(shown),
    )


def _summary(runs: Runs, headlines: Sequence[str]) -> str:
    rows = []
    for (name, records), headline in zip(runs, headlines):
        best, seconds = best_validation(records), seconds_trained(records)
        rows.append(
            (
                name,
                headline,
                "" if records.status.step is None else f"{records.status.step:,}",
                number_words(last_number(records, "loss")),
                f"{number_words(best[1])} at {best[0]:,}" if best else "",
                "" if seconds is None else duration(seconds),
            )
        )
    head = ("run", "verdict", "step", "loss", "lowest held-out loss", "training time")
    return table(head, rows, numbers=(2, 3, 4, 5))


def _grids(runs: Runs, most: int) -> str:
    """Return the grids of all runs under one slider; a run shows its newest grid up to the step."""
    each = most // max(1, len(runs))
    shown = [(name, grid_pictures(records, each)) for name, records in runs]
    shown = [(name, pictures) for name, pictures in shown if pictures]
    steps = sorted({step for _, pictures in shown for step, _ in pictures})
    if not steps:
        return ""
    columns = []
    for name, pictures in shown:
        last = pictures[-1][0]
        figures = "".join(
            f'<figure data-step="{step}"{" class=shown" if step == last else ""}>'
            f"{image(one, f'{name}: samples at step {step:,}')}"
            f"<figcaption>step {step:,}</figcaption></figure>"
            for step, one in pictures
        )
        columns.append(f'<div class="grids"><h3>{text(name)}</h3>{figures}</div>')
    seeds = {records.config.get("sample_seed") for _, records in runs}
    same = (
        "The same noise in all of them."
        if len(seeds) == 1
        else "Their sample_seed differs: other noise."
    )
    hint = f"{same} A run shows its newest grid up to the step chosen."
    return section(
        "samples",
        "Samples",
        f'{slider(len(steps))}<div class="side">{"".join(columns)}</div>'
        f'<p class="hint">{text(hint)}</p>',
    )


def _scores(runs: Runs) -> str:
    """Return the newest value of each score of each run."""
    found: dict[str, dict[str, str]] = {}
    units: dict[str, str] = {}
    for name, records in runs:
        for evaluation in records.evaluations:
            outer = ""
            for (score, value, _, what), inner in score_rows(evaluation):
                outer = outer if inner else score
                key = f"{outer}: {score}" if inner else score
                found.setdefault(key, {})[name] = value
                units[key] = what
    names = [name for name, _ in runs]
    rows = [
        (key.rpartition(": ")[2], *(values.get(name, "") for name in names), units[key])
        for key, values in found.items()
    ]
    classes = ["part" if ": " in key else "" for key in found]
    head = ("score", *names, "what it is")
    return table(head, rows, numbers=range(1, len(names) + 1), classes=classes) if rows else ""


def _differences(runs: Runs) -> str:
    options = [dict(option_rows(records.config)) for _, records in runs]
    rows = list(differing(options, ignored=("output_dir",)))
    if not rows:
        return '<p class="soft">None, but for where the runs lie.</p>'
    return table(("option", *(name for name, _ in runs)), rows)


def differing(options: Sequence[dict[str, Any]], ignored: Sequence[str] = ()) -> list[list[str]]:
    """Return one row per option that is not the same in all: its name and its values.

    Args:
        options: Names and values, one mapping per run.
        ignored: Options that are left out.
    """
    names = list(dict.fromkeys(name for one in options for name in one))
    rows = [[name, *(str(one.get(name, "–")) for one in options)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1 and row[0] not in ignored]
