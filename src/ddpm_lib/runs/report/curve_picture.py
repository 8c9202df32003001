"""results.png: the curves of a run as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_lib.core.files import write_aside
from ddpm_lib.runs.records import RunRecords
from ddpm_lib.runs.report.charts import Chart, run_charts
from ddpm_lib.runs.report.page_facts import best_validation
from ddpm_lib.runs.report.thinning import thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5fbf", "#c2410c", "#2f855a", "#7b4bb5", "#a16207", "#be185d", "#0e7490", "#57606a")
_PANELS = ("loss", "gap", "quarters", "grad_norm", "learning_rate", "images_per_second")
_POINTS = 1500


def write_curve_picture(records: RunRecords, path: Path) -> None:
    """Draw the curves into one picture; nothing is written where nothing was logged.

    Args:
        records: What the run says.
        path: A .png.

    Raises:
        OSError: If the disk refuses; what was there stays.
    """
    best = best_validation(records)
    charts = {
        chart.name: chart for chart in run_charts(records, [("best", best[0])] if best else [])
    }
    shown = [charts[name] for name in _PANELS if name in charts]
    if not shown:
        return
    from matplotlib.figure import Figure

    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(11.0, 3.1 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flat
    for axis, chart in zip(axes, shown):
        _draw(axis, chart)
    for axis in list(figure.axes)[len(shown) :]:
        axis.remove()
    status = records.status
    at = f", step {status.step:,}" if status.step is not None else ""
    name = records.run.resolve().name.replace("$", r"\$")
    figure.suptitle(f"{name}{at}", fontsize=12)
    write_aside(path, lambda aside: figure.savefig(aside, format="png"), durable=False)


def _draw(axis: Axes, chart: Chart) -> None:
    for one in chart.curves:
        kept = thin(one.y, _POINTS)
        x, y = [one.x[k] for k in kept], [one.y[k] for k in kept]
        colour = COLOURS[one.colour % len(COLOURS)]
        mark = "o" if len(x) == 1 else None
        axis.plot(
            x,
            y,
            color=colour,
            linewidth=1.3,
            linestyle="--" if one.dash else "-",
            label=one.label,
            marker=mark,
            markersize=3,
        )
        if one.error:
            low = [v - one.error[k] for k, v in zip(kept, y)]
            high = [v + one.error[k] for k, v in zip(kept, y)]
            axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    for _, value in chart.levels:
        axis.axhline(value, color="#888888", linewidth=0.8, linestyle=":")
    for label, step in chart.marks:
        axis.axvline(step, color="#888888", linewidth=0.8, linestyle=":")
        axis.text(
            step,
            1.0,
            f" {label}",
            transform=axis.get_xaxis_transform(),
            fontsize=7,
            va="top",
            color="#666666",
        )
    positive = all(value > 0 for one in chart.curves for value in one.y)
    if chart.log and positive:
        axis.set_yscale("log")
    axis.set_title(chart.title, fontsize=10)
    axis.tick_params(which="both", labelsize=8)
    axis.grid(True, color="#eeeeee", linewidth=0.7)
    axis.set_axisbelow(True)
    if len(chart.curves) > 1:
        axis.legend(fontsize=7, frameon=False)
