"""Plots of the features of clips: t-SNE by class, with the class texts, and by fold.

van der Maaten & Hinton, "Visualizing Data using t-SNE", JMLR 2008.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from dfer_dist.reporting.plots.scores import CLASS_COLORS, FAINT, INK, new_figure

if TYPE_CHECKING:
    from dfer_dist.evaluation.features import ClipFeatures, Floats

MIN_CLIPS = 10  # of a fold that is drawn
MAX_CLIPS = 1000  # of a plane: 3 s
_PERPLEXITY = 30.0  # van der Maaten & Hinton: 5 to 50
_PANEL, _COLUMNS = 3.0, 3  # inches, panels in a row
_LEGEND = 14  # names next to a panel; more are not written into it
_STAR: dict[str, Any] = {
    "marker": "*",
    "markersize": 13,
    "markeredgecolor": INK,
    "markeredgewidth": 0.8,
}
_MARKERS = "os^DvP"  # of further classes, which repeat the colors


def embed(values: Floats) -> NDArray[np.float32]:
    """Return points in the plane, the same for the same values: float32 [N, D] -> [N, 2].

    scikit-learn compares a point with three times as many as the perplexity; few points have a
    smaller one.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(_PERPLEXITY, (len(values) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
    # sums over several threads would give other points on each machine
    with threadpool_limits(1):
        points: NDArray[np.float32] = tsne.fit_transform(values)
    return points


def center(values: Floats) -> Floats:
    """Return features less their mean, of unit length again: float32 [N, D]."""
    centered = values - values.mean(0)
    lengths = np.linalg.norm(centered, axis=1, keepdims=True)
    found: Floats = centered / np.maximum(lengths, np.finfo(np.float32).tiny)
    return found


def sample(count: int) -> NDArray[np.int64]:
    """Return which of ``count`` clips a picture shows, in their order: at most ``MAX_CLIPS``."""
    chosen = np.random.default_rng(0).permutation(count)[:MAX_CLIPS]
    return np.sort(chosen)


def class_figure(folds: Mapping[int, ClipFeatures]) -> Figure:
    """Draw each fold by itself, in the colors of the true classes; class texts are stars."""
    first = next(iter(folds.values()))
    columns = min(len(folds), _COLUMNS)
    rows = -(-len(folds) // columns)
    legends = -(-(len(first.info.classes) + 1) // (rows * _LEGEND))
    figure = new_figure(columns * _PANEL + 1.8 * legends, rows * _PANEL + 0.2)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(folds) :]:
        ax.axis("off")
    for ax, (fold, features) in zip(axes, folds.items(), strict=False):
        _draw_fold(ax, features)
        ax.set_title(f"fold {fold}", fontsize=10, color=INK)
    handles = [Line2D([], [], **_style(i), label=c) for i, c in enumerate(first.info.classes)]
    if len(first.texts):
        star = _style(0) | _STAR | {"markerfacecolor": "white"}
        handles.append(Line2D([], [], **star, label="class text"))
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "ncols": legends}
    figure.legend(handles=handles, loc="outside right center", **style)
    return figure


def fold_figure(folds: Mapping[int, ClipFeatures]) -> Figure:
    """Draw all folds in one plane, in the colors of the folds."""
    values = np.concatenate([f.values for f in folds.values()])
    numbers = np.concatenate([np.full(len(f.keys), fold) for fold, f in folds.items()])
    shown = sample(len(values))
    points, numbers = embed(values[shown]), numbers[shown]
    figure = new_figure(_PANEL + 2.2, _PANEL + 0.6)
    ax = figure.subplots()
    _frame(ax)
    styles = {fold: _style(i) for i, fold in enumerate(folds)}
    # in one pass: no fold covers another
    shades = [styles[n]["color"] for n in numbers]
    ax.scatter(points[:, 0], points[:, 1], s=9, c=shades, alpha=0.7, linewidths=0)
    handles = [Line2D([], [], **style, label=f"fold {fold}") for fold, style in styles.items()]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)
    return figure


def _draw_fold(ax: Axes, features: ClipFeatures) -> None:
    shown = sample(len(features.keys))
    values, labels = center(features.values)[shown], features.labels[shown]
    if len(features.texts):
        values = np.concatenate([values, center(features.texts)])
    points = embed(values)
    for label in np.unique(labels):
        own = points[: len(labels)][labels == label]
        ax.plot(*own.T, **_style(label) | {"markersize": 3.2}, alpha=0.75)
    for label, point in enumerate(points[len(labels) :]):
        ax.plot(*point, **_style(label) | _STAR, zorder=4)
        if len(features.texts) > _LEGEND:
            continue
        name = features.info.classes[label]
        text = ax.annotate(name, point, (0, 7), textcoords="offset points", fontsize=7.5)
        text.set(ha="center", path_effects=[withStroke(linewidth=2, foreground="white")])
    _frame(ax)


def _frame(ax: Axes) -> None:
    """Frame a plane, whose axes have no meaning."""
    ax.set(xticks=[], yticks=[])
    ax.margins(0.12)
    ax.spines[:].set_color(FAINT)


def _style(label: int) -> dict[str, Any]:
    repeats, color = divmod(label, len(CLASS_COLORS))
    return {
        "linestyle": "",
        "color": CLASS_COLORS[color],
        "marker": _MARKERS[repeats % len(_MARKERS)],
        "markeredgewidth": 0,
    }
