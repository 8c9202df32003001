"""The result of an ablation as a table, a CSV file and a plot."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_lib.core.files import write_atomically
from ddpm_lib.core.plots import need_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#30475e", "#c8553d", "#3a7d44", "#7b4b94", "#b8860b", "#2a9d8f", "#777777")


@dataclass(frozen=True)
class Outcome:
    """One cell with one seed.

    Attributes:
        varied: The varied settings by dotted name.
        seed: The repetition.
        status: "measured", "refused" (the library will not build it), "diverged" or "failed" (an
            error in training or sampling; the same ablation tries it again).
        reason: Why it was not measured.
        measures: Values by name, lower is better; empty unless measured.
        seconds: Time of training.
    """

    varied: Mapping[str, Any]
    seed: int
    status: str
    reason: str
    measures: Mapping[str, float]
    seconds: float

    def __str__(self) -> str:
        settings = " ".join(f"{k.rpartition('.')[2]}={v}" for k, v in self.varied.items())
        values = (
            ", ".join(f"{k} {v:.4g}" for k, v in self.measures.items())
            or f"{self.status}: {self.reason}"
        )
        return f"{settings} seed {self.seed} ({self.seconds:.0f} s): {values}"


@dataclass(frozen=True)
class AblationResult:
    """The measures of all cells.

    Attributes:
        outcomes: One per cell and seed, in the order of the grid.
        vary: The varied settings and their values.
        floor: Values of data against data by measure, where that can be measured.
        about: Data, images seen, sizes.
        folder: The directory of the ablation.
        stopped: The exit code of the training that was stopped; 0 where none was.
    """

    outcomes: tuple[Outcome, ...]
    vary: dict[str, Sequence[Any]]
    floor: dict[str, list[float]]
    about: dict[str, Any]
    folder: Path
    stopped: int = 0

    @property
    def failed(self) -> list[Outcome]:
        """The cells that an error ended."""
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]

    @property
    def exit_code(self) -> int:
        """That of the training that was stopped; else 1 where cells failed, and 0 where none
        did.
        """
        return self.stopped or (1 if self.failed else 0)

    @property
    def measures(self) -> list[str]:
        """Names of the measures."""
        return list(dict.fromkeys(name for o in self.outcomes for name in o.measures))

    def values(self, varied: Mapping[str, Any], measure: str) -> list[float]:
        """Return the values of a measure over the seeds of one cell."""
        return [
            o.measures[measure]
            for o in self.outcomes
            if o.varied == varied and measure in o.measures
        ]

    def cells(self) -> list[Mapping[str, Any]]:
        """Return the varied settings of the cells, in order."""
        found: list[Mapping[str, Any]] = []
        for o in self.outcomes:
            if o.varied not in found:
                found.append(o.varied)
        return found

    def markdown(self) -> str:
        """Return the table: mean ± standard deviation over the seeds, the best mean of each column
        in bold.
        """
        names = [k.rpartition(".")[2] for k in self.vary]
        means = {
            m: [np.mean(v) for c in self.cells() if (v := self.values(c, m))] for m in self.measures
        }
        lines = [_row([*names, *self.measures]), _row(["---"] * (len(names) + len(self.measures)))]
        for cell in self.cells():
            words = []
            for measure in self.measures:
                found = self.values(cell, measure)
                word = _spread(found)
                words.append(
                    f"**{word}**" if found and np.mean(found) == min(means[measure]) else word
                )
            reasons = {
                o.status: o.reason
                for o in self.outcomes
                if o.varied == cell and o.status != "measured"
            }
            if reasons and not any(self.values(cell, m) for m in self.measures):
                words = [next(iter(reasons)), *[""] * (len(words) - 1)]
            lines.append(_row([*map(str, cell.values()), *words]))
        floor = [_spread(self.floor[m]) if m in self.floor else "" for m in self.measures]
        lines.append(_row(["data against data", *[""] * (len(names) - 1), *floor]))
        return "\n".join(lines)

    def failures_markdown(self) -> str:
        """Return a list of the cells that failed, with their reasons; "" where none did."""
        if not self.failed:
            return ""
        told = f"Failed, {len(self.failed)} of {len(self.outcomes)}; the same ablation tries them"
        return "\n".join([f"{told} again:", "", *(f"- {outcome}" for outcome in self.failed)])

    def shares(self) -> dict[str, dict[str, float]]:
        """Return which share of the variance of log(measure) each setting explains, their
        interactions, and the seeds.

        Analysis of variance of a complete, balanced grid: the sums of squares of the main effects,
        of what they leave of the cells' means, and of the seeds within the cells add up to the
        whole. A measure is left out where a value is not positive or a cell is missing.
        """
        cells, found = self.cells(), {}
        for measure in self.measures:
            values = [self.values(c, measure) for c in cells]
            if len({len(v) for v in values}) != 1 or not values[0] or min(map(min, values)) <= 0:
                continue
            logs = np.log(np.array(values))
            whole = float(((logs - logs.mean()) ** 2).sum())
            parts = {}
            for name in self.vary:
                level = {
                    str(v): np.mean([row for c, row in zip(cells, logs) if c[name] == v])
                    for v in self.vary[name]
                }
                effect = np.array([level[str(c[name])] for c in cells]) - logs.mean()
                parts[name] = float((effect**2).sum() * logs.shape[1])
            between = float(((logs.mean(1) - logs.mean()) ** 2).sum() * logs.shape[1])
            parts["interactions"] = between - sum(parts.values())
            parts["seeds"] = whole - between
            found[measure] = {
                k: max(0.0, v) / whole if whole else math.nan for k, v in parts.items()
            }
        return found

    def shares_markdown(self) -> str:
        """Return `shares` as a table of per cents."""
        found = self.shares()
        if not found:
            return (
                "A measure is not positive everywhere, or a cell is missing: the variance is not"
                " taken apart."
            )
        columns = list(next(iter(found.values())))
        lines = [
            _row(["measure", *(c.rpartition(".")[2] for c in columns)]),
            _row(["---"] * (len(columns) + 1)),
        ]
        lines += [
            _row([m, *(f"{100 * parts[c]:.0f} %" for c in columns)]) for m, parts in found.items()
        ]
        return "\n".join(lines)

    def csv(self) -> str:
        """Return all outcomes, one line each, and the floor."""
        text = io.StringIO()
        columns = [*self.vary, "seed", "status", "seconds", *self.measures, "reason"]
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        for o in self.outcomes:
            writer.writerow(
                {
                    **o.varied,
                    "seed": o.seed,
                    "status": o.status,
                    "seconds": o.seconds,
                    **o.measures,
                    "reason": o.reason,
                }
            )
        for k in range(max(map(len, self.floor.values()), default=0)):
            values = {m: v[k] for m, v in self.floor.items() if k < len(v)}
            writer.writerow({"seed": k, "status": "data against data", **values})
        return text.getvalue()

    def plot(self) -> Figure:
        """Draw one panel per measure: a dot per seed, a bar per mean, the floor as a band; the last
        setting gives the colours.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        need_matplotlib()
        from matplotlib.figure import Figure

        *outer, inner = self.vary
        groups = list(dict.fromkeys(tuple(c[k] for k in outer) for c in self.cells()))
        count = len(self.measures)
        columns = min(count, 3)
        rows = math.ceil(count / columns) if count else 1
        figure = Figure(
            figsize=(3.6 * max(columns, 1) + 0.4, 3.0 * rows + 0.5), dpi=90, layout="constrained"
        )
        axes = figure.subplots(rows, max(columns, 1), squeeze=False).ravel()
        for axis, measure in zip(axes, self.measures):
            self._draw(axis, measure, groups, outer, inner)
        for axis in axes[count:]:
            axis.axis("off")
        if count:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(
                handles,
                labels,
                loc="outside lower center",
                ncols=len(labels),
                fontsize=8,
                frameon=False,
            )
        figure.suptitle(f"{self.about['data']}, {self.about['images']:,} images seen", fontsize=10)
        return figure

    def _draw(
        self, axis: Axes, measure: str, groups: list[tuple[Any, ...]], outer: list[str], inner: str
    ) -> None:
        choices = self.vary[inner]
        seen: list[float] = []
        for k, choice in enumerate(choices):
            colour, offset = (
                _COLOURS[k % len(_COLOURS)],
                (k - (len(choices) - 1) / 2) * 0.7 / len(choices),
            )
            label = f"{inner.rpartition('.')[2]}={choice}"
            for g, group in enumerate(groups):
                values = self.values({**dict(zip(outer, group)), inner: choice}, measure)
                seen += values
                axis.scatter(
                    [g + offset] * len(values), values, s=14, color=colour, alpha=0.75, linewidths=0
                )
                if values:
                    mean, half = float(np.mean(values)), 0.3 / len(choices)
                    axis.plot(
                        [g + offset - half, g + offset + half],
                        [mean, mean],
                        color=colour,
                        linewidth=2.2,
                    )
            axis.plot([], [], color=colour, linewidth=2.2, label=label)
        floor = self.floor.get(measure, [])
        if floor:
            axis.axhspan(
                min(floor), max(floor), color="#dddddd", zorder=0, label="data against data"
            )
        if min([*seen, *floor], default=0.0) > 0:
            axis.set_yscale("log")
        axis.set_title(measure, fontsize=9)
        axis.set_xticks(range(len(groups)), [", ".join(map(str, g)) for g in groups], fontsize=8)
        axis.tick_params(axis="y", labelsize=7, which="both")
        axis.margins(x=0.15)

    def save(self) -> list[Path]:
        """Write table.md, table.csv and plot.png into the directory of the ablation and return
        their paths.

        Raises:
            ImportError: If matplotlib is not installed; the tables are written before.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self.folder / name for name in ("table.md", "table.csv", "plot.png")]
        title = (
            f"{self.about['data']}: {self.about['images']:,} images seen, mean ± standard deviation"
            " over seeds"
        )
        explained = "Share of the variance of log(measure):"
        parts = [
            title,
            self.markdown(),
            self.failures_markdown(),
            explained,
            self.shares_markdown(),
        ]
        write_atomically(paths[0], "\n\n".join(filter(None, parts)) + "\n")
        write_atomically(paths[1], self.csv())
        self.plot().savefig(paths[2])
        return paths


def _row(words: Sequence[str]) -> str:
    return "| " + " | ".join(words) + " |"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    digits = max(0, 2 - math.floor(math.log10(abs(mean)))) if mean else 3
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    first = -math.floor(math.log10(spread)) if spread else digits
    if first > digits + 2:  # nothing of it would be seen in the digits of the mean
        return f"{mean:.{digits}f} ± {spread:.0e}"
    digits = max(digits, first)
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"
