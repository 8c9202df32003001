"""What an evaluation found, as values, as a table for people and as a file that says how to repeat
it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.core.markup import card, never_fails, note, table
from ddpm_lib.core.registry import Registry
from ddpm_lib.evaluation.scores import Score

SHOWN = 6
"""So many scores stand in the short form of an evaluation."""


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        scores: In the order of the metrics.
        about: Checkpoint, data, options, versions: what repeating it needs; JSON-able.
        folder: Where `save` writes, the run's `evaluations`.
    """

    scores: tuple[Score, ...]
    about: dict[str, Any]
    folder: Path

    def __getitem__(self, name: str) -> float:
        """Return the value of a score by name."""
        return Registry("score", {s.name: s.value for s in self.scores})[name]

    def __repr__(self) -> str:
        shown = [f"{s.name}={format_score(s.value)}" for s in self.scores if "/" not in s.name]
        more = ["…"] if len(shown) > SHOWN else []
        scored = self.about.get("checkpoint") or self.about.get("target", "images")
        return f"<Evaluation of {scored}: {', '.join([*shown[:SHOWN], *more]) or 'no scores'}>"

    @never_fails
    def _repr_html_(self) -> str:
        """Show the scores with errors, intervals and remarks, as HTML."""
        rows = []
        for s in self.scores:
            ends = "" if s.interval is None else " to ".join(map(format_score, s.interval))
            value = format_score(s.value)
            if s.standard_error is not None:
                value += f" ± {format_score(s.standard_error)}"
            rows.append((s.name.replace("/", " · "), value, ends, s.unit, s.remark))
        remarks = [*skipped_lines(self.about.get("skipped", {})), *self.about.get("notes", ())]
        head = ("metric", "value ± std. error", "95 % interval", "unit", "")
        return card("Evaluation", note(self._heading()[0]), table(head, rows), *map(note, remarks))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        fields = ("name", "value", "standard_error", "interval", "unit", "remark")
        return {"scores": [{k: getattr(s, k) for k in fields} for s in self.scores], **self.about}

    def table(self) -> str:
        """Word it for people: one line per score, parts indented, then what to be careful about."""
        lines = [*self._heading(), *score_lines(self.scores)]
        lines += skipped_lines(self.about.get("skipped", {}))
        return "\n".join([*lines, *(f"Note: {line}" for line in self.about.get("notes", ()))])

    def _heading(self) -> list[str]:
        about = self.about
        parts = [
            (
                f"{about['checkpoint']} ({about['weights']})"
                if about.get("checkpoint")
                else str(about["target"])
            )
        ]
        if "data" in about:
            data = about["data"]
            parts.append(f"{data['images']:,} of {data['of']:,} images ({data['name']})")
        if "samples" in about:
            drawn = about["samples"]
            how = f" by {drawn['sampler']} in {drawn['steps']} steps" if "sampler" in drawn else ""
            parts.append(f"{drawn['n']:,} samples{how}")
        if "reference" in about:
            reference = about["reference"]
            count = f" ({reference['n']:,} images)" if reference["n"] else ""
            parts.append(f"reference {reference['name']}{count}")
        return [", ".join(parts)]

    def save(self, folder: str | Path | None = None) -> Path:
        """Write eval-0001.json, or the next free number, and return its path; to be called on one
        process.

        Args:
            folder: Where to write instead of `self.folder`.
        """
        folder = self.folder if folder is None else Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        for number in range(1, 10**6):
            path = folder / f"eval-{number:04d}.json"
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                continue
            return path
        raise ConfigError(f"{folder} is full of evaluations. Move some away.")


def score_lines(scores: Sequence[Score]) -> list[str]:
    """Word scores as a table."""
    names = ["  " + s.name.split("/", 1)[1] if "/" in s.name else s.name for s in scores]
    width = max(16, *map(len, names)) if names else 16
    lines = [f"{'metric':<{width}}{'value':>12}{'std. error':>12}{'95 % interval':>26}"]
    for name, s in zip(names, scores):
        ends = ""
        if s.interval is not None:
            ends = f"[{format_score(s.interval[0])}, {format_score(s.interval[1])}]"
        value, error = format_score(s.value), format_score(s.standard_error)
        remark = f"  ! {s.remark}" if s.remark else ""
        lines.append(f"{name:<{width}}{value:>12}{error:>12}{ends:>26}  {s.unit}{remark}")
    return lines


def skipped_lines(skipped: Mapping[str, str]) -> list[str]:
    """Word what could not be measured: one block for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in skipped.items():
        by_reason.setdefault(why, []).append(name)
    return [f"skipped {', '.join(names)}: {why}" for why, names in by_reason.items()]


def format_score(value: float | None) -> str:
    """Word a number with five digits behind the point; with fewer where it is large, by its power
    where it is tiny.
    """
    if value is None:
        return ""
    if 0 < abs(value) < 1e-4:
        return f"{value:.1e}"
    if abs(value) < 1e3:
        return f"{value:.5f}"
    return f"{value:.1f}" if abs(value) < 1e5 else f"{value:.4g}"
