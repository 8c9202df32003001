"""Values as HTML. Whatever comes from outside passes `text`, so that it stays text."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ddpm_lib.core.text import printable

LONGEST = 600
"""Letters of one text from outside that the page shows."""


def text(value: object, longest: int = LONGEST) -> str:
    """Return a value as text that no browser takes for anything else.

    >>> text('<script>alert("x")</script>')
    '&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;'
    """
    plain = printable(value)
    return html.escape(plain if len(plain) <= longest else f"{plain[: longest - 1]}…", quote=True)


def script_json(value: Any) -> str:
    r"""Return JSON for inside a <script> element, in which nothing ends the element or opens a
    comment; numbers that JSON does not know become null.

    >>> script_json({"a": "</script>", "b": float("nan")})
    '{"a":"\\u003c/script\\u003e","b":null}'
    """
    raw = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return a list of names and values; values that are None or empty are left out."""
    items = [
        f"<dt>{text(name)}</dt><dd>{text(value)}</dd>"
        for name, value in pairs
        if value is not None and value != ""
    ]
    return f'<dl class="facts">{"".join(items)}</dl>' if items else ""


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    numbers: Iterable[int] = (),
    classes: Sequence[str] = (),
) -> str:
    """Return a table.

    Args:
        head: Names of the columns.
        rows: Values; the first of each row heads it.
        caption: What it shows.
        numbers: Columns that are set to the right.
        classes: A CSS class per row, or nothing.
    """
    right = set(numbers)

    def cell(k: int, value: object, tag: str) -> str:
        kind = ' class="number"' if k in right else ""
        scope = ' scope="row"' if tag == "th" else ""
        return f"<{tag}{scope}{kind}>{text('' if value is None else value)}</{tag}>"

    lines = []
    for at, row in enumerate(rows):
        kind = f' class="{text(classes[at])}"' if at < len(classes) and classes[at] else ""
        cells = "".join(cell(k, value, "td" if k else "th") for k, value in enumerate(row))
        lines.append(f"<tr{kind}>{cells}</tr>")
    heads = "".join(
        f'<th scope="col"{" class=number" if k in right else ""}>{text(name)}</th>'
        for k, name in enumerate(head)
    )
    over = f"<caption>{text(caption)}</caption>" if caption else ""
    body = "".join(lines)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{text(caption or head[0])}">'
        f"<table>{over}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def section(name: str, title: str, content: str, kind: str = "") -> str:
    """Return a part of the page with a heading, empty where it has no content."""
    if not content:
        return ""
    marked = f' class="{text(kind)}"' if kind else ""
    return (
        f'<section id="{name}"{marked} aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{text(title)}</h2>{content}</section>'
    )


def number_words(value: float | None) -> str:
    """Word a number with four significant digits, for people.

    >>> number_words(0.0123456), number_words(123456.0), number_words(None)
    ('0.01235', '123,456', '')
    """
    if value is None:
        return ""
    if value == 0 or 1e-4 <= abs(value) < 1000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def with_error(value: float | None, error: float | None) -> str:
    """Word a value with its standard error, both to the second digit of the error.

    >>> with_error(0.0062558, 0.0030093), with_error(4.6624, None), with_error(1234.5, 67.8)
    ('0.0063 ± 0.0030', '4.662', '1,234 ± 68')
    """
    if value is None or not error or not 1e-5 < error < 1e6:
        return number_words(value) + (" ± 0" if error == 0 else "")
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{places}f} ± {error:.{places}f}"


def duration(seconds: float) -> str:
    """Word a time.

    >>> duration(75), duration(7400)
    ('1 min 15 s', '2 h 03 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{round(whole / 60)} min"
    minutes = round(whole / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"
