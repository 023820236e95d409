"""Plots of the page: learning curves, recalls, differences; and the curves of a fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfer_dist.evaluation.significance import Difference
from dfer_dist.reporting.history import Curve, Line, curve, read_lines, score_curves, smooth
from dfer_dist.reporting.plots import ALERT, CLASS_COLORS, FAINT, INK, UAR, WAR, new_figure, save
from dfer_dist.reporting.sections import ClassRecall
from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import FoldResult

_FOLD_COLORS = (*CLASS_COLORS, "#5D3A9B", "#7F7F7F")
_MIN_HALF = 10  # lines on either side of one in the mean of the loss
_SCORE_NAMES = {
    f"{part}_{metric}": f"{text} {metric.upper()}"
    for part, text in (("val", "validation"), ("test", "test"))
    for metric in ("uar", "war")
}
# WAR is wide and pale, UAR thin: both are seen where they are equal.
_WIDE: dict[str, Any] = {"linewidth": 3.6, "alpha": 0.5}
_DASHED: dict[str, Any] = {"linewidth": 1.6, "linestyle": (0, (4, 2)), "zorder": 3}


def recall_figure(recalls: Sequence[ClassRecall]) -> Figure:
    """Draw the recall of each class with its 95 % interval, and a mark for each fold."""
    figure = new_figure(7.0, 0.45 * len(recalls) + 1.0)
    ax = figure.subplots()
    circle: dict[str, Any] = {"color": "white", "markeredgecolor": INK, "markersize": 4.5}
    for y, c in enumerate(recalls):
        if not c.clips:
            ax.text(1, y, "no clip", va="center", color=ALERT, fontsize=9)
            continue
        ax.barh(y, c.recall, 0.62, color=UAR, alpha=0.85, zorder=2)
        if len(c.by_fold) > 1:
            ax.plot(c.by_fold, [y] * len(c.by_fold), "o", zorder=4, clip_on=False, **circle)
        ax.plot(c.interval, [y, y], color=INK, linewidth=1.6, zorder=3)
    label = "recall, percent: bar and 95 % interval of all folds, a circle for each fold"
    _label_rows(ax, [f"{c.name} ({c.clips})" for c in recalls], label)
    ax.set_xlim(0, 100)
    return figure


def curves_figure(
    losses: Mapping[int, Curve],
    scores: Mapping[str, Mapping[int, Curve]],
    chosen: Mapping[int, float],
) -> Figure:
    """Draw the training loss of each fold, and the scores measured during training.

    Parameters
    ----------
    losses : mapping of fold to Curve
    scores : mapping of a name such as ``val_war`` to curves by fold
        Empty if nothing was measured before the end.
    chosen : mapping of fold to the epoch whose weights are reported
    """
    panels = 1 + bool(scores)
    figure = new_figure(5.6 * panels + 1.2, 3.9)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    colors = {fold: _FOLD_COLORS[i % len(_FOLD_COLORS)] for i, fold in enumerate(losses)}
    for fold, loss in losses.items():
        axes[0].plot(*loss, color=colors[fold], linewidth=1.6, label=f"fold {fold}")
    axes[0].set_ylabel("training loss", fontsize=10.5)
    if scores:
        _draw_score_curves(axes[1], scores, chosen, colors)
    for ax in axes:
        ax.set_xlabel("epoch", fontsize=10.5)
        ax.set_xlim(left=0)
        _clean(ax, "y")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=10)
    return figure


def curves_png(run: str, result: FoldResult, fold: FoldDir) -> None:
    """Draw the training of a fold to ``curves.png``; ``run`` is the name of its run."""
    save(fold_figure(run, result, read_lines(fold)), fold.curves)


def fold_figure(run: str, result: FoldResult, lines: Sequence[Line]) -> Figure:
    """Draw the loss of a fold, and the scores measured during training.

    Parameters
    ----------
    run : str
        The name of the run.
    result : FoldResult
        Its scores are in the title. They are not drawn, as they are a single point.
    lines : sequence of mappings
        Of ``metrics.jsonl``.
    """
    scores = score_curves(lines)
    panels = 1 + bool(scores)
    figure = new_figure(6.4 * panels, 4.0)
    title = f"{run} on {result.dataset}, fold {result.fold}: "
    title += f"UAR {result.uar:.2f} %, WAR {result.war:.2f} %"
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_loss(axes[0], curve(lines, "loss"))
    for name, scored in scores.items():
        color, style = (UAR, _DASHED) if name.endswith("uar") else (WAR, _WIDE)
        axes[1].plot(*scored, color=color, label=_SCORE_NAMES[name], **style)
    for ax in axes[1:]:
        ax.set(ylim=(0, 100))
        ax.set_ylabel("percent", fontsize=10.5)
    for ax in axes:
        ax.set_xlabel("step", fontsize=10.5)
        ax.set_xlim(left=0)
        _clean(ax, "y")
        ax.legend(frameon=False, fontsize=10)
    return figure


def _draw_loss(ax: Axes, loss: Curve) -> None:
    """Draw the loss of each line, and its mean over the lines around it if they are many."""
    half = max(_MIN_HALF, len(loss.x) // 50)
    style: dict[str, Any] = {"color": INK, "linewidth": 1.6}
    if len(loss.x) > 2 * half:
        mean = smooth(loss, half)
        ax.plot(*mean, label=f"mean of {2 * half + 1} steps of the log", zorder=3, **style)
        style = {"color": FAINT, "linewidth": 0.7}
    ax.plot(*loss, label="each step of the log", **style)
    ax.set_ylabel("training loss", fontsize=10.5)


def _draw_score_curves(
    ax: Axes,
    scores: Mapping[str, Mapping[int, Curve]],
    chosen: Mapping[int, float],
    colors: Mapping[int, str],
) -> None:
    """Draw WAR as wide lines, UAR as dashes, and a dot at the chosen epoch."""
    for name, curves in scores.items():
        is_war = name.endswith("war")
        for fold, scored in curves.items():
            style = _WIDE if is_war else _DASHED
            ax.plot(*scored, color=colors[fold], **style)
            is_chosen = np.abs(np.subtract(scored.x, chosen[fold])) < 0.01
            if is_war and is_chosen.any():
                ax.plot(*np.array(scored)[:, is_chosen], "o", color=colors[fold], markersize=6)
    where = "test fold (optimistic)"
    if any(name.startswith("val") for name in scores):
        where = "validation part"
    ax.set_ylabel(f"percent on the {where}", fontsize=10.5)
    ax.set_title("wide line WAR, dashes UAR, dot the chosen epoch", fontsize=10, color=FAINT)


def differences_figure(rows: Sequence[tuple[str, Difference]], scores: int) -> Figure:
    """Draw differences with their 95 % intervals around zero.

    Parameters
    ----------
    rows : sequence of (name, Difference)
    scores : int
        Number of leading rows that are UAR and WAR; the others are classes.
    """
    figure = new_figure(7.0, 0.42 * len(rows) + 1.1)
    ax = figure.subplots()
    ax.axvline(0, color=INK, linewidth=1)
    for y, (_, d) in enumerate(rows):
        color, width, size = "#555555", 1.6, 6.5
        if y < scores:
            color, width, size = (UAR, WAR)[y % 2], 2.4, 8.0
        ax.plot([d.low, d.high], [y, y], color=color, linewidth=width, solid_capstyle="butt")
        style: dict[str, Any] = {"markersize": size, "markeredgewidth": 1.6}
        if not d.certain:
            style["markerfacecolor"] = "white"
        ax.plot(d.value, y, "o", color=color, **style)
    if len(rows) > scores:
        ax.axhline(scores - 0.5, color="#d0d0d0", linewidth=0.8)
    label = "percent points; filled where the interval leaves zero out"
    _label_rows(ax, [name for name, _ in rows], label)
    return figure


def _label_rows(ax: Axes, names: Sequence[str], label: str) -> None:
    """Name the rows of a plot, from the top, and its horizontal axis."""
    ax.set_yticks(range(len(names)), names, fontsize=10)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel(label, fontsize=10)
    _clean(ax, "x")


def _clean(ax: Axes, grid: Literal["x", "y"]) -> None:
    ax.grid(axis=grid, color="#e6e6e6", linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#c0c0c0")
