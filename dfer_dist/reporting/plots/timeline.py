"""The plot of a video: probabilities over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dfer_dist.reporting.plots.scores import CLASS_COLORS, EMPTY, INK, new_figure


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
    figure = new_figure(9.5, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[9, 1])
    styles = [
        {"color": CLASS_COLORS[c % 8], "linestyle": "-" if c < 8 else (0, (4, 2))}
        for c in range(len(classes))
    ]
    _draw_curves(above, spans, probabilities, styles)
    _draw_top_classes(above, below, spans.mean(1), probabilities, seconds)
    handles: list[Any] = [
        Line2D([], [], linewidth=2.5, label=f"{classes[c]}  {overall[c]:.2f}", **styles[c])
        for c in np.argsort(-overall, kind="stable")
    ]
    if np.isnan(probabilities).any():
        handles.append(Patch(label="no face", **EMPTY))
    _draw_legend(above, handles)
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
    lines = ax.plot(times, curves, linewidth=1.8, marker=marker, markersize=3.5, clip_on=False)
    for line, style in zip(lines, styles, strict=True):
        line.set(**style)


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
    for span, p in zip(pairwise(edges.tolist()), probabilities, strict=True):
        if np.isnan(p).any():
            below.axvspan(*span, **EMPTY)
            above.axvspan(*span, facecolor="#f4f4f4", linewidth=0, zorder=0)
        else:
            top = int(p.argmax())
            alpha = 1.0 if top < 8 else 0.5
            below.axvspan(*span, facecolor=CLASS_COLORS[top % 8], alpha=alpha, linewidth=0)


def _draw_legend(ax: Axes, handles: list[Any]) -> None:
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
