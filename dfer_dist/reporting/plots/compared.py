"""Plots of a comparison: differences, recalls, curves and changed predictions of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfer_dist.evaluation.significance import Difference
from dfer_dist.reporting.comparison.paired import Change, ClassChange
from dfer_dist.reporting.history import Curve
from dfer_dist.reporting.plots.page import clean, label_rows
from dfer_dist.reporting.plots.scores import (
    CLASS_COLORS,
    FAINT,
    INK,
    UAR,
    WAR,
    label_matrix,
    matrix_size,
    new_figure,
)
from dfer_dist.runs.endpoint import own_classes

# The baseline is black. The colors of UAR and WAR are left out.
_RUN_COLORS = (INK, *(c for c in CLASS_COLORS[1:] if c not in (WAR, "#000000")))


def differences_figure(rows: Sequence[tuple[str, Difference]], scores: int) -> Figure:
    """Draw differences with their 95 % intervals around zero.

    Parameters
    ----------
    rows : sequence of (name, Difference)
    scores : int
        Number of leading rows that are UAR and WAR; the others are classes.
    """
    figure = new_figure(5.2, 0.38 * len(rows) + 0.9)
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
    label_rows(ax, [name for name, _ in rows], label)
    return figure


def recalls_figure(first: str, second: str, classes: Sequence[ClassChange]) -> Figure:
    """Draw the recall of each class by two runs: dots with a line from the first to the second.

    Parameters
    ----------
    first, second : str
        Names of the runs.
    classes : sequence of ClassChange
    """
    figure = new_figure(5.2, 0.38 * len(classes) + 1.2)
    ax = figure.subplots()
    rows = range(len(classes))
    baseline, other = ([getattr(x, name) for x in classes] for name in ("first", "second"))
    ax.hlines(rows, baseline, other, color=FAINT, linewidth=2.5, zorder=2)
    style: dict[str, Any] = {"linestyle": "none", "markersize": 8, "zorder": 3, "clip_on": False}
    ax.plot(baseline, rows, "o", color=_RUN_COLORS[0], label=first, fillstyle="none", **style)
    ax.plot(other, rows, "o", color=_RUN_COLORS[1], label=second, **style | {"markersize": 6})
    label_rows(ax, [f"{x.name} ({x.clips})" for x in classes], "recall, percent, folds pooled")
    lowest = min([100.0, *baseline, *other])
    ax.set_xlim(max(0, 10 * ((lowest - 5) // 10)), 100)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=10)
    return figure


def curves_figure(runs: Mapping[str, Sequence[Mapping[str, Curve]]], metric: str | None) -> Figure:
    """Draw the curves of all runs in one axis: a thin line for each fold, their mean wide.

    Parameters
    ----------
    runs : mapping of the run's name to the curves of its folds
        As :func:`~dfer_dist.reporting.history.training_curves` returns them.
    metric : str, optional
        The name of a score, such as ``val_war``, to draw below the training loss.
    """
    figure = new_figure(5.6, 3.2 * (1 + bool(metric)))
    axes = figure.subplots(1 + bool(metric), sharex=True, squeeze=False)[:, 0]
    labels = {"loss": "training loss"}
    if metric:
        labels[metric] = f"{metric.replace('_', ' ')}, percent"
    for ax, (name, label) in zip(axes, labels.items(), strict=True):
        for i, (run, folds) in enumerate(runs.items()):
            curves = [fold[name] for fold in folds if name in fold and fold[name].x]
            _draw_run_curves(ax, run, curves, _RUN_COLORS[i % len(_RUN_COLORS)])
        ax.set_ylabel(label, fontsize=10.5)
        clean(ax, "y")
    axes[0].legend(frameon=False, fontsize=10)
    axes[-1].set_xlabel("epoch", fontsize=10.5)
    axes[-1].set_xlim(left=0)
    return figure


def _draw_run_curves(ax: Axes, run: str, curves: Sequence[Curve], color: str) -> None:
    """Draw the curves of the folds of a run, and their mean as far as all of them go."""
    if not curves:
        return
    for fold in curves:
        ax.plot(*fold, color=color, linewidth=0.7, alpha=0.4)
    ends = max(c.x[0] for c in curves), min(c.x[-1] for c in curves)
    epochs = np.linspace(*ends, max(len(c.x) for c in curves))
    mean = np.mean([np.interp(epochs, *c) for c in curves], axis=0)
    ax.plot(epochs, mean, color=color, linewidth=2.2, label=run, zorder=3)


def confusion_change_figure(
    changes: Sequence[Change], classes: Sequence[str], support: Mapping[str, int], title: str
) -> Figure:
    """Draw the second confusion matrix minus the first, in clips.

    Parameters
    ----------
    changes : sequence of Change
        The clips that two runs predict differently; all others cancel out.
    classes : sequence of str
    support : mapping of str to int
        Clips of each class, without classes that have none.
    title : str
    """
    place = {name: i for i, name in enumerate(classes)}
    truths = own_classes(classes)
    counts = np.zeros((len(truths), len(classes)), dtype=np.int64)
    for x in changes:
        counts[place[x.truth], place[x.second]] += 1
        counts[place[x.truth], place[x.first]] -= 1
    figure = new_figure(matrix_size(classes) + 1.8, matrix_size(truths) + 1.9)
    ax = figure.subplots()
    largest = max(1, int(np.abs(counts).max()))
    # Purple: more clips, orange: fewer. Paler than both ends of the map, so that text is read.
    ax.imshow(counts, cmap=colormaps["PuOr"], vmin=-2.4 * largest, vmax=2.4 * largest)
    for (i, j), count in np.ndenumerate(counts):
        text, weight = f"{count:+d}".replace("-", "−"), "bold" if i == j else None
        if count == 0:
            text, weight = "0", None
        color = INK if count else FAINT
        ax.text(j, i, text, ha="center", va="center", color=color, fontweight=weight, fontsize=10)
    ax.set_title(title, fontsize=12)
    label_matrix(ax, classes, [support.get(c, 0) for c in truths], "change in clips")
    return figure
