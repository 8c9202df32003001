"""Pieces of HTML for what notebooks show of our objects: short, escaped, without scripts, and
legible on light and dark pages because no colour of text or ground is set.
"""

from __future__ import annotations

import base64
import functools
import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from ddpm_lib.core.text import printable

S = TypeVar("S")
P = ParamSpec("P")

_LONGEST = 300
_CELL = "padding:1px 12px 1px 0;text-align:left;vertical-align:top;background:none;border:none"


def escape(text: object, limit: int = _LONGEST) -> str:
    """Return a text for HTML: escaped, cut where it is long, control characters as escapes.

    >>> escape("<script>")
    '&lt;script&gt;'
    """
    shown = printable(text)
    return html.escape(shown if len(shown) <= limit else f"{shown[: limit - 1]}…")


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return a table of names and values, a pair per line; pairs without a value are left out."""
    rows = [
        f'<tr style="background:none"><td style="{_CELL};opacity:.7">{escape(name)}</td>'
        f'<td style="{_CELL}">{escape(value)}</td></tr>'
        for name, value in pairs
        if value is not None and value != ""
    ]
    return f'<table style="border:none;margin:0"><tbody>{"".join(rows)}</tbody></table>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a head; cells after the first are numbers or short texts."""
    top = "".join(f'<th style="{_CELL};opacity:.7">{escape(name)}</th>' for name in head)
    body = "".join(
        '<tr style="background:none">'
        + "".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in row)
        + "</tr>"
        for row in rows
    )
    return (
        f'<table style="border:none;margin:0"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def picture(png: bytes, alt: str, width: int | None = None) -> str:
    """Return a picture inside the page.

    Args:
        png: The bytes of a PNG file.
        alt: What it shows, in words.
        width: On the page, in pixels; default: its own.
    """
    data = base64.b64encode(png).decode()
    size = f"width:{width}px;" if width else ""
    return (
        f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}"'
        f' style="{size}max-width:100%;image-rendering:pixelated;margin:0">'
    )


def card(title: str, *parts: str) -> str:
    """Return a box with a bold title and parts of HTML below each other."""
    inside = "".join(f'<div style="margin-top:4px">{part}</div>' for part in parts if part)
    return (
        '<div style="border-left:3px solid #8888;padding:2px 0 2px 10px;margin:4px 0">'
        f"<b>{escape(title)}</b>{inside}</div>"
    )


def note(text: str) -> str:
    """Return a line in smaller, paler letters."""
    return f'<span style="font-size:90%;opacity:.75">{escape(text)}</span>'


def never_fails(
    function: Callable[Concatenate[S, P], str],
) -> Callable[Concatenate[S, P], str]:
    """Let a `_repr_html_` show what kept it from drawing instead of raising: a cell that looks at
    an object must not end in a traceback.
    """

    @functools.wraps(function)
    def shown(self: S, /, *args: P.args, **kwargs: P.kwargs) -> str:
        try:
            return function(self, *args, **kwargs)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            return card(type(self).__name__, note(f"It cannot be shown ({why})."))

    return shown


def plain_value(value: Any) -> str:
    """Word a number or a list of numbers as people write it.

    >>> plain_value(1234567), plain_value((64, 32)), plain_value(0.25), plain_value(None)
    ('1,234,567', '64×32', '0.25', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
        return "×".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
