"""The drawings of a report. Matplotlib's object interface only: no window system, no global state."""

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
# Okabe & Ito's palette, told apart by all common kinds of colour vision
UAR, WAR, ALERT, INK, FAINT = "#0072B2", "#E69F00", "#D55E00", "#222222", "#8a8a8a"
_CELL = 0.6  # inches, a cell of the confusion matrix
_WIDTH = 0.4  # of a bar; a group is one wide
# all eight of the palette, yellow darkened to be seen on white; after them the same again, dashed
_BLANK: dict[str, Any] = {
    "facecolor": "#f4f4f4",
    "edgecolor": "#c0c0c0",
    "hatch": "//",
    "linewidth": 0,
}
_CLASSES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B5A800")
_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}


def save(figure: Figure, path: Path) -> None:
    """Write as PNG, without the name and version of the drawing program: the same figure gives the same bytes."""
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def summary_figure(summary: Mapping[str, Any], title: str, warning: str) -> Figure:
    """Scores of each fold on the left, the pooled confusion matrix on the right.

    Parameters
    ----------
    summary : mapping
        What :func:`dfer_dist.reporting.summary.summarize` returns.
    title : str
        Names the data set and how the epochs were picked.
    warning : str
        A sentence on missing folds, or empty.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    pooled = summary["pooled"]
    groups = len(summary["folds"]) + len(summary["missing"]) + 1 + bool(summary["shuffled"])
    left, side = max(5.0, 1.0 * groups + 1.0), _side(pooled["classes"])
    figure = Figure(
        figsize=(left + side + 2.0, side + 2.2),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04),
    )
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    panels = figure.subplots(1, 2, width_ratios=[left, side + 1.4])
    draw_scores(panels[0], summary)
    clips = f"{pooled['n']} clips of {len(summary['folds'])} of {len(summary['folds']) + len(summary['missing'])} folds"
    draw_confusion(panels[1], pooled["confusion"], pooled["classes"], f"Pooled confusion, {clips}")
    if warning:
        figure.supxlabel(warning, fontsize=11, fontweight="bold", color=ALERT)
    return figure


def confusion_figure(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> Figure:
    """The confusion matrix alone."""
    from matplotlib.figure import Figure

    side = _side(classes)
    figure = Figure(figsize=(side + 1.8, side + 1.9), dpi=DPI, layout="constrained")
    draw_confusion(figure.subplots(), confusion, classes, title)
    return figure


def course_figure(
    title: str,
    spans: np.ndarray,
    probabilities: np.ndarray,
    overall: np.ndarray,
    classes: Sequence[str],
    seconds: float,
) -> Figure:
    """Probabilities of a film over time: a line for each class above, the most probable class of each window below.

    Parameters
    ----------
    spans : float [W, 2]
        Begin and end of each window, seconds. A point stands in the middle of its window.
    probabilities : float [W, C]
        NaN where a window has no prediction: lines break there.
    overall : float [C]
        Of the whole film; the legend is in its order.
    seconds : float
        Of the film.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.6), dpi=DPI, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[9, 1])
    looks = [
        {"color": _CLASSES[c % 8], "linestyle": "-" if c < 8 else (0, (4, 2))}
        for c in range(len(classes))
    ]
    times, curves = spans.mean(1), probabilities
    if len(spans) == 1:
        times, curves = spans[0], probabilities.repeat(2, 0)
    alone = len(spans) > 1 and len(spans) <= 60
    for c, look in enumerate(looks):
        above.plot(
            times,
            curves[:, c],
            linewidth=1.8,
            marker="o" if alone else None,
            markersize=3.5,
            clip_on=False,
            **look,
        )
    _strip(above, below, times if len(spans) > 1 else times[:1], probabilities, seconds)
    _class_legend(above, overall, classes, looks, bool(np.isnan(probabilities).any()))
    above.set(xlim=(0, seconds), ylim=(0, 1), yticks=np.linspace(0, 1, 6))
    above.set_ylabel("probability", fontsize=11)
    above.set_title(title, fontsize=12, color=INK, loc="left")
    above.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    above.tick_params(axis="x", length=0)
    above.spines[["top", "right"]].set_visible(False)
    below.set(ylim=(0, 1), yticks=[])
    below.set_ylabel("top", rotation=0, ha="right", va="center", fontsize=10)
    below.set_xlabel("seconds", fontsize=11)
    below.spines[:].set_visible(False)
    return figure


def _strip(
    above: Axes, below: Axes, times: np.ndarray, probabilities: np.ndarray, seconds: float
) -> None:
    """The most probable class around each time, as a colour; grey where there is no prediction."""
    edges = np.concatenate([[0.0], (times[1:] + times[:-1]) / 2, [seconds]])
    for (left, right), p in zip(pairwise(edges.tolist()), probabilities, strict=True):
        if np.isnan(p).any():
            below.axvspan(left, right, **_BLANK)
            above.axvspan(left, right, facecolor="#f4f4f4", linewidth=0, zorder=0)
        else:
            top = int(p.argmax())
            below.axvspan(
                left, right, facecolor=_CLASSES[top % 8], alpha=1.0 if top < 8 else 0.5, linewidth=0
            )


def _class_legend(
    ax: Axes, overall: np.ndarray, classes: Sequence[str], looks: list[dict[str, Any]], gaps: bool
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    order = np.argsort(-overall, kind="stable")
    handles: list[Any] = [
        Line2D([], [], linewidth=2.5, label=f"{classes[c]}  {overall[c]:.2f}", **looks[c])
        for c in order
    ]
    if gaps:
        handles.append(Patch(label="no face", **_BLANK))
    legend = ax.legend(
        handles=handles,
        title="whole film",
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        frameon=False,
        fontsize=10,
    )
    legend.get_title().set(fontsize=10, fontweight="bold", color=INK)


def draw_scores(ax: Axes, summary: Mapping[str, Any]) -> None:
    """Bars of UAR and WAR for each fold, their mean with its 95 % interval, shuffled frames, and the majority class."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    results = {r["fold"]: r for r in summary["folds"]}
    folds = sorted([*results, *summary["missing"]])
    names = [f"fold {k}" for k in folds] + ["mean"]
    for x, k in enumerate(folds):
        if k in results:
            _pair(ax, x, (results[k]["uar"], results[k]["war"]))
        else:
            ax.bar(
                x,
                100,
                2 * _WIDTH,
                color="#f4f4f4",
                edgecolor="#d5d5d5",
                hatch="//",
                linewidth=0,
                zorder=0.1,
            )
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
    ax.axvline(len(folds) - 0.5, color=FAINT, linewidth=0.8)
    for metric, colour in (("uar", UAR), ("war", WAR)):
        ax.axhspan(*summary[metric]["ci95"], color=colour, alpha=0.22, linewidth=0, zorder=0.5)
        ax.axhline(summary[metric]["mean"], color=colour, linewidth=1.2, zorder=0.6)
    interval = _mean_pair(ax, len(folds), summary, faded=False)
    if summary["shuffled"]:
        names.append("frames\nshuffled")
        _mean_pair(ax, len(folds) + 1, summary["shuffled"], faded=True)
    majority = summary["majority"]
    ax.axhline(majority["war"], color=INK, linestyle=(0, (5, 3)), linewidth=1.4, zorder=5)
    handles = [
        Patch(color=UAR, label="UAR"),
        Patch(color=WAR, label="WAR"),
        interval,
        Line2D(
            [],
            [],
            color=INK,
            linestyle=(0, (5, 3)),
            label=f"WAR of always “{majority['class']}” ({majority['war']:.1f})",
        ),
    ]
    below = -0.5 / _side(
        summary["pooled"]["classes"]
    )  # half an inch under the axis, clear of labels of two lines
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, below),
        ncols=2,
        frameon=False,
        fontsize=10,
    )
    ax.set_xticks(range(len(names)), names, fontsize=11)
    ax.set_yticks(range(0, 101, 20))
    ax.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, 100))
    ax.set_ylabel("percent", fontsize=11)
    ax.set_title("Scores of each test fold", fontsize=12)
    ax.tick_params(length=0)
    ax.spines[["top", "right"]].set_visible(False)


def draw_confusion(
    ax: Axes, confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> None:
    """Row-normalised percent with the number of clips below; the row of a class with no clip is left grey."""
    from matplotlib import colormaps

    counts = np.asarray(confusion, dtype=np.int64)
    support = counts.sum(axis=1, keepdims=True)
    percent = np.divide(
        100.0 * counts, support, out=np.full(counts.shape, np.nan), where=support > 0
    )
    colours = colormaps["Blues"].with_extremes(bad="#eeeeee")
    ax.imshow(np.ma.masked_invalid(percent), cmap=colours, vmin=0, vmax=100)
    for (i, j), share in np.ndenumerate(percent):
        if counts[i, j] == 0:
            ax.text(
                j,
                i,
                "" if np.isnan(share) else "0",
                ha="center",
                va="center",
                color=FAINT,
                fontsize=9,
            )
            continue
        look: dict[str, Any] = {
            "color": "white" if share > 55 else INK,
            "textcoords": "offset points",
            "ha": "center",
        }
        ax.annotate(
            f"{share:.0f}",
            (j, i),
            (0, 5),
            va="center",
            fontsize=11,
            fontweight="bold" if i == j else None,
            **look,
        )
        ax.annotate(f"{counts[i, j]}", (j, i), (0, -10), va="center", fontsize=7.5, **look)
    ax.set_xticks(
        range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor", fontsize=10
    )
    rows = [c if n else f"{c}\n(absent)" for c, n in zip(classes, support[:, 0], strict=True)]
    ax.set_yticks(range(len(classes)), rows, fontsize=10)
    ax.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.2)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("predicted (percent of the row, clips below)", fontsize=11)
    ax.set_ylabel("truth", fontsize=11)
    ax.set_title(title, fontsize=12)


def _pair(ax: Axes, x: float, heights: tuple[float, float], faded: bool = False) -> None:
    """Two bars; their values stand at the foot, where neither intervals nor mean lines pass."""
    for dx, height, colour in ((-_WIDTH / 2, heights[0], UAR), (_WIDTH / 2, heights[1], WAR)):
        look: dict[str, Any] = (
            {"color": "white", "edgecolor": colour, "hatch": "////"} if faded else {"color": colour}
        )
        ax.bar(x + dx, height, _WIDTH * 0.94, zorder=2, **look)
        ink = "white" if colour == UAR and height > 10 and not faded else INK
        box = _BOX if faded else None
        ax.text(
            x + dx,
            2.2,
            f"{height:.1f}",
            ha="center",
            fontsize=9.5,
            fontweight="bold",
            color=ink,
            bbox=box,
            zorder=6,
        )


def _mean_pair(ax: Axes, x: float, part: Mapping[str, Any], faded: bool) -> ErrorbarContainer:
    _pair(ax, x, (part["uar"]["mean"], part["war"]["mean"]), faded)
    low, high = np.array([part["uar"]["ci95"], part["war"]["ci95"]]).T
    places = [x - _WIDTH / 2, x + _WIDTH / 2]
    look: dict[str, Any] = {
        "ecolor": INK,
        "elinewidth": 1.5,
        "capsize": 5,
        "zorder": 4,
        "label": "mean, 95 % interval (also the band)",
    }
    return ax.errorbar(places, (low + high) / 2, yerr=(high - low) / 2, fmt="none", **look)


def _side(classes: Sequence[str]) -> float:
    return max(3.6, _CELL * len(classes))
