"""The frame of a page: template, style, scripts, and the policy under which they run."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from ddpm_lib.runs.report.charts import Chart
from ddpm_lib.runs.report.marking_up import script_json, text

UPLOT = "1.6.32"
"""Version of the plotting library in assets/."""

GENERATOR = "ddpm_lib report"
"""Says in a page who wrote it."""


@functools.cache
def asset(name: str) -> str:
    """Return a file of the page's own: template, style, script."""
    folder = resources.files("ddpm_lib.runs.report").joinpath("assets")
    return folder.joinpath(name).read_text(encoding="utf-8")


def fill(template: str, values: dict[str, str]) -> str:
    """Put values in the places {{name}} of a template, once: what is put in is not looked at.

    >>> fill("<{{a}}>", {"a": "{{b}}", "b": "c"})
    '<{{b}}>'
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def page(
    *, title: str, header: str, sections: Sequence[str], data: dict[str, Any], footer: str
) -> str:
    """Return the whole page.

    Scripts run only where their digest is named in its policy, so that nothing that a name or a
    note may bring in is run, and nothing is fetched from anywhere.

    Args:
        title: Of the browser's window.
        header: HTML.
        sections: HTML of each part; empty ones are left out.
        data: What the page's script reads, and other programs.
        footer: HTML.
    """
    scripts = [asset("uPlot.iife.min.js"), asset("page.js")]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, scripts))}; style-src"
        " 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    shown = [one for one in sections if one]
    return fill(
        asset("page.html"),
        {
            "policy": policy,
            "generator": GENERATOR,
            "title": text(title),
            "plot_style": asset("uPlot.min.css"),
            "style": asset("page.css"),
            "header": header,
            "nav": _navigation(shown),
            "main": "\n".join(shown),
            "footer": footer,
            "data": script_json(data),
            "plot_script": scripts[0],
            "script": scripts[1],
        },
    )


def _digest(script: str) -> str:
    raw = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(raw).decode('ascii')}'"


def _navigation(sections: Sequence[str]) -> str:
    found = re.compile(r'<section id="(\w+)"[^>]*><h2 [^>]*>(.*?)</h2>')
    matches = (found.match(one) for one in sections)
    return "".join(f'<a href="#{m[1]}">{m[2]}</a>' for m in matches if m is not None)


def charts_json(charts: Sequence[Chart], points: int) -> list[dict[str, Any]]:
    """Return charts as values; many lines have fewer points each."""
    lines = sum(len(chart.curves) for chart in charts)
    return [chart.to_json(max(40, min(points, points * 16 // max(1, lines)))) for chart in charts]


def is_page(path: Path) -> bool:
    """Say whether a file is a page that this library wrote."""
    try:
        with path.open("rb") as file:
            return GENERATOR.encode() in file.read(4096)
    except OSError:
        return False


def now_words() -> tuple[str, str]:
    """Return this moment for programs and for people."""
    now = datetime.now().astimezone()
    return now.isoformat(timespec="seconds"), now.strftime("%Y-%m-%d %H:%M:%S")
