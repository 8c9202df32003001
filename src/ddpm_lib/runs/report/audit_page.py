"""The page of an audit: what a set of images is like, what was found in it, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.text import so_many
from ddpm_lib.data.auditing.audit_findings import DROPPED, Audit, Finding
from ddpm_lib.runs.report.embedding import Embedded, embed
from ddpm_lib.runs.report.marking_up import duration, facts, section, table, text
from ddpm_lib.runs.report.page_frame import now_words, page
from ddpm_lib.runs.report.page_parts import command_box, image
from ddpm_lib.runs.report.run_page import footer, page_data
from ddpm_lib.runs.report.writing import small_enough

_GROUPS = 12
_TILES = 12
_CLASSES = 60
_BARS = 12
_GALLERIES = ("conflicts", "constant", "blurry", "enlarged", "border", "grey", "small")
"""Findings whose images are shown one by one."""
_HINTS = {
    "exact": "Files of the same pixels. The first of each pair stays in a list.",
    "near": (
        "Found by small pictures laid over each other; the first of each pair stays in a list: the"
        " one with the most pixels that show something."
    ),
    "leaks": (
        "A model that is scored on held-out images it was trained on looks better than it is, and"
        " copying looks like learning."
    ),
    "conflicts": "The same image in several classes: one of them is wrong.",
    "constant": "Nothing can be learned from these.",
    "blurry": "Samples will be as blurry as these, in proportion to their share.",
    "enlarged": "They look soft beside the others at the size they are stored in.",
    "border": "A crop may show nothing but border; cutting the border off is better.",
    "grey": "Samples will be grey in proportion to their share.",
    "small": "Training enlarges these, which blurs them.",
}


def write_audit_page(found: Audit, path: str | Path) -> Path:
    """Write the page of an audit: one file, which needs no network.

    Args:
        found: What the audit found.
        path: Where to.

    Returns:
        The page.

    Raises:
        OSError: If the disk refuses; what was there before stays whole.
    """
    path = Path(path)
    write_atomically(path, small_enough(lambda _, most: audit_page(found, most)))
    return path


def audit_page(found: Audit, pictures: int) -> str:
    """Return the page of an audit.

    Args:
        found: What it found.
        pictures: Bytes for all pictures.
    """
    each = max(1500, pictures // max(1, len(found.pictures) + len(found.held_out_pictures)))
    small = {row: _embedded(pixels, each) for row, pixels in found.pictures.items()}
    held = {row: _embedded(pixels, each) for row, pixels in found.held_out_pictures.items()}
    written, shown = now_words()
    took = f"looked at in {duration(found.seconds)}"
    return page(
        title=f"{found.name} · audit",
        header=(
            f"<h1>{text(found.name)}</h1>"
            f'<p class="state"><span class="pill {_tone(found)}">audit</span>'
            f"<span>{len(found):,} images</span><span>{text(took)}</span>"
            f'<span class="soft">written <time id="written" datetime="{text(written)}">'
            f'{text(shown)}</time> <span id="reload"></span></span></p>'
        ),
        sections=[
            _verdict(found),
            _summary(found),
            *(_pairs(found, found[kind], small) for kind in ("exact", "near")),
            _leaks(found, small, held),
            *(_tiles(found, found[kind], small) for kind in _GALLERIES),
            _unreadable(found),
            _crop(found, small),
            _set(found),
        ],
        data={**page_data(written, False), "charts": [], "audit": found.to_dict()},
        footer=footer(shown),
    )


def _embedded(pixels: np.ndarray, most: int) -> Embedded:
    from PIL import Image

    return embed(Image.fromarray(np.ascontiguousarray(pixels)), most)


def _tone(found: Audit) -> str:
    if not found.found():
        return "good"
    out = len(found.left_out())
    return "bad" if out > 0.01 * len(found) or len(found["leaks"]) else "warn"


def _verdict(found: Audit) -> str:
    """Return the headline, what it rests on, and the commands that act on it."""
    out = found.left_out()
    if out:
        headline = (
            f"{len(out):,} of {len(found):,} images should not be trained on"
            f" ({len(out) / len(found):.1%})"
        )
    elif found.found():
        headline = "nothing must be left out; some images deserve a look"
    else:
        headline = "nothing was found that keeps an image from being trained on"
    lines = [f"{finding.title}: {_count(finding)}; {finding.said}" for finding in found.found()]
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    content = f'<p class="headline">{text(headline)}</p>'
    content += f'<ul class="plain">{items}</ul>' if items else ""
    train = f"ddpm train {found.command}"
    steps = [("train on all images", train)]
    if out:
        data = found.command.split(" --", 1)
        options = f" --{data[1]}" if len(data) > 1 else ""
        steps = [
            (
                f"write the list without them ({', '.join(DROPPED)}); nothing is deleted",
                f"ddpm audit {data[0]}{options} --write-list keep.txt",
            ),
            ("train on the list", f"{train} --files keep.txt"),
        ]
    done = "".join(f"<li><p>{text(why)}</p>{command_box(command)}</li>" for why, command in steps)
    content += f'<h3>Next</h3><ol class="next">{done}</ol>'
    return section("verdict", "Verdict", content, f"verdict {_tone(found)}")


def _count(finding: Finding) -> str:
    return so_many(len(finding), "image") if len(finding) < 1000 else f"{len(finding):,} images"


def _summary(found: Audit) -> str:
    rows = [
        (
            finding.title,
            f"{len(finding):,}" if len(finding) else "none",
            f"{len(finding) / len(found):.2%}" if len(finding) else "",
            finding.said,
        )
        for finding in found.findings.values()
    ]
    return section(
        "found", "What was looked for", table(("", "images", "share", ""), rows, numbers=(1, 2))
    )


def _pairs(found: Audit, finding: Finding, small: Mapping[int, Embedded]) -> str:
    """Return groups of copies, two of each side by side."""
    if not finding.groups:
        return ""
    cards = []
    for group in finding.groups[:_GROUPS]:
        tiles = "".join(_tile(found, row, small) for row in group[:2])
        why = finding.why.get(group[1], "").removesuffix(found.names[group[0]])
        more = f", {len(group) - 2} more" if len(group) > 2 else ""
        words = f"{why}this{more}" if why else more
        cards.append(f'<li><div class="pair">{tiles}</div><p class="hint">{text(words)}</p></li>')
    return section(
        finding.kind,
        finding.title.capitalize(),
        f'<p class="hint">{text(_HINTS[finding.kind])}'
        f"{_some(len(finding.groups), _GROUPS, 'groups')}</p>"
        f'<ul class="neighbours">{"".join(cards)}</ul>',
    )


def _some(count: int, shown: int, what: str) -> str:
    return f" {shown} of {count:,} {what} are shown." if count > shown else ""


def _tile(found: Audit, row: int, small: Mapping[int, Embedded]) -> str:
    picture = small.get(row)
    name = found.names[row]
    shown = image(picture, f"image {name}") if picture is not None else ""
    return f"<figure>{shown}<figcaption>{text(name, 80)}</figcaption></figure>"


def _leaks(found: Audit, small: Mapping[int, Embedded], held: Mapping[int, Embedded]) -> str:
    """Return training images beside the held-out images that they are copies of."""
    finding = found["leaks"]
    if not len(finding):
        return ""
    cards = []
    for group in finding.groups[:_GROUPS]:
        tiles = "".join(_tile(found, row, small) for row in group[:2])
        cards.append(
            f'<li class="copy"><div class="pair">{tiles}</div><p class="hint">held out, and trained'
            " on</p></li>"
        )
    for row in finding.rows[: 0 if finding.groups else _GROUPS].tolist():
        number, name = found.leak_of[row][0]
        picture = held.get(number)
        shown = image(picture, f"held-out image {name}") if picture is not None else ""
        other = f"<figure>{shown}<figcaption>{text(name, 80)}</figcaption></figure>"
        cards.append(
            f'<li class="copy"><div class="pair">{_tile(found, row, small)}{other}</div></li>'
        )
    return section(
        "leaks",
        "Copies of held-out images",
        f'<p class="hint">{text(_HINTS["leaks"])} {text(finding.said)}.</p>'
        f'<ul class="neighbours">{"".join(cards)}</ul>',
    )


def _tiles(found: Audit, finding: Finding, small: Mapping[int, Embedded]) -> str:
    """Return images of a finding, each with what is the matter."""
    if not len(finding):
        return ""
    rows = [row for group in finding.groups for row in group] or finding.rows.tolist()
    tiles = []
    for row in [row for row in rows if row in small][:_TILES]:
        name, picture = found.names[row], small[row]
        tiles.append(
            f"<figure>{image(picture, f'image {name}')}<figcaption>{text(name, 60)}<br>"
            f"{text(finding.why.get(row, ''))}</figcaption></figure>"
        )
    return section(
        finding.kind,
        finding.title.capitalize(),
        f'<p class="hint">{text(_HINTS[finding.kind])}{_some(len(rows), len(tiles), "images")}</p>'
        f'<div class="tiles">{"".join(tiles)}</div>',
    )


def _unreadable(found: Audit) -> str:
    finding = found["unreadable"]
    if not len(finding):
        return ""
    rows = [(found.names[row], finding.why[row]) for row in finding.rows[:50].tolist()]
    rest = _some(len(finding), 50, "files")
    return section(
        "unreadable",
        "Files that cannot be read",
        table(("file", "why"), rows) + (f'<p class="hint">{text(rest)}</p>' if rest else ""),
    )


def _crop(found: Audit, small: Mapping[int, Embedded]) -> str:
    """Return what a centre crop loses: how often how much, and where most."""
    crop = found.crop
    if not crop.mean:
        return ""
    tiles = "".join(
        f"<figure>{image(small[row], f'image {found.names[row]}')}<figcaption>"
        f"{text(found.names[row], 60)}<br>{crop.each[row]:.0%} lost</figcaption></figure>"
        for row in crop.worst
        if row in small
    )
    said = (
        f"A centre crop loses {crop.mean:.1%} of an image on average, and {crop.total:.1%} of all"
        " pixels of the set. --fit pad keeps all of an image, with a border; --fit stretch keeps"
        " all, squashed."
    )
    bars = _histogram(crop.each, 0.0, max(0.1, float(crop.each.max())), "{:.0%}")
    return section(
        "crop",
        "What a centre crop loses",
        f'<p>{text(said)}</p>{bars}<div class="tiles">{tiles}</div>',
    )


def _histogram(values: np.ndarray, low: float, high: float, form: str) -> str:
    """Return a table of how many values lie in which range, with bars."""
    counts, edges = np.histogram(values, bins=_BARS, range=(low, high))
    rows = [
        (f"{form.format(a)} … {form.format(b)}", int(count))
        for a, b, count in zip(edges, edges[1:], counts)
    ]
    return _bars(("lost", "images"), rows)


def _bars(head: tuple[str, str], rows: Sequence[tuple[str, int]]) -> str:
    most = max((count for _, count in rows), default=0) or 1
    lines = "".join(
        f'<tr><th scope="row">{text(name, 80)}</th><td class="number">{count:,}</td>'
        f'<td class="bar"><span style="width:{100 * count / most:.1f}%"></span></td></tr>'
        for name, count in rows
    )
    return (
        f'<div class="scroll"><table class="bars"><thead><tr><th scope="col">{text(head[0])}</th>'
        f'<th scope="col" class="number">{text(head[1])}</th><th></th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _set(found: Audit) -> str:
    """Return what the set is like: sizes, values, classes, how well copies are found."""
    content = facts([*found.properties(), *(("note", note) for note in found.notes)])
    if found.classes:
        rows = [(one.name, one.images) for one in found.classes[:_CLASSES]]
        content += f"<h3>Classes</h3>{_bars(('class', 'images'), rows)}"
        content += _more(len(found.classes))
    probes = [
        (kind, f"{made:,}", f"{seen:,}", f"{seen / made:.0%}")
        for kind, (made, seen) in found.search.probes.items()
    ]
    if probes:
        said = (
            "Copies of this set's own images were made and searched for like the others, and images"
            " upside down, which are copies of nothing."
        )
        content += f'<h3>How well copies are found here</h3><p class="hint">{text(said)}</p>'
        decoys = (
            "upside down: passed for copies",
            f"{found.search.decoys:,}",
            f"{found.search.alarms:,}",
            f"{found.search.alarm_rate:.2%}",
        )
        content += table(("copies", "made", "found", "share"), [*probes, decoys], numbers=(1, 2, 3))
    return section("set", "The set", content)


def _more(count: int) -> str:
    return f'<p class="hint">{count - _CLASSES:,} more classes.</p>' if count > _CLASSES else ""
