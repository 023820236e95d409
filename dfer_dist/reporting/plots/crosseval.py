"""The picture of ``dfer crosseval``: UAR and WAR of runs on sets as heat maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dfer_dist.reporting.comparison.crosseval import CellScores, CrossEval
from dfer_dist.reporting.plots.scores import INK, new_figure
from dfer_dist.runs.summary import Spread

_WIDTH, _HEIGHT = 1.3, 0.8  # inches of a cell


def crosseval_figure(result: CrossEval) -> Figure:
    """Draw the mean and the 95 % interval of each cell; the own sets of runs have a frame."""
    cells = [
        result.cells[i : i + len(result.sets)]
        for i in range(0, len(result.cells), len(result.sets))
    ]
    names = [row[0].row.replace(" (", "\n(") for row in cells]
    margin = 0.09 * max(len(line) for name in names for line in name.split("\n"))
    width = 2 * _WIDTH * len(result.sets) + margin + 1.0
    figure = new_figure(max(5.2, width), _HEIGHT * len(cells) + 1.5)
    panels = figure.subplots(1, 2, sharey=True)
    for ax, metric in zip(panels, ("uar", "war"), strict=True):
        _draw_matrix(ax, cells, metric)
        ax.set_title(f"{metric.upper()}, percent", fontsize=12)
        ax.set_xticks(range(len(result.sets)), result.sets, rotation=20, ha="right", fontsize=10)
        ax.set_xlabel("tested on", fontsize=10)
    figure.supxlabel("framed: the set of the run's own training, tested by folds", fontsize=9)
    panels[0].set_yticks(range(len(names)), names, fontsize=10)
    panels[0].set_ylabel("trained on", fontsize=10)
    return figure


def _draw_matrix(ax: Axes, cells: list[list[CellScores]], metric: str) -> None:
    spreads: list[list[Spread]] = [[getattr(cell, metric) for cell in row] for row in cells]
    means = np.array([[s.mean for s in row] for row in spreads])
    ax.imshow(means, cmap=colormaps["Blues"], vmin=0, vmax=100, aspect=_HEIGHT / _WIDTH)
    for (i, j), mean in np.ndenumerate(means):
        low, high = spreads[i][j].ci95
        style: dict[str, Any] = {
            "color": "white" if mean > 55 else INK,
            "textcoords": "offset points",
            "ha": "center",
            "va": "center",
            "in_layout": False,
        }
        ax.annotate(f"{mean:.1f}", (j, i), (0, 6), fontsize=12, fontweight="bold", **style)
        ax.annotate(f"{low:.1f} to {high:.1f}", (j, i), (0, -10), fontsize=7.5, **style)
        if cells[i][j].own:
            frame = Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=INK)
            ax.add_patch(frame)
    ax.set_xticks(np.arange(means.shape[1] + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(means.shape[0] + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.2)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
