"""The plot of what predictions rest on: heat maps over frames, and the weight of each frame."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfer_dist.reporting.plots.scores import FAINT, INK, UAR, new_figure

_FRAME = 0.72  # inches
_OPACITY = 0.65  # of the hottest patch


@dataclass(frozen=True)
class ExplainedRow:
    """A row of frames.

    Attributes
    ----------
    title : str
    frames : uint8 [T, H, W, 3]
    weights : float [T]
        Share of each frame.
    heat : float [T, G, G]
        In 0..1.
    """

    title: str
    frames: np.ndarray
    weights: np.ndarray
    heat: np.ndarray


def explained_figure(title: str, rows: Sequence[ExplainedRow], note: str = "") -> Figure:
    """Draw the frames of each row with their heat maps, and the weights of frames as bars.

    ``note`` is a sentence for below.
    """
    count = max(len(row.frames) for row in rows)
    figure = new_figure(count * _FRAME + 0.6, len(rows) * 2 * _FRAME + 0.9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    grid = figure.add_gridspec(2 * len(rows), 1, height_ratios=[1, 0.4] * len(rows))
    for i, row in enumerate(rows):
        _draw_frames(figure.add_subplot(grid[2 * i]), row, count)
        _draw_weights(figure.add_subplot(grid[2 * i + 1]), row, count)
    caption = (
        "Heat: activation times gradient of the predicted class (HiResCAM). Bars: share of each "
        "frame (attention rollout); line: equal shares."
    )
    wrapped = textwrap.fill(f"{caption} {note}", int(count * _FRAME * 14))
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=9, color=FAINT)
    return figure


def _draw_frames(ax: Axes, row: ExplainedRow, count: int) -> None:
    for t, (frame, heat) in enumerate(zip(row.frames, row.heat, strict=True)):
        extent = (t + 0.02, t + 0.98, 0.02, 0.98)
        ax.imshow(frame, extent=extent, aspect="auto")
        ax.imshow(
            heat,
            extent=extent,
            aspect="auto",
            cmap="inferno",
            vmin=0,
            vmax=1,
            alpha=_OPACITY * heat,
            interpolation="bilinear",
        )
    ax.set(xlim=(0, count), ylim=(0, 1))
    ax.set_title(row.title, loc="left", fontsize=10, color=INK, parse_math=False)
    ax.axis("off")


def _draw_weights(ax: Axes, row: ExplainedRow, count: int) -> None:
    times = np.arange(len(row.weights)) + 0.5
    ax.bar(times, row.weights, 0.8, color=UAR)
    ax.axhline(1 / len(row.weights), color=FAINT, linewidth=1, linestyle=(0, (1, 2)))
    top = max(row.weights.max(), 2 / len(row.weights))
    ax.set(xlim=(0, count), ylim=(0, top), xticks=[], yticks=[top], yticklabels=[f"{top:.2f}"])
    ax.tick_params(labelsize=8, length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
