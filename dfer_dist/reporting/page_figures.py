"""The page's own drawings, beside those of :mod:`dfer_dist.reporting.figures`: learning curves, recalls, and differences with their intervals."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dfer_dist.evaluation.significance import Difference
from dfer_dist.reporting.figures import (
    ALERT,
    DPI,
    FAINT,
    INK,
    UAR,
    WAR,
    draw_confusion,
    draw_scores,
)
from dfer_dist.reporting.history import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FOLDS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#B5A800",
    "#5D3A9B",
    "#7F7F7F",
)


def data_uri(figure: Figure) -> str:
    """The figure as SVG, letters as outlines, in a URI that stands in a page; the same figure gives the same bytes."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "dfer", "svg.fonttype": "path"}):
        figure.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True
        )
    return f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}"


def scores_figure(summary: Mapping[str, Any]) -> Figure:
    """Scores of each fold and their mean."""
    groups = len(summary["folds"]) + len(summary["missing"]) + 1 + bool(summary["shuffled"])
    figure = _figure(max(6.5, 1.15 * groups), 4.6)
    ax = figure.subplots()
    draw_scores(ax, summary)
    ax.set_title("")
    return figure


def confusion_matrix_figure(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> Figure:
    """One confusion matrix."""
    side = max(3.6, 0.6 * len(classes))
    figure = _figure(side + 1.8, side + 1.9)
    draw_confusion(figure.subplots(), confusion, classes, title)
    return figure


def recall_figure(
    recalls: Sequence[tuple[str, int, float | None, float, float]],
    by_fold: Sequence[Sequence[float | None]],
) -> Figure:
    """Recall of each class with its 95 % interval, and a small mark for each fold.

    Parameters
    ----------
    recalls : sequence of (class, clips, recall, low, high)
        In percent; a class without clips has no recall.
    by_fold : sequence of sequences
        For each class its recall in each fold.
    """
    figure = _figure(7.0, 0.45 * len(recalls) + 1.0)
    ax = figure.subplots()
    for y, (_, _, recall, low, high) in enumerate(recalls):
        if recall is None:
            ax.text(1, y, "no clip", va="center", color=ALERT, fontsize=9)
            continue
        ax.barh(y, recall, 0.62, color=UAR, alpha=0.85, zorder=2)
        marks = [x for x in by_fold[y] if x is not None]
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
        ax.plot([low, high], [y, y], color=INK, linewidth=1.6, zorder=3)
    ax.set_yticks(range(len(recalls)), [f"{name} ({n})" for name, n, *_ in recalls], fontsize=10)
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
    """Training loss of each fold, and beside it the scores that were measured while training.

    Parameters
    ----------
    losses : mapping of fold to Curve
    scores : mapping of a name such as ``val_war`` to curves by fold
        Empty where nothing was measured before the end.
    chosen : mapping of fold to the epoch whose weights are reported
    """
    panels = 1 + bool(scores)
    figure = _figure(5.6 * panels + 1.2, 3.9)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for i, (fold, curve) in enumerate(losses.items()):
        axes[0].plot(
            curve.epochs,
            curve.values,
            color=_FOLDS[i % len(_FOLDS)],
            linewidth=1.6,
            label=f"fold {fold}",
        )
    axes[0].set_ylabel("training loss", fontsize=10.5)
    for name, curves in scores.items():
        for i, (fold, curve) in enumerate(curves.items()):
            colour = _FOLDS[list(losses).index(fold) % len(_FOLDS)] if fold in losses else _FOLDS[i]
            axes[1].plot(
                curve.epochs,
                curve.values,
                color=colour,
                linewidth=1.6,
                linestyle="-" if name.endswith("war") else (0, (4, 2)),
            )
            at = [
                (e, v)
                for e, v in zip(curve.epochs, curve.values, strict=True)
                if abs(e - chosen.get(fold, -1)) < 0.01
            ]
            axes[1].plot(
                *zip(*at, strict=True), "o", color=colour, markersize=6
            ) if at and name.endswith("war") else None
    if scores:
        where = (
            "validation part"
            if any(n.startswith("val") for n in scores)
            else "test fold (optimistic)"
        )
        axes[1].set_ylabel(f"percent on the {where}", fontsize=10.5)
        axes[1].set_title("line WAR, dashes UAR, dot the chosen epoch", fontsize=10, color=FAINT)
    for ax in axes:
        ax.set_xlabel("epoch", fontsize=10.5)
        ax.set_xlim(left=0)
        _clean(ax, "y")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=10
    )
    return figure


def differences_figure(rows: Sequence[tuple[str, Difference]], scores: int) -> Figure:
    """Differences with their 95 % intervals around zero; the first ``scores`` rows are UAR and WAR, the others classes."""
    figure = _figure(7.0, 0.42 * len(rows) + 1.1)
    ax = figure.subplots()
    ax.axvline(0, color=INK, linewidth=1)
    for y, (_, d) in enumerate(rows):
        colour = (UAR, WAR)[y % 2] if y < scores else "#555555"
        ax.plot(
            [d.low, d.high],
            [y, y],
            color=colour,
            linewidth=2.4 if y < scores else 1.6,
            solid_capstyle="butt",
        )
        look: dict[str, Any] = {
            "markerfacecolor": colour if d.certain else "white",
            "markeredgecolor": colour,
        }
        ax.plot(d.value, y, "o", markersize=8 if y < scores else 6.5, markeredgewidth=1.6, **look)
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
