"""Figures; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#30475e", "#c8553d", "#3a7d44", "#7b4b94", "#b8860b")


def need_matplotlib() -> None:
    """Raise where figures cannot be drawn; to be called before the work whose result they show.

    Raises:
        ImportError: Saying how to install matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("Figures need matplotlib. Install it with: pip install matplotlib")


def plot_points(
    sets: Mapping[str, Tensor],
    trajectories: Tensor | None = None,
    *,
    limit: float = 1.1,
    max_points: int = 5000,
    max_trajectories: int = 60,
    title: str | None = None,
) -> Figure:
    """Draw sets of points side by side, and the ways that samples took from the noise.

    Args:
        sets: Points (n, 2) under the title of their panel, such as {"data": …, "samples": …}.
        trajectories: States (n, frames, 2), noise first: a further panel.
        limit: The panels with points show [-limit, limit]².
        max_points: Points per panel, the first ones.
        max_trajectories: Trajectories, the first ones.
        title: Line above the panels.

    Returns:
        A figure that belongs to no window: `figure.savefig(path)`, or the last line of a notebook
            cell.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is nothing to draw or a shape does not fit.
    """
    for name, points in sets.items():
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(
                f"The points of {name!r} must have shape (n, 2); got {tuple(points.shape)}."
            )
    if trajectories is not None and (trajectories.ndim != 3 or trajectories.shape[2] != 2):
        raise ValueError(
            f"trajectories must have shape (n, frames, 2); got {tuple(trajectories.shape)}."
        )
    panels = len(sets) + (trajectories is not None)
    if not panels:
        raise ValueError("There is nothing to draw. Give sets, or trajectories.")
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * panels, 4.3 if title else 4.1), dpi=110, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for k, (axis, (name, points)) in enumerate(zip(axes, sets.items())):
        shown = points[:max_points].detach().cpu().numpy()
        size = 4.0 * (2000 / max(len(shown), 500)) ** 0.5
        axis.scatter(
            shown[:, 0],
            shown[:, 1],
            s=size,
            color=_COLOURS[k % len(_COLOURS)],
            alpha=0.6,
            linewidths=0,
        )
        _frame(axis, f"{name} ({len(points):,})", limit)
    if trajectories is not None:
        _draw_trajectories(axes[-1], trajectories[:max_trajectories].detach().cpu().numpy())
        _frame(
            axes[-1],
            "trajectories: noise ○ → sample ●",
            max(limit, float(trajectories.abs().max()) * 1.02),
        )
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _draw_trajectories(axis: Axes, paths: np.ndarray) -> None:
    for path in paths:
        axis.plot(*path.T, color="#888888", linewidth=0.6, alpha=0.7, zorder=1)
    axis.scatter(
        paths[:, 0, 0],
        paths[:, 0, 1],
        s=12,
        facecolors="none",
        edgecolors=_COLOURS[0],
        linewidths=0.7,
        zorder=2,
    )
    axis.scatter(paths[:, -1, 0], paths[:, -1, 1], s=10, color=_COLOURS[1], linewidths=0, zorder=3)


def _frame(axis: Axes, title: str, limit: float) -> None:
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axis.set_title(title, fontsize=10)
    axis.tick_params(labelsize=8)
