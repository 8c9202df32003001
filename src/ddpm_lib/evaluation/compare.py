"""Evaluations side by side: several runs in a table, or the checkpoints of one as a curve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_lib.evaluation.result import Evaluation, number
from ddpm_lib.training.config import ConfigError


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """Read an evaluation's file, or the newest one of a run.

    Raises:
        ConfigError: If there is none.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        found = sorted([*path.glob("evaluations/eval-*.json"), *path.glob("eval-*.json")])
        if not found:
            raise ConfigError(f"{path} holds no evaluations. Make one: ddpm evaluate {path}")
        file = found[-1]
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Give a run, or an evaluations/eval-….json."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{file} is no evaluation: {error}.") from error
    if not isinstance(values, dict) or "scores" not in values:
        raise ConfigError(f"{file} is no evaluation: it holds no scores. Give a run, or an evaluations/eval-….json.")
    return {**values, "file": str(file)}


def compare(paths: Sequence[str | Path]) -> str:
    """Return a table of scores, one column per evaluation, and what makes columns incomparable.

    Args:
        paths: Runs (their newest evaluation) or files of evaluations.
    """
    found = [read_evaluation(path) for path in paths]
    names = list(dict.fromkeys(s["name"] for values in found for s in values["scores"]))
    heads = [chr(ord("A") + k) for k in range(len(found))]
    width = max(16, *map(len, names)) if names else 16
    lines = [f"{head}: {_title(values)}" for head, values in zip(heads, found)]
    lines.append(f"{'metric':<{width}}" + "".join(f"{head:>24}" for head in heads))
    for name in names:
        row = [next((s for s in values["scores"] if s["name"] == name), None) for values in found]
        lines.append(f"{name:<{width}}" + "".join(f"{_cell(score):>24}" for score in row))
    return "\n".join([*lines, *(f"Note: {line}" for line in _differences(found, heads))])


def _title(values: dict[str, Any]) -> str:
    who = values.get("run", values.get("target", "images"))
    step = f" step {values['step']:,} ({values['weights']})" if "step" in values else ""
    return f"{who}{step}, {values['file']}"


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    error = score.get("standard_error")
    return number(score["value"]) + (f" ± {number(error)}" if error is not None else "")


def _differences(found: Sequence[dict[str, Any]], heads: Sequence[str]) -> list[str]:
    """Say in what the evaluations differ that changes what their numbers mean."""
    asked = {
        "reference images": ("reference", "fingerprint"),
        "scored images": ("data", "fingerprint"),
        "sampler": ("samples", "sampler"),
        "sampling steps": ("samples", "steps"),
        "number of samples": ("samples", "n"),
        "guidance scale": ("options", "guidance_scale"),
        **{f"weights of {name}": ("features", name) for values in found for name in values.get("features", {})},
    }
    lines = []
    for what, keys in asked.items():
        values: list[Any] = list(found)
        for key in keys:
            values = [v.get(key) if isinstance(v, dict) else None for v in values]
        known = {json.dumps(v, sort_keys=True) for v in values if v is not None}
        if len(known) > 1:
            shown = ", ".join(f"{head}: {_short(v)}" for head, v in zip(heads, values))
            lines.append(f"the {what} differ ({shown}).")
    return lines


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else text[:12] + "…"


def curve(results: Sequence[Evaluation]) -> str:
    """Return a table of the scores of several checkpoints, one column per step."""
    names = list(dict.fromkeys(s.name for result in results for s in result.scores))
    width = max(16, *map(len, names)) if names else 16
    lines = [f"{'step':<{width}}" + "".join(f"{result.about['step']:>12}" for result in results)]
    for name in names:
        values = [next((s.value for s in result.scores if s.name == name), None) for result in results]
        lines.append(f"{name:<{width}}" + "".join(f"{number(value):>12}" for value in values))
    return "\n".join(lines)
