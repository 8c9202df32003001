"""What the live view of a notebook shows, as HTML made of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ddpm_lib.core.curve_svg import Points, curves_svg
from ddpm_lib.core.markup import escape, picture
from ddpm_lib.core.progress import duration
from ddpm_lib.training.callbacks.rows import gap_of, number, three_digits, with_error

LAST_ROWS = 8
"""Rows that stay in sight."""

CURVES = {"loss": "loss", "val_loss": "held-out", "train_fixed_loss": "train, same noise"}
"""Logged names that are drawn, with what the curve is called."""


@dataclass
class LiveFacts:
    """The state of a run that a notebook shows.

    Attributes:
        step: Optimizer steps done.
        until: Where this call of `train` ends.
        max_steps: Where the run ends.
        epoch: Passes over the data.
        rate: Images per second, None before it is known.
        left: Seconds until the call ends, None before that is known, or when it has ended.
        values: The newest logged values by name.
        points: Logged values (step, value) by name.
        rows: Lines that the run has said, oldest first.
        heading: The line above the rows.
        grid: The newest grid of samples as PNG.
        grid_width: How wide to show it, in pixels.
        grid_step: Its step.
        ended: Whether training has ended.
    """

    step: int = 0
    until: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    rate: float | None = None
    left: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    heading: str = ""
    grid: bytes | None = None
    grid_width: int | None = None
    grid_step: int = 0
    ended: bool = False


def live_html(facts: LiveFacts) -> str:
    """Return the view: one line of numbers, the progress, curves beside the newest grid, rows."""
    total = max(facts.max_steps, 1)
    bar = f'<progress value="{facts.step}" max="{total}" style="width:100%;height:10px"></progress>'
    panels = [curves_svg(named_curves(facts.points), width=430)]
    if facts.grid is not None:
        caption = f"samples at step {facts.grid_step:,}"
        shown = picture(facts.grid, caption, facts.grid_width)
        panels.append(
            f'<div style="text-align:center;font-size:90%">{shown}'
            f'<div style="opacity:.75">{escape(caption)}</div></div>'
        )
    room = "".join(f"<div>{panel}</div>" for panel in panels if panel)
    return (
        f'<div style="max-width:860px">{_headline(facts)}{bar}'
        f'<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start">{room}</div>'
        f"{_rows(facts)}</div>"
    )


def live_text(facts: LiveFacts) -> str:
    """Return the same for places that show no HTML: the numbers in one line."""
    return ", ".join(_numbers(facts))


def named_curves(points: Mapping[str, Points]) -> dict[str, Points]:
    """Return the curves that are drawn, by the names they have in the picture."""
    return {shown: points[name] for name, shown in CURVES.items() if points.get(name)}


def _numbers(facts: LiveFacts) -> list[str]:
    values = facts.values
    piece = facts.until < facts.max_steps and not facts.ended
    goal = f" (this call: to {facts.until:,})" if piece else ""
    found = [f"step {facts.step:,} of {facts.max_steps:,}{goal}", f"epoch {facts.epoch:.1f}"]
    if "loss" in values:
        found.append(f"loss {number(values['loss'])}")
    if "val_loss" in values:
        held = with_error(values["val_loss"], values.get("val_loss_error"))
        found.append(f"held-out {held}")
    gap = with_error(*gap_of(values.get), sign="+")
    if gap:
        found.append(f"gap {gap}")
    if facts.rate:
        found.append(f"{three_digits(facts.rate)} images/s")
    if facts.ended:
        found.append("finished" if facts.step >= facts.max_steps else "stopped")
    elif facts.left is not None:
        found.append(f"{duration(facts.left)} left")
    return found


def _headline(facts: LiveFacts) -> str:
    first, *rest = _numbers(facts)
    return f"<div><b>{escape(first)}</b> · {' · '.join(map(escape, rest))}</div>"


def _rows(facts: LiveFacts) -> str:
    shown: Sequence[str] = facts.rows[-LAST_ROWS:]
    if not shown:
        return ""
    text = "\n".join(escape(line, 400) for line in ([facts.heading] if facts.heading else []))
    text += ("\n" if text else "") + "\n".join(escape(line, 400) for line in shown)
    return (
        '<pre style="font:11px/1.4 monospace;overflow-x:auto;margin:4px 0;'
        f'background:none">{text}</pre>'
    )
