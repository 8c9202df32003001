"""The parts of a run's page, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.report.charts import Chart
from ddpm_lib.runs.report.embedding import Embedded, embed, embed_file, some
from ddpm_lib.runs.report.marking_up import facts, number_words, section, table, text
from ddpm_lib.runs.report.page_facts import (
    class_rows,
    data_facts,
    option_rows,
    part,
    run_facts,
    score_rows,
)
from ddpm_lib.runs.report.sheets import read_sheet
from ddpm_lib.runs.run_status import number

MOST_GRIDS = 40
NEIGHBOURS = 12
DATA_ROWS = 10


def command_box(command: str) -> str:
    """Return a command with a button that copies it."""
    return (
        f'<div class="command"><code>{text(command, 4000)}</code>'
        '<button type="button" data-copy hidden>copy</button></div>'
    )


def curves_part(charts: Sequence[Chart]) -> str:
    """Return the places that the page's script draws the curves in, and what handles them."""
    if not charts:
        return section("curves", "Curves", '<p class="soft">Nothing has been logged yet.</p>')
    figures = "".join(
        f'<figure class="chart{" wide" if chart.wide else ""}">'
        f'<h3 id="chart-{chart.name}-title">{text(chart.title)}</h3>'
        f'<p class="hint">{text(chart.hint)}</p>'
        f'<div class="plot" data-chart="{chart.name}" tabindex="0" role="group"'
        f' aria-labelledby="chart-{chart.name}-title" aria-describedby="plot-help"></div></figure>'
        for chart in charts
    )
    return section("curves", "Curves", f"{_TOOLS}<div class='charts'>{figures}</div>")


_TOOLS = """<div class="tools">
<label><input type="checkbox" id="log-y" checked> logarithmic losses</label>
<label><input type="checkbox" id="log-x"> logarithmic steps</label>
<label>smoothing <input type="range" id="smoothing" min="0" max="0.99" step="0.01" value="0">
<output for="smoothing" id="smoothing-value">0</output></label>
<button type="button" id="zoom-out">whole range</button>
</div>
<p class="hint" id="plot-help">Drag to zoom in, double click to zoom out. By keyboard: arrows move
the marker, + and − zoom, 0 shows all. A click on a name in the legend hides its line.</p>
<p class="hint" id="plot-reading" role="status" aria-live="polite"></p>
<noscript><p>The curves need JavaScript; the same numbers are in metrics.csv.</p></noscript>"""


def grids_part(records: RunRecords, most: int) -> str:
    """Return the slider over the sample grids.

    Args:
        records: The run's records.
        most: Bytes for all of them.
    """
    shown = grid_pictures(records, most)
    if not shown:
        return ""
    first = shown[-1][0]
    figures = "".join(
        f'<figure data-step="{step}"{_shown(step == first)}>'
        f"{image(one, f'samples at step {step:,}')}</figure>"
        for step, one in shown
    )
    all_of = len(records.grids)
    note = (
        f"{len(shown)} of {all_of} grids; the others are in samples/. "
        if all_of > len(shown)
        else ""
    )
    scale = number(records.config.get("sample_guidance_scale")) or 1.0
    guided = f", guidance {scale:g}" if scale != 1 else ""
    how = (
        f"{note}The same noise every time, drawn with the averaged weights by"
        f" {records.option('sample_sampler', 'ddim')} in {records.option('sample_steps', '?')}"
        f" steps{guided}."
    )
    return section(
        "samples",
        "Samples",
        f'{slider(len(shown))}<div class="grids">{figures}</div><p class="hint">{text(how)}</p>',
    )


def grid_pictures(records: RunRecords, most: int) -> list[tuple[int, Embedded]]:
    """Return steps and pictures of grids spread over the run that fit into so many bytes."""
    chosen = some(records.grids, max(1, min(MOST_GRIDS, most // 12_000)))
    found = ((step, embed_file(path, most // max(1, len(chosen)))) for step, path in chosen)
    return [(step, one) for step, one in found if one is not None]


def slider(count: int) -> str:
    """Return a slider over so many pictures; none for a single one."""
    hidden = " hidden" if count < 2 else ""
    return (
        f'<div class="slide"{hidden}><button type="button" id="play" aria-pressed="false">play'
        '</button><label for="grid">step</label>'
        f'<input type="range" id="grid" min="0" max="{count - 1}" step="1" value="{count - 1}">'
        '<output for="grid" id="grid-step"></output></div>'
    )


def _shown(yes: bool) -> str:
    return ' class="shown"' if yes else ""


def image(one: Embedded, words: str) -> str:
    """Return an <img> with what it shows in words."""
    return f'<img src="{one.uri}" width="{one.width}" height="{one.height}" alt="{text(words)}">'


def data_part(records: RunRecords, most: int) -> str:
    """Return examples as the network sees them, sizes and classes."""
    sheet = read_sheet(records.run, "data")
    left = facts(data_facts(records))
    rows, more = class_rows(records)
    if rows:
        rest = [(f"{more:,} more classes", "")] if more else []
        left += "<details><summary>classes and images in each</summary>"
        left += f"{table(['class', 'images'], [*rows, *rest], numbers=[1])}</details>"
    if sheet is None:
        return section("data", "Data", left)
    strips = []
    used = range(min(len(sheet.rows), DATA_ROWS))
    for k in used:
        label = str(sheet.rows[k].get("label") or "")
        count = min(sheet.columns, int(number(sheet.rows[k].get("images")) or sheet.columns))
        strip = embed(sheet.cut(k, 0, max(1, count)), most // len(used))
        words = f"training images{f' of class {label}' if label else ''}"
        strips.append(f"<span>{text(label)}</span>{image(strip, words)}")
    pictures = f'<div class="sheet">{"".join(strips)}</div>'
    hint = (
        '<p class="hint">Training images as the network gets them, after cropping and resizing.</p>'
    )
    return section(
        "data", "Data", f'<div class="two"><div>{pictures}{hint}</div><div>{left}</div></div>'
    )


_COLUMNS = ("sample", "nearest training image", "nearest held-out image")


def nearest_part(records: RunRecords, most: int) -> str:
    """Return samples with their nearest neighbours among training and held-out images."""
    sheet = read_sheet(records.run, "nearest")
    if sheet is None or sheet.columns > len(_COLUMNS):
        return ""
    rows = range(len(sheet.rows))
    order = sorted(rows, key=lambda k: number(sheet.rows[k].get("ratio")) or 9.0)[:NEIGHBOURS]
    each = most // (len(order) * sheet.columns)
    cards = []
    for k in order:
        row = sheet.rows[k]
        tiles = "".join(
            f"<figure>{image(embed(sheet.cut(k, c), each), _COLUMNS[c])}"
            f"<figcaption>{_neighbour_words(row, c)}</figcaption></figure>"
            for c in range(sheet.columns)
        )
        copied = row.get("copy") is True
        told = '<p class="bad">looks like a copy</p>' if copied else ""
        cards.append(
            f'<li{" class=copy" if copied else ""}><div class="triple">{tiles}</div>{told}</li>'
        )
    lines = [f"Samples at step {number(sheet.about.get('step')) or 0:,.0f}, most suspicious first."]
    for side, words in (("train", "training"), ("held_out", "held-out")):
        searched = sheet.about.get(side)
        if isinstance(searched, list) and len(searched) == 2:
            n, of = (int(number(v) or 0) for v in searched)
            lines.append(f"Searched: {n:,} of {of:,} {words} images.")
    lines.append(_NEAREST)
    return section(
        "nearest",
        "Nearest images",
        f'<p class="hint">{text(" ".join(lines))}</p><ul class="neighbours">{"".join(cards)}</ul>',
    )


_NEAREST = (
    "Distances are root mean squares of differences of pixels in [0, 1], images averaged to at most"
    " 16×16. A model that does not copy is about as near to held-out images as to training images;"
    " a copy is three times nearer to one training image than to the next."
)


def _neighbour_words(row: dict[str, Any], column: int) -> str:
    if not column:
        return _COLUMNS[0]
    side = ("train", "held_out")[column - 1]
    distance, name = number(row.get(f"{side}_distance")), row.get(f"{side}_name")
    what = ("training", "held-out")[column - 1]
    named = f"<br>{text(name, 60)}" if name else ""
    return f"{what} <strong>{text(number_words(distance))}</strong>{named}"


def scores_part(records: RunRecords) -> str:
    """Return the evaluations, newest first, and where there are none how to get one."""
    if not records.evaluations:
        return ""
    *older, newest = records.evaluations
    content = _evaluation(newest)
    if older:
        inner = "".join(_evaluation(one) for one in reversed(older[-10:]))
        words = f"{len(older)} earlier evaluations" if len(older) > 1 else "1 earlier evaluation"
        content += f"<details><summary>{words}</summary>{inner}</details>"
    return section("scores", "Scores", content)


def _evaluation(one: dict[str, Any]) -> str:
    drawn, data = part(one, "samples"), part(one, "reference")
    parts = [str(one.get("checkpoint") or one.get("target") or ""), str(one.get("weights") or "")]
    if drawn:
        how = (
            f" by {drawn['sampler']} in {drawn.get('steps')} steps" if drawn.get("sampler") else ""
        )
        parts.append(f"{number(drawn.get('n')) or 0:,.0f} samples{how}")
    if data:
        n = number(data.get("n"))  # a file of statistics may not say
        count = f"{n:,.0f} images" if n else "statistics"
        parts.append(f"against {count} ({data.get('name')})")
    parts += [str(one.get("created") or "")[:16].replace("T", " "), str(one.get("file") or "")]
    rows = score_rows(one)
    classes = ["part" if inner else "" for _, inner in rows]
    head = ("score", "value ± std. error", "95 % interval", "what it is")
    notes = one.get("notes")
    below = _notes(notes if isinstance(notes, list) else ())
    caption = ", ".join(word for word in parts if word)
    return (
        table(head, [row for row, _ in rows], caption=caption, numbers=(1, 2), classes=classes)
        + below
    )


def _notes(notes: Iterable[object]) -> str:
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f'<ul class="plain hint">{items}</ul>' if items else ""


def run_part(records: RunRecords) -> str:
    """Return command, environment and options."""
    command = records.about.get("command")
    box = command_box(str(command)) if command else ""
    options = option_rows(records.config)
    every = ""
    if options:
        every = f"<details><summary>all {len(options)} options</summary>"
        every += f"{table(['option', 'value'], options)}</details>"
    return section("run", "Run", box + facts(run_facts(records)) + every)
