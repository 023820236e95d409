"""Plots of a report, and the pictures of a fold.

Only Matplotlib's object interface: no window system, no global state.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from warnings import filterwarnings

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from dfer_dist.data.folds.overlay import validation_name
from dfer_dist.reporting.wording import PROTOCOLS, heading, tested_text, warnings
from dfer_dist.runs.endpoint import NO_CLASS, own_classes
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import FoldResult
from dfer_dist.runs.summary import Summary, UarWarSpread
from dfer_dist.utils.files import atomic_path

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
_CELL = 0.55  # inches of a cell of the confusion matrix
_BAR = 0.4  # width of a bar; a pair and the space around it are one wide
_SCORES_WIDTH = 5.2  # inches: on a phone its text is still read
EMPTY: dict[str, Any] = {
    "facecolor": "#f4f4f4",
    "edgecolor": "#c0c0c0",
    "hatch": "//",
    "linewidth": 0,
}
_FONT = "DejaVu Sans"  # Matplotlib's own
_NO_FONT = "Last Resort"  # one of a box for every letter
_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
_DASHES = (0, (5, 3))


def new_figure(width: float, height: float, dpi: int = DPI) -> Figure:
    """Return an empty figure of a size in inches."""
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG without metadata: the same figure gives the same bytes."""
    _lay_out(figure, FigureCanvasAgg(figure))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi="figure", metadata={"Software": None})


def data_uri(figure: Figure) -> str:
    """Return a figure as SVG in a ``data:`` URI; the same figure gives the same bytes."""
    _lay_out(figure, FigureCanvasSVG(figure))
    out = io.BytesIO()
    metadata = {"Date": None, "Creator": None}
    with rc_context({"svg.hashsalt": "dfer", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata=metadata, transparent=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}"


def _lay_out(figure: Figure, canvas: FigureCanvasBase) -> None:
    """Lay a figure out as ``savefig`` would, without drawing it for that.

    Texts have names of files and classes, of any script, and dollar signs in them are no formulas.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        if fonts := _fonts_for(frozenset(text.get_text())):
            text.set_fontfamily([_FONT, *fonts])
    # the title, and what is below all panels: cut off if they are longer than the picture
    for text in figure.texts:
        # Matplotlib measures what is between dollar signs as a formula
        text.set_wrap("$" not in text.get_text())
    filterwarnings("ignore", "Glyph .* missing from font")
    engine = figure.get_layout_engine()
    assert engine is not None
    dpi, figure.dpi = figure.dpi, canvas.fixed_dpi or figure.dpi
    engine.execute(figure)
    figure.dpi = dpi
    figure.set_layout_engine(None)


@cache
def _fonts_for(letters: frozenset[str]) -> list[str]:
    """Return installed fonts with the letters that Matplotlib's own lacks, such as Chinese ones."""
    missing = {ord(letter) for letter in letters if letter.isprintable()}
    missing -= _letters_of(fontManager.findfont(_FONT))
    names = []
    for font in fontManager.ttflist:
        if not missing:
            break
        found = missing & _letters_of(font.fname)
        if found and not font.name.startswith(_NO_FONT):
            names.append(font.name)
            missing -= found
    return names


@cache
def _letters_of(file: str) -> frozenset[int]:
    """Return the letters that a font file has; none if it is damaged."""
    with suppress(OSError, RuntimeError):
        return frozenset(get_font(file).get_charmap())
    return frozenset()


def confusion_png(run: str, result: FoldResult, path: Path) -> None:
    """Draw the confusion matrix of a fold of the run named ``run`` into the folder of the fold."""
    tested = tested_text(validation_name(RunDir(path.parent.parent).folds))
    protocol = PROTOCOLS[result.selection].replace("test fold", tested)
    title = (
        f"{run} on {result.dataset}, fold {result.fold}: UAR {result.uar:.2f} %, "
        f"WAR {result.war:.2f} %, {result.n} clips\n{protocol}"
    )
    save(confusion_figure(result.confusion, result.classes, title), path)


def summary_figure(name: str, summary: Summary) -> Figure:
    """Draw the scores of each fold of the run ``name`` next to the pooled confusion matrix."""
    pooled, finished = summary.pooled, len(summary.folds)
    count = finished + len(summary.missing)
    side = matrix_size(pooled.classes)
    height = max(matrix_size(own_classes(pooled.classes)) + 2.2, _scores_height(summary) + 1.2)
    figure = new_figure(_SCORES_WIDTH + side + 2.0, height)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04))
    figure.suptitle(heading(name, summary), fontsize=13, fontweight="bold", color=INK)
    panels = figure.subplots(1, 2, width_ratios=[_SCORES_WIDTH, side + 1.4])
    _draw_scores(panels[0], summary)
    # Above the legend.
    panels[0].set_title(f"Scores of each {tested_text(summary.validation)}", fontsize=12, pad=48)
    matrix_title = f"Pooled confusion, {pooled.n} clips of {finished} of {count} folds"
    _draw_confusion(panels[1], pooled.confusion, pooled.classes, matrix_title)
    for warning in warnings(summary):
        figure.supxlabel(warning, fontsize=11, fontweight="bold", color=ALERT)
    return figure


def scores_figure(summary: Summary) -> Figure:
    """Draw the scores of each fold and their mean."""
    figure = new_figure(_SCORES_WIDTH, _scores_height(summary))
    _draw_scores(figure.subplots(), summary)
    return figure


def _scores_height(summary: Summary) -> float:
    """Return the height in inches of the scores: a row for each pair of bars, legend and axis."""
    rows = len(summary.folds) + len(summary.missing) + 1 + bool(summary.shuffled)
    return 0.44 * rows + 1.3


def confusion_figure(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> Figure:
    """Draw a confusion matrix alone."""
    height = matrix_size(own_classes(classes))
    figure = new_figure(matrix_size(classes) + 1.8, height + 1.9)
    _draw_confusion(figure.subplots(), confusion, classes, title)
    return figure


def _draw_scores(ax: Axes, summary: Summary) -> None:
    """Draw bars of UAR and WAR for each fold and for their mean.

    The mean has its 95 % interval. Shuffled frames and the majority class are baselines.
    """
    results = {r.fold: r for r in summary.folds}
    folds = sorted([*results, *summary.missing])
    names = [f"fold {k}" for k in folds] + ["mean"]
    for y, k in enumerate(folds):
        if k in results:
            _draw_pair(ax, y, (results[k].uar, results[k].war))
        else:
            _draw_missing(ax, y)
    ax.axhline(len(folds) - 0.5, color=FAINT, linewidth=0.8)
    for spread, color in ((summary.uar, UAR), (summary.war, WAR)):
        ax.axvspan(*spread.ci95, color=color, alpha=0.22, linewidth=0, zorder=0.5)
        ax.axvline(spread.mean, color=color, linewidth=1.2, zorder=0.6)
    interval = _draw_mean(ax, len(folds), summary)
    if summary.shuffled:
        names.append("frames\nshuffled")
        _draw_mean(ax, len(folds) + 1, summary.shuffled, faded=True)
    ax.axvline(summary.majority.war, color=INK, linestyle=_DASHES, linewidth=1.4, zorder=5)
    _scores_legend(ax, summary, interval)
    ax.set_yticks(range(len(names)), names, fontsize=10)
    ax.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6), xticks=range(0, 101, 20))
    ax.set_xlabel("percent", fontsize=10)
    ax.tick_params(length=0)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_missing(ax: Axes, y: float) -> None:
    ax.barh(y, 100, 2 * _BAR, zorder=0.1, **EMPTY | {"edgecolor": "#d5d5d5"})
    style: dict[str, Any] = {"fontsize": 10, "fontweight": "bold", "bbox": _BOX}
    ax.text(1.5, y, "missing", va="center", color=ALERT, **style)


def _scores_legend(ax: Axes, summary: Summary, interval: ErrorbarContainer) -> None:
    majority = summary.majority
    label = f"WAR of always “{majority.class_name}” ({majority.war:.1f})"
    handles = [
        Patch(color=UAR, label="UAR"),
        Patch(color=WAR, label="WAR"),
        interval,
        Line2D([], [], color=INK, linestyle=_DASHES, label=label),
    ]
    style: dict[str, Any] = {"ncols": 2, "frameon": False, "fontsize": 9}
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.45, 1.0), **style)


def _draw_confusion(
    ax: Axes, confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> None:
    """Draw percents of each row over the numbers of clips; the row of an absent class is grey.

    What is no class of the set (:data:`NO_CLASS`) has no row.
    """
    counts = np.asarray(confusion, dtype=np.int64)[[c not in NO_CLASS for c in classes]]
    support = counts.sum(axis=1, keepdims=True)
    percent = np.divide(
        100.0 * counts, support, out=np.full(counts.shape, np.nan), where=support > 0
    )
    colors = colormaps["Blues"].with_extremes(bad="#eeeeee")
    ax.imshow(np.ma.masked_invalid(percent), cmap=colors, vmin=0, vmax=100)
    for (i, j), share in np.ndenumerate(percent):
        _draw_cell(ax, i, j, share, int(counts[i, j]))
    ax.set_title(title, fontsize=12)
    label_matrix(ax, classes, support[:, 0].tolist(), "percent of the row, clips below")


def label_matrix(ax: Axes, classes: Sequence[str], support: Sequence[int], cells: str) -> None:
    """Name rows and columns of a matrix of truth and prediction, and what its cells are.

    There is a row for each number in ``support``, of the first classes.
    """
    style: dict[str, Any] = {"ha": "right", "rotation_mode": "anchor", "fontsize": 10}
    ax.set_xticks(range(len(classes)), classes, rotation=40, **style)
    rows = [c if n else f"{c}\n(absent)" for c, n in zip(classes, support, strict=False)]
    ax.set_yticks(range(len(rows)), rows, fontsize=10)
    ax.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.2)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(f"predicted ({cells})", fontsize=10)
    ax.set_ylabel("truth", fontsize=10)


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
        # Inside the axes always: without measuring it.
        "in_layout": False,
        "annotation_clip": False,
    }
    weight = "bold" if i == j else None
    ax.annotate(f"{percent:.0f}", (j, i), (0, 5), fontsize=11, fontweight=weight, **style)
    ax.annotate(f"{count}", (j, i), (0, -10), fontsize=7.5, **style)


def _draw_pair(ax: Axes, y: float, widths: tuple[float, float], faded: bool = False) -> None:
    """Draw two bars with values at the foot, clear of intervals and mean lines."""
    for dy, width, color in ((-_BAR / 2, widths[0], UAR), (_BAR / 2, widths[1], WAR)):
        bar: dict[str, Any] = {"color": color}
        label: dict[str, Any] = {"va": "center_baseline", "fontsize": 8.5, "fontweight": "bold"}
        label["color"] = "white" if color == UAR and width > 10 else INK
        if faded:
            bar = {"color": "white", "edgecolor": color, "hatch": "////"}
            label |= {"color": INK, "bbox": _BOX}
        ax.barh(y + dy, width, _BAR * 0.94, zorder=2, **bar)
        ax.text(1.5, y + dy, f"{width:.1f}", zorder=6, **label)


def _draw_mean(
    ax: Axes, y: float, part: Summary | UarWarSpread, faded: bool = False
) -> ErrorbarContainer:
    _draw_pair(ax, y, (part.uar.mean, part.war.mean), faded)
    low, high = np.array([part.uar.ci95, part.war.ci95]).T
    return ax.errorbar(
        (low + high) / 2,
        [y - _BAR / 2, y + _BAR / 2],
        xerr=(high - low) / 2,
        fmt="none",
        ecolor=INK,
        elinewidth=1.5,
        capsize=3,
        zorder=4,
        label="mean, 95 % interval (also the band)",
    )


def matrix_size(classes: Sequence[str]) -> float:
    """Return the side of a confusion matrix in inches."""
    return max(3.6, _CELL * len(classes))
