"""Plots of calibration: the reliability diagram, and the risk-coverage curves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfer_dist.evaluation.calibration import Outputs, reliability, risk_coverage
from dfer_dist.reporting.plots.page import clean
from dfer_dist.reporting.plots.scores import FAINT, INK, UAR, new_figure


def calibration_figure(folds: Mapping[int, Outputs]) -> Figure:
    """Draw the reliability diagram of all folds pooled, and the risk-coverage curve of each."""
    figure = new_figure(8.4, 3.8)
    left, right = figure.subplots(1, 2)
    pooled = Outputs(
        np.concatenate([o.labels for o in folds.values()]),
        np.concatenate([o.logits for o in folds.values()]),
    )
    _draw_reliability(left, pooled)
    for outputs in folds.values():
        risks = 100 * risk_coverage(outputs)
        coverage = 100 * np.arange(1, len(risks) + 1) / len(risks)
        right.plot(coverage, risks, color=UAR, linewidth=1.4, alpha=0.8)
    right.set(xlim=(0, 100), ylim=(0, None))
    right.set_xlabel("coverage: most confident clips, percent", fontsize=10)
    right.set_ylabel("errors among them, percent", fontsize=10)
    right.set_title("A line for each fold", fontsize=10, color=FAINT)
    clean(right, "y")
    return figure


def _draw_reliability(ax: Axes, outputs: Outputs) -> None:
    """Draw the accuracy of each bin over its mean confidence; the area says how many clips."""
    ax.plot([0, 100], [0, 100], color=FAINT, linewidth=1, linestyle=(0, (4, 2)))
    bins = reliability(outputs)
    largest = max(b.clips for b in bins)
    ax.scatter(
        [100 * b.confidence for b in bins],
        [100 * b.accuracy for b in bins],
        [20 + 180 * b.clips / largest for b in bins],
        color=UAR,
        edgecolor=INK,
        zorder=3,
        clip_on=False,
    )
    ax.set(xlim=(0, 100), ylim=(0, 100))
    # below the axis: dots at 100 % reach over the panel
    label = "mean confidence of a bin, percent\n(below the line: overconfident)"
    ax.set_xlabel(label, fontsize=10)
    ax.set_ylabel("accuracy, percent", fontsize=10)
    clean(ax, "y")
