"""Plots of a run's chapter: learning curves and recalls; and the curves of a fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfer_dist.reporting.class_scores import ClassRecall
from dfer_dist.reporting.history import Curve, read_lines, training_curves
from dfer_dist.reporting.plots.scores import (
    ALERT,
    CLASS_COLORS,
    FAINT,
    INK,
    UAR,
    WAR,
    new_figure,
    save,
)
from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import FoldResult

_FOLD_COLORS = (*CLASS_COLORS, "#5D3A9B", "#7F7F7F")
# WAR is wide and pale, UAR thin: both are seen where they are equal.
_WIDE: dict[str, Any] = {"linewidth": 3.6, "alpha": 0.5}
_DASHED: dict[str, Any] = {"linewidth": 1.6, "linestyle": (0, (4, 2)), "zorder": 3}


def recall_figure(recalls: Sequence[ClassRecall]) -> Figure:
    """Draw the recall of each class with its 95 % interval, and a mark for each fold."""
    figure = new_figure(5.2, 0.38 * len(recalls) + 0.9)
    ax = figure.subplots()
    circle: dict[str, Any] = {"color": "white", "markeredgecolor": INK, "markersize": 4.5}
    for y, c in enumerate(recalls):
        if not c.clips:
            ax.text(1, y, "no clip", va="center", color=ALERT, fontsize=9)
            continue
        ax.barh(y, c.recall, 0.62, color=UAR, alpha=0.85, zorder=2)
        by_fold = [share.percent for share in c.folds]
        if len(by_fold) > 1:
            ax.plot(by_fold, [y] * len(by_fold), "o", zorder=4, clip_on=False, **circle)
        ax.plot(c.interval, [y, y], color=INK, linewidth=1.6, zorder=3)
    label_rows(ax, [f"{c.name} ({c.clips})" for c in recalls], "recall, percent, folds pooled")
    ax.set_xlim(0, 100)
    return figure


def curves_figure(folds: Mapping[int, Mapping[str, Curve]], chosen: Mapping[int, float]) -> Figure:
    """Draw the training loss of each fold, and the scores measured during training.

    A single fold has the colors of the scores, and the loss of each step.

    Parameters
    ----------
    folds : mapping of fold to curves
        As :func:`~dfer_dist.reporting.history.training_curves` returns them.
    chosen : mapping of fold to the epoch whose weights are reported
    """
    scored = any(name.endswith("war") for curves in folds.values() for name in curves)
    figure = new_figure(5.6, 3.2 * (1 + scored))
    axes = figure.subplots(1 + scored, sharex=True, squeeze=False)[:, 0]
    colors: dict[int, str] = {}
    if len(folds) > 1:
        colors = {fold: _FOLD_COLORS[i % len(_FOLD_COLORS)] for i, fold in enumerate(folds)}
    for fold, curves in folds.items():
        color = colors.get(fold, INK)
        axes[0].plot(*curves["loss"], color=color, linewidth=1.6, label=f"fold {fold}", zorder=3)
        if not colors:
            axes[0].plot(*curves["step"], color=FAINT, linewidth=0.7)
            axes[0].legend(["mean", "each step"], frameon=False, fontsize=10)
    axes[0].set_ylabel("training loss", fontsize=10.5)
    if scored:
        _draw_score_curves(axes[1], folds, chosen, colors)
    for ax in axes:
        clean(ax, "y")
    axes[-1].set_xlabel("epoch", fontsize=10.5)
    axes[-1].set_xlim(left=0)
    if colors:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=10)
    return figure


def curves_png(run: str, result: FoldResult, fold: FoldDir) -> Figure:
    """Draw the curves of a fold to ``curves.png``.

    Parameters
    ----------
    run : str
        The name of the run.
    result : FoldResult
        Its scores are in the title. They are not drawn, as they are a single point.
    fold : FoldDir
    """
    k = result.fold
    figure = curves_figure({k: training_curves(read_lines(fold), result)}, {k: result.epoch})
    title = f"{run} on {result.dataset}, fold {k}: UAR {result.uar:.2f} %, WAR {result.war:.2f} %"
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    save(figure, fold.curves)
    return figure


def _draw_score_curves(
    ax: Axes,
    folds: Mapping[int, Mapping[str, Curve]],
    chosen: Mapping[int, float],
    colors: Mapping[int, str],
) -> None:
    """Draw WAR as wide lines, UAR as dashes, and a dot at the chosen epoch."""
    scores = [(k, name, c) for k, curves in folds.items() for name, c in curves.items()]
    for fold, name, scored in scores:
        if name.endswith("uar"):
            ax.plot(*scored, color=colors.get(fold, UAR), **_DASHED)
        if name.endswith("war"):
            color = colors.get(fold, WAR)
            ax.plot(*scored, color=color, **_WIDE)
            is_chosen = np.abs(np.subtract(scored.x, chosen[fold])) < 0.01
            ax.plot(*np.array(scored)[:, is_chosen], "o", color=color, markersize=6)
    where = "test fold (optimistic)"
    if any(name.startswith("val") for _, name, _ in scores):
        where = "validation part"
    ax.set_ylabel(f"percent on the {where}", fontsize=10.5)
    ax.set_title("wide line WAR, dashes UAR, dot the chosen epoch", fontsize=10, color=FAINT)


def label_rows(ax: Axes, names: Sequence[str], label: str) -> None:
    """Name the rows of a plot, from the top, and its horizontal axis."""
    ax.set_yticks(range(len(names)), names, fontsize=10)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel(label, fontsize=10)
    clean(ax, "x")


def clean(ax: Axes, grid: Literal["x", "y"]) -> None:
    """Draw a pale grid along an axis, and no frame but the axes."""
    ax.grid(axis=grid, color="#e6e6e6", linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#c0c0c0")
