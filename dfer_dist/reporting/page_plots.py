"""Plots of the page as SVG: learning curves, recalls, and differences with intervals."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dfer_dist.evaluation.significance import Difference
from dfer_dist.reporting.history import Curve
from dfer_dist.reporting.plots import (
    ALERT,
    CLASS_COLORS,
    DPI,
    FAINT,
    INK,
    UAR,
    WAR,
    draw_scores,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FOLD_COLORS = (*CLASS_COLORS, "#5D3A9B", "#7F7F7F")


def data_uri(figure: Figure) -> str:
    """Return a figure as SVG in a ``data:`` URI; the same figure gives the same bytes."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "dfer", "svg.fonttype": "path"}):
        figure.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True
        )
    return f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}"


def scores_figure(summary: Mapping[str, Any]) -> Figure:
    """Draw the scores of each fold and their mean."""
    groups = len(summary["folds"]) + len(summary["missing"]) + 1 + bool(summary["shuffled"])
    figure = _figure(max(6.5, 1.15 * groups), 4.6)
    ax = figure.subplots()
    draw_scores(ax, summary)
    ax.set_title("")
    return figure


@dataclass(frozen=True)
class ClassRecall:
    """Recall of a class in percent with its 95 % interval; None if it has no clips."""

    name: str
    clips: int
    recall: float | None
    low: float
    high: float
    by_fold: Sequence[float | None]


def recall_figure(recalls: Sequence[ClassRecall]) -> Figure:
    """Draw the recall of each class with its 95 % interval, and a mark for each fold."""
    figure = _figure(7.0, 0.45 * len(recalls) + 1.0)
    ax = figure.subplots()
    for y, c in enumerate(recalls):
        if c.recall is None:
            ax.text(1, y, "no clip", va="center", color=ALERT, fontsize=9)
            continue
        ax.barh(y, c.recall, 0.62, color=UAR, alpha=0.85, zorder=2)
        marks = [x for x in c.by_fold if x is not None]
        ax.plot(
            marks,
            [y] * len(marks),
            "o",
            color="white",
            markeredgecolor=INK,
            markersize=4.5,
            zorder=4,
            clip_on=False,
        )
        ax.plot([c.low, c.high], [y, y], color=INK, linewidth=1.6, zorder=3)
    ax.set_yticks(range(len(recalls)), [f"{c.name} ({c.clips})" for c in recalls], fontsize=10)
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), ylim=(len(recalls) - 0.4, -0.6))
    ax.set_xlabel(
        "recall, percent: bar and 95 % interval of all folds, a circle for each fold", fontsize=10
    )
    _clean(ax, "x")
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
    figure = _figure(5.6 * panels + 1.2, 3.9)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    colors = {fold: _FOLD_COLORS[i % len(_FOLD_COLORS)] for i, fold in enumerate(losses)}
    for fold, curve in losses.items():
        axes[0].plot(
            curve.epochs,
            curve.values,
            color=colors[fold],
            linewidth=1.6,
            label=f"fold {fold}",
        )
    axes[0].set_ylabel("training loss", fontsize=10.5)
    if scores:
        _draw_score_curves(axes[1], scores, chosen, colors)
    for ax in axes:
        ax.set_xlabel("epoch", fontsize=10.5)
        ax.set_xlim(left=0)
        _clean(ax, "y")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=10
    )
    return figure


def _draw_score_curves(
    ax: Axes,
    scores: Mapping[str, Mapping[int, Curve]],
    chosen: Mapping[int, float],
    colors: Mapping[int, str],
) -> None:
    """Draw WAR as lines, UAR as dashes, and a dot at the chosen epoch."""
    for name, curves in scores.items():
        is_war = name.endswith("war")
        for fold, curve in curves.items():
            style = "-" if is_war else (0, (4, 2))
            ax.plot(curve.epochs, curve.values, color=colors[fold], linewidth=1.6, linestyle=style)
            if is_war:
                _draw_chosen_epoch(ax, curve, chosen.get(fold, -1), colors[fold])
    where = "test fold (optimistic)"
    if any(name.startswith("val") for name in scores):
        where = "validation part"
    ax.set_ylabel(f"percent on the {where}", fontsize=10.5)
    ax.set_title("line WAR, dashes UAR, dot the chosen epoch", fontsize=10, color=FAINT)


def _draw_chosen_epoch(ax: Axes, curve: Curve, epoch: float, color: str) -> None:
    points = [
        (e, v) for e, v in zip(curve.epochs, curve.values, strict=True) if abs(e - epoch) < 0.01
    ]
    if points:
        ax.plot(*zip(*points, strict=True), "o", color=color, markersize=6)


def differences_figure(rows: Sequence[tuple[str, Difference]], scores: int) -> Figure:
    """Draw differences with their 95 % intervals around zero.

    Parameters
    ----------
    rows : sequence of (name, Difference)
    scores : int
        Number of leading rows that are UAR and WAR; the others are classes.
    """
    figure = _figure(7.0, 0.42 * len(rows) + 1.1)
    ax = figure.subplots()
    ax.axvline(0, color=INK, linewidth=1)
    for y, (_, d) in enumerate(rows):
        color, width, size = "#555555", 1.6, 6.5
        if y < scores:
            color, width, size = (UAR, WAR)[y % 2], 2.4, 8.0
        ax.plot([d.low, d.high], [y, y], color=color, linewidth=width, solid_capstyle="butt")
        ax.plot(
            d.value,
            y,
            "o",
            markersize=size,
            markeredgewidth=1.6,
            markerfacecolor=color if d.certain else "white",
            markeredgecolor=color,
        )
    if len(rows) > scores:
        ax.axhline(scores - 0.5, color="#d0d0d0", linewidth=0.8)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=10)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("percent points; filled where the interval leaves zero out", fontsize=10)
    _clean(ax, "x")
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _clean(ax: Axes, grid: Literal["x", "y"]) -> None:
    ax.grid(axis=grid, color="#e6e6e6", linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#c0c0c0")
