"""Plots of a report.

Only Matplotlib's object interface: no window system, no global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure

DPI = 150
# Okabe & Ito's palette, distinct in all common kinds of color vision.
UAR, WAR, ALERT, INK, FAINT = "#0072B2", "#E69F00", "#D55E00", "#222222", "#8a8a8a"
# All eight colors of the palette, yellow darkened for a white background; further classes repeat
# them, dashed.
CLASS_COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#B5A800",
)
_CELL = 0.6  # inches of a cell of the confusion matrix
_WIDTH = 0.4  # of a bar; a group is one wide
_EMPTY: dict[str, Any] = {
    "facecolor": "#f4f4f4",
    "edgecolor": "#c0c0c0",
    "hatch": "//",
    "linewidth": 0,
}
_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
_DASHES = (0, (5, 3))


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG without metadata: the same figure gives the same bytes."""
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def summary_figure(summary: Mapping[str, Any], title: str, warning: str) -> Figure:
    """Draw the scores of each fold next to the pooled confusion matrix.

    Parameters
    ----------
    summary : mapping
        From :func:`dfer_dist.reporting.summary.summarize`.
    title : str
        Names the data set and how the epochs were chosen.
    warning : str
        A sentence on missing folds, or empty.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    pooled, finished = summary["pooled"], len(summary["folds"])
    count = finished + len(summary["missing"])
    groups = count + 1 + bool(summary["shuffled"])
    left, side = max(5.0, 1.0 * groups + 1.0), matrix_size(pooled["classes"])
    figure = Figure(
        figsize=(left + side + 2.0, side + 2.2),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04),
    )
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    panels = figure.subplots(1, 2, width_ratios=[left, side + 1.4])
    draw_scores(panels[0], summary)
    matrix_title = f"Pooled confusion, {pooled['n']} clips of {finished} of {count} folds"
    draw_confusion(panels[1], pooled["confusion"], pooled["classes"], matrix_title)
    if warning:
        figure.supxlabel(warning, fontsize=11, fontweight="bold", color=ALERT)
    return figure


def confusion_figure(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> Figure:
    """Draw a confusion matrix alone."""
    from matplotlib.figure import Figure

    side = matrix_size(classes)
    figure = Figure(figsize=(side + 1.8, side + 1.9), dpi=DPI, layout="constrained")
    draw_confusion(figure.subplots(), confusion, classes, title)
    return figure


def timeline_figure(
    title: str,
    spans: np.ndarray,
    probabilities: np.ndarray,
    overall: np.ndarray,
    classes: Sequence[str],
    seconds: float,
) -> Figure:
    """Draw the probabilities of a video over time.

    The upper panel has a line for each class, the lower one the most probable class of each window.

    Parameters
    ----------
    title : str
    spans : float [W, 2]
        Begin and end of each window in seconds. A point is in the middle of its window.
    probabilities : float [W, C]
        NaN for a window without a prediction, where lines break.
    overall : float [C]
        Of the whole video; the legend is in its order.
    classes : sequence of str
    seconds : float
        Length of the video.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.6), dpi=DPI, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[9, 1])
    styles = [
        {"color": CLASS_COLORS[c % 8], "linestyle": "-" if c < 8 else (0, (4, 2))}
        for c in range(len(classes))
    ]
    _draw_curves(above, spans, probabilities, styles)
    _draw_top_classes(above, below, spans.mean(1), probabilities, seconds)
    has_gaps = bool(np.isnan(probabilities).any())
    _class_legend(above, overall, classes, styles, has_gaps)
    above.set_title(title, fontsize=12, color=INK, loc="left")
    _finish_timeline(above, below, seconds)
    return figure


def _draw_curves(
    ax: Axes, spans: np.ndarray, probabilities: np.ndarray, styles: list[dict[str, Any]]
) -> None:
    """Draw a line for each class through the middles of the windows, or along a single window."""
    times, curves, marker = spans.mean(1), probabilities, None
    if len(spans) == 1:
        times, curves = spans[0], probabilities.repeat(2, 0)
    elif len(spans) <= 60:
        marker = "o"
    for c, style in enumerate(styles):
        ax.plot(
            times,
            curves[:, c],
            linewidth=1.8,
            marker=marker,
            markersize=3.5,
            clip_on=False,
            **style,
        )


def _finish_timeline(above: Axes, below: Axes, seconds: float) -> None:
    above.set(xlim=(0, seconds), ylim=(0, 1), yticks=np.linspace(0, 1, 6))
    above.set_ylabel("probability", fontsize=11)
    above.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    above.tick_params(axis="x", length=0)
    above.spines[["top", "right"]].set_visible(False)
    below.set(ylim=(0, 1), yticks=[])
    below.set_ylabel("top", rotation=0, ha="right", va="center", fontsize=10)
    below.set_xlabel("seconds", fontsize=11)
    below.spines[:].set_visible(False)


def _draw_top_classes(
    above: Axes, below: Axes, times: np.ndarray, probabilities: np.ndarray, seconds: float
) -> None:
    """Color the most probable class around each time; grey without a prediction."""
    edges = np.concatenate([[0.0], (times[1:] + times[:-1]) / 2, [seconds]])
    for (left, right), p in zip(pairwise(edges.tolist()), probabilities, strict=True):
        if np.isnan(p).any():
            below.axvspan(left, right, **_EMPTY)
            above.axvspan(left, right, facecolor="#f4f4f4", linewidth=0, zorder=0)
        else:
            top = int(p.argmax())
            alpha = 1.0 if top < 8 else 0.5
            below.axvspan(left, right, facecolor=CLASS_COLORS[top % 8], alpha=alpha, linewidth=0)


def _class_legend(
    ax: Axes,
    overall: np.ndarray,
    classes: Sequence[str],
    styles: list[dict[str, Any]],
    has_gaps: bool,
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], linewidth=2.5, label=f"{classes[c]}  {overall[c]:.2f}", **styles[c])
        for c in np.argsort(-overall, kind="stable")
    ]
    if has_gaps:
        handles.append(Patch(label="no face", **_EMPTY))
    legend = ax.legend(
        handles=handles,
        title="whole video",
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        frameon=False,
        fontsize=10,
    )
    legend.get_title().set(fontsize=10, fontweight="bold", color=INK)


def draw_scores(ax: Axes, summary: Mapping[str, Any]) -> None:
    """Draw bars of UAR and WAR for each fold and for their mean.

    The mean has its 95 % interval. Shuffled frames and the majority class are baselines.
    """
    results = {r["fold"]: r for r in summary["folds"]}
    folds = sorted([*results, *summary["missing"]])
    names = [f"fold {k}" for k in folds] + ["mean"]
    for x, k in enumerate(folds):
        if k in results:
            _draw_pair(ax, x, (results[k]["uar"], results[k]["war"]))
        else:
            _draw_missing(ax, x)
    ax.axvline(len(folds) - 0.5, color=FAINT, linewidth=0.8)
    for metric, color in (("uar", UAR), ("war", WAR)):
        ax.axhspan(*summary[metric]["ci95"], color=color, alpha=0.22, linewidth=0, zorder=0.5)
        ax.axhline(summary[metric]["mean"], color=color, linewidth=1.2, zorder=0.6)
    interval = _draw_mean(ax, len(folds), summary)
    if summary["shuffled"]:
        names.append("frames\nshuffled")
        _draw_mean(ax, len(folds) + 1, summary["shuffled"], faded=True)
    majority = summary["majority"]["war"]
    ax.axhline(majority, color=INK, linestyle=_DASHES, linewidth=1.4, zorder=5)
    _scores_legend(ax, summary, interval)
    ax.set_xticks(range(len(names)), names, fontsize=11)
    ax.set_yticks(range(0, 101, 20))
    ax.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, 100))
    ax.set_ylabel("percent", fontsize=11)
    ax.set_title("Scores of each test fold", fontsize=12)
    ax.tick_params(length=0)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_missing(ax: Axes, x: float) -> None:
    style = _EMPTY | {"edgecolor": "#d5d5d5"}
    ax.bar(x, 100, 2 * _WIDTH, zorder=0.1, **style)
    ax.text(
        x,
        4,
        "missing",
        rotation=90,
        ha="center",
        va="bottom",
        color=ALERT,
        fontsize=12,
        fontweight="bold",
        bbox=_BOX,
    )


def _scores_legend(ax: Axes, summary: Mapping[str, Any], interval: ErrorbarContainer) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    majority = summary["majority"]
    label = f"WAR of always “{majority['class']}” ({majority['war']:.1f})"
    handles = [
        Patch(color=UAR, label="UAR"),
        Patch(color=WAR, label="WAR"),
        interval,
        Line2D([], [], color=INK, linestyle=_DASHES, label=label),
    ]
    # Half an inch under the axis, clear of labels of two lines.
    below = -0.5 / matrix_size(summary["pooled"]["classes"])
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, below),
        ncols=2,
        frameon=False,
        fontsize=10,
    )


def draw_confusion(
    ax: Axes, confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> None:
    """Draw percents of each row over the numbers of clips; the row of an absent class is grey."""
    from matplotlib import colormaps

    counts = np.asarray(confusion, dtype=np.int64)
    support = counts.sum(axis=1, keepdims=True)
    percent = np.divide(
        100.0 * counts, support, out=np.full(counts.shape, np.nan), where=support > 0
    )
    colors = colormaps["Blues"].with_extremes(bad="#eeeeee")
    ax.imshow(np.ma.masked_invalid(percent), cmap=colors, vmin=0, vmax=100)
    for (i, j), share in np.ndenumerate(percent):
        _draw_cell(ax, i, j, share, int(counts[i, j]))
    places = range(len(classes))
    ax.set_xticks(places, classes, rotation=40, ha="right", rotation_mode="anchor", fontsize=10)
    rows = [c if n else f"{c}\n(absent)" for c, n in zip(classes, support[:, 0], strict=True)]
    ax.set_yticks(places, rows, fontsize=10)
    ax.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.2)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("predicted (percent of the row, clips below)", fontsize=11)
    ax.set_ylabel("truth", fontsize=11)
    ax.set_title(title, fontsize=12)


def _draw_cell(ax: Axes, i: int, j: int, percent: float, count: int) -> None:
    if count == 0:
        text = "" if np.isnan(percent) else "0"
        ax.text(j, i, text, ha="center", va="center", color=FAINT, fontsize=9)
        return
    style: dict[str, Any] = {
        "color": "white" if percent > 55 else INK,
        "textcoords": "offset points",
        "ha": "center",
        "va": "center",
    }
    weight = "bold" if i == j else None
    ax.annotate(f"{percent:.0f}", (j, i), (0, 5), fontsize=11, fontweight=weight, **style)
    ax.annotate(f"{count}", (j, i), (0, -10), fontsize=7.5, **style)


def _draw_pair(ax: Axes, x: float, heights: tuple[float, float], faded: bool = False) -> None:
    """Draw two bars with values at the foot, clear of intervals and mean lines."""
    for dx, height, color in ((-_WIDTH / 2, heights[0], UAR), (_WIDTH / 2, heights[1], WAR)):
        style: dict[str, Any] = {"color": color}
        label: dict[str, Any] = {"color": "white" if color == UAR and height > 10 else INK}
        if faded:
            style = {"color": "white", "edgecolor": color, "hatch": "////"}
            label = {"color": INK, "bbox": _BOX}
        ax.bar(x + dx, height, _WIDTH * 0.94, zorder=2, **style)
        ax.text(
            x + dx,
            2.2,
            f"{height:.1f}",
            ha="center",
            fontsize=9.5,
            fontweight="bold",
            zorder=6,
            **label,
        )


def _draw_mean(
    ax: Axes, x: float, part: Mapping[str, Any], faded: bool = False
) -> ErrorbarContainer:
    _draw_pair(ax, x, (part["uar"]["mean"], part["war"]["mean"]), faded)
    low, high = np.array([part["uar"]["ci95"], part["war"]["ci95"]]).T
    return ax.errorbar(
        [x - _WIDTH / 2, x + _WIDTH / 2],
        (low + high) / 2,
        yerr=(high - low) / 2,
        fmt="none",
        ecolor=INK,
        elinewidth=1.5,
        capsize=5,
        zorder=4,
        label="mean, 95 % interval (also the band)",
    )


def matrix_size(classes: Sequence[str]) -> float:
    """Return the side of a confusion matrix in inches."""
    return max(3.6, _CELL * len(classes))
