"""Evaluations side by side: several runs in a table, or the checkpoints of one as a curve."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ddpm_lib.core.errors import ConfigError
from ddpm_lib.data.suffixes import PICTURES
from ddpm_lib.evaluation.evaluation_result import Evaluation, format_score
from ddpm_lib.runs.choosing import guidance_of
from ddpm_lib.runs.growth import Growth, events_in
from ddpm_lib.runs.run_status import no_run
from ddpm_lib.runs.started_from import StartedFrom

_COUNT = re.compile(r"_(\d+)(k?)(?=$|/)")
_BESIDE = re.compile(r", of (\d[\d,]*) ")
"""In the unit of a row that says what other images score: how many these are."""
BIASED = (
    "fid",
    "fd",
    "sfid",
    "is",
    "precision",
    "recall",
    "density",
    "coverage",
    "copying",
    "value_spectrum",
)
"""Metrics whose expectation depends on the number of samples."""
_MANY = ("reference", "sampling steps", "scored", "steps", "training", "weights")
"""How those begin of what two values must share that are several."""


@dataclass(frozen=True)
class Entry:
    """One number of one column.

    Attributes:
        score: As it is in the file.
        n: Number of images, where its name tells.
        about: The evaluation it comes from.
    """

    score: dict[str, Any]
    n: int | None
    about: dict[str, Any]

    @property
    def unit(self) -> str:
        """The unit, without what belongs to this one evaluation."""
        return re.split("[;,(]", str(self.score.get("unit", "")))[0].strip()

    def __str__(self) -> str:
        error = self.score.get("standard_error")
        text = format_score(self.score["value"]) + (
            f" ± {format_score(error)}" if error is not None else ""
        )
        if self.score.get("remark"):
            text += " !"
        return text if self.n is None else f"{text} (n={self.n:,})"


@dataclass(frozen=True)
class Column:
    """The newest value of every metric of a run, or the values of one file; what the run began
    with, where that was not random, and when images were added to it.
    """

    title: str
    entries: dict[str, Entry]
    start: StartedFrom | None = None
    grown: tuple[Growth, ...] = ()


def metric_of(name: str) -> tuple[str, int | None]:
    """Cut a score's name into the metric and the number of images.

    >>> metric_of("fd_random64_train_50k/infinity"), metric_of("nll/prior")
    (('fd_random64_train/infinity', 50000), ('nll/prior', None))
    """
    found = _COUNT.search(name)
    if found is None:
        return name, None
    n = int(found.group(1)) * (1000 if found.group(2) else 1)
    return name[: found.start()] + name[found.end() :], n


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """Read an evaluation's file, or the newest one of a run.

    Raises:
        ConfigError: If there is none.
    """
    return _read(evaluation_files(path)[-1])


def evaluation_files(path: str | Path) -> list[Path]:
    """Return the files of a run's evaluations, oldest first, or the file that is named.

    Raises:
        ConfigError: If there is none.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted([*path.glob("evaluations/eval-*.json"), *path.glob("eval-*.json")])
    if found:
        return found
    if any((path / name).exists() for name in ("checkpoints", "status.json")):
        raise ConfigError(f"{path} holds no evaluations. Make one: ddpm evaluate {path}")
    pictures = any(
        file.suffix.lower().encode() in PICTURES for file in chain(path.iterdir(), path.glob("*/*"))
    )
    raise ConfigError(
        f"{path} holds no evaluations, and is no run. Give a run directory such as runs/shapes, or"
        " an evaluations/eval-….json."
        + (f" Of pictures: `ddpm evaluate {path} --reference …` makes one." if pictures else "")
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(no_run(file)) from None
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}. Give a run, or an evaluations/eval-….json."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{file} is no evaluation: {error}.") from error
    scores = values.get("scores") if isinstance(values, dict) else None
    if not isinstance(scores, list) or not all(
        isinstance(s, dict) and {"name", "value"} <= set(s) for s in scores
    ):
        raise ConfigError(
            f"{file} is no evaluation: it holds no scores. Give a run, or an"
            " evaluations/eval-….json."
        )
    return {**values, "file": str(file)}


def column_of(path: str | Path) -> Column:
    """Gather the newest value of each metric from all evaluations of a run, or read one file."""
    entries: dict[str, Entry] = {}
    every = [_read(file) for file in evaluation_files(path)]
    for about in every:
        for score in about["scores"]:
            metric, n = metric_of(score["name"])
            beside = _BESIDE.search(str(score.get("unit", ""))) if "/" in metric else None
            if beside is not None:  # the name has the number of the samples
                n = int(beside.group(1).replace(",", ""))
            if n is None and metric.startswith(("nll", "flow_nll")):
                n = about.get("data", {}).get("images")
            entries[metric] = Entry(score, n, about)
    newest = every[-1]
    who = newest.get("run", newest.get("target", "images"))
    step = f" step {newest['step']:,} ({newest['weights']})" if "step" in newest else ""
    files = f"{newest['file']}" + (f" and {len(every) - 1} before" if len(every) > 1 else "")
    start = StartedFrom.from_json(newest.get("started_from"))
    return Column(f"{who}{step}, {files}", entries, start, events_in(newest.get("grown")))


def compare(paths: Sequence[str | Path]) -> str:
    """Return a table of scores, one row per metric and one column per run, and what makes numbers
    incomparable.

    Args:
        paths: Runs (the newest value of each metric of all their evaluations) or files of
            evaluations.
    """
    columns = [column_of(path) for path in paths]
    return table_of(columns)


def table_of(columns: Sequence[Column]) -> str:
    """Word columns as a table."""
    metrics = list(dict.fromkeys(metric for column in columns for metric in column.entries))
    heads = [chr(ord("A") + k) if k < 26 else f"#{k + 1}" for k in range(len(columns))]
    cells = [["-" if m not in c.entries else str(c.entries[m]) for c in columns] for m in metrics]
    width = max(16, *map(len, metrics)) if metrics else 16
    wide = max([24, *(len(cell) + 2 for row in cells for cell in row)])
    lines = [f"{head}: {column.title}" for head, column in zip(heads, columns)]
    lines.append(f"{'metric':<{width}}" + "".join(f"{head:>{wide}}" for head in heads))
    for metric, row in zip(metrics, cells):
        unit = next((c.entries[metric].unit for c in columns if metric in c.entries), "")
        lines.append(
            f"{metric:<{width}}" + "".join(f"{cell:>{wide}}" for cell in row) + f"  {unit}".rstrip()
        )
    notes = [
        *(f"{head} began with {c.start}." for head, c in zip(heads, columns) if c.start),
        *(
            f"{head} has grown {event.words()}."
            for head, c in zip(heads, columns)
            for event in c.grown
        ),
        *_older(columns, heads),
        *_differences(columns, heads, metrics),
        *_remarks(columns, heads),
    ]
    return "\n".join([*lines, *(f"Note: {line}" for line in notes)])


def to_dict(columns: Sequence[Column]) -> dict[str, Any]:
    """Return the same as plain JSON values."""
    return {
        "columns": [
            {
                "title": column.title,
                "started_from": None if column.start is None else column.start.to_json(),
                "grown": [event.to_json() for event in column.grown],
                "scores": {
                    metric: {**entry.score, "n": entry.n, "file": entry.about["file"]}
                    for metric, entry in column.entries.items()
                },
            }
            for column in columns
        ]
    }


def _older(columns: Sequence[Column], heads: Sequence[str]) -> list[str]:
    """Name values that are of another checkpoint than the newest of their column."""
    lines = []
    for head, column in zip(heads, columns):
        steps: dict[str, list[str]] = {}
        every = [entry.about for entry in column.entries.values()]
        newest: dict[str, Any] = max(every, key=lambda about: about["file"], default={})
        for metric, entry in column.entries.items():
            if (
                entry.about.get("weights_sha256") != newest.get("weights_sha256")
                and "/" not in metric
            ):
                about = entry.about
                steps.setdefault(
                    f"step {about.get('step', '?')} ({about.get('weights', '?')})", []
                ).append(metric)
        lines += [f"{head}: of {step}: {', '.join(found)}." for step, found in steps.items()]
    return lines


def _remarks(columns: Sequence[Column], heads: Sequence[str]) -> list[str]:
    return [
        f"! {head}, {metric}: {entry.score['remark']}."
        for head, column in zip(heads, columns)
        for metric, entry in column.entries.items()
        if entry.score.get("remark")
    ]


def _asked(metric: str, entry: Entry) -> dict[str, Any]:
    """Return what two values of a metric must share to be comparable."""
    about, kind = entry.about, metric.split("_")[0].split("/")[0]
    if kind == "value":
        kind = "value_spectrum" if metric.startswith("value_spectrum") else "value"
    samples, options = about.get("samples", {}), about.get("options", {})
    if metric.startswith(("nll", "flow_nll", "loss")):
        scored = {"scored images": about.get("data", {}).get("fingerprint")}
        if metric.startswith(("nll_", "loss_")):
            scored = {"number of images": entry.n}
        if metric.startswith("nll"):
            scored["steps of the bound"] = options.get("num_steps") or "all"
        return scored
    drawn = {
        "sampler": samples.get("sampler") or options.get("sampler"),
        "sampling steps": samples.get("steps") or options.get("sample_steps"),
        "spacing": samples.get("spacing"),
        "eta": "usual" if samples.get("eta", 0) is None else samples.get("eta"),
        "guidance scale": guidance_of(about) if "run" in about else None,
        "guiding version": [
            samples[name] if name in samples else options.get(name)
            for name in ("guide_by", "guide_scale")
        ],
    }
    if kind in BIASED and not metric.endswith("/infinity"):
        drawn["number of samples"] = entry.n
    against = {"copies": "train", "copying": "train", "is": None, "value": None}.get(
        kind, "reference"
    )
    if against is not None:
        drawn[f"{'training' if against == 'train' else 'reference'} images"] = about.get(
            against, {}
        ).get("fingerprint")
    features = about.get("features", {})
    drawn |= {f"weights of {name}": features[name] for name in features if f"_{name}" in metric}
    return drawn


def _differences(
    columns: Sequence[Column], heads: Sequence[str], metrics: Sequence[str]
) -> list[str]:
    """Say in what values of one row differ that changes what they mean, once for all rows that
    differ alike.
    """
    rows: dict[str, list[str]] = {}
    for metric in metrics:
        if "/" in metric and metric.split("/")[0] in metrics:
            continue  # a part is as comparable as the whole
        known = {
            head: _asked(metric, column.entries[metric])
            for head, column in zip(heads, columns)
            if metric in column.entries
        }
        for what in dict.fromkeys(name for found in known.values() for name in found):
            values = {head: found.get(what) for head, found in known.items()}
            if len({json.dumps(v, sort_keys=True) for v in values.values() if v is not None}) > 1:
                shown = ", ".join(f"{head}: {_short(v)}" for head, v in values.items())
                verb = "differ" if what.startswith(_MANY) else "differs"
                rows.setdefault(f"the {what} {verb} ({shown})", []).append(metric)
    return [f"not comparable: {line} in {', '.join(found)}." for line, found in rows.items()]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else text[:12] + "…"


def curve(results: Sequence[Evaluation]) -> str:
    """Return a table of the scores of several checkpoints, one column per step."""
    names = list(dict.fromkeys(s.name for result in results for s in result.scores))
    width = max(16, *map(len, names)) if names else 16
    lines = [f"{'step':<{width}}" + "".join(f"{result.about['step']:>12}" for result in results)]
    for name in names:
        values = [
            next((s.value for s in result.scores if s.name == name), None) for result in results
        ]
        lines.append(f"{name:<{width}}" + "".join(f"{format_score(value):>12}" for value in values))
    return "\n".join(lines)
