"""The plot of a video: probabilities over time, the most probable class, and some of its frames."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator

from dfer_dist.reporting.plots.scores import CLASS_COLORS, EMPTY, FAINT, INK, new_figure

_COLORS = (*CLASS_COLORS, "#5D3A9B", "#7F7F7F", "#8C510A")
_LINES = ("-", (0, (4, 2)))
_WIDE_LETTER = "\u2e80"  # the first that is as wide as two Latin ones, in Chinese and others
_CURVES = 7.2  # inches, width of the curves
_LEGEND = 2.4  # next to them
_PICTURES = 0.66  # height of the thumbnails
_MAX_POINTS = 300  # of a curve and of the strip; more windows are averaged
_MAX_TICKS = 8
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
_BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
_PALEST = 0.18  # opacity of the strip where two classes are equally probable


@dataclass(frozen=True)
class Timeline:
    """What is drawn of a video.

    Attributes
    ----------
    title : str
    classes : sequence of C str
    spans : float [W, 2]
        Begin and end of each window, in seconds or frames.
    probabilities : float [W, C]
        NaN for a window without a prediction, where curves break.
    overall : float [C]
        Of the whole video; the legend is in its order.
    length : float
        Of the video, in seconds or frames.
    thumbnails : sequence of uint8 [H, W, 3]
        Frames from the middles of as many equal parts of the video; one of an image.
    in_frames : bool
        Whether the time is counted in frames.
    """

    title: str
    classes: Sequence[str]
    spans: np.ndarray
    probabilities: np.ndarray
    overall: np.ndarray
    length: float
    thumbnails: Sequence[np.ndarray]
    in_frames: bool = False

    @property
    def order(self) -> list[int]:
        """The classes from the most to the least probable one of the whole video."""
        return [int(c) for c in np.argsort(-self.overall, kind="stable")]

    @cached_property
    def edges(self) -> np.ndarray:
        """The times at which one window's middle stops being the nearest, float [W + 1]."""
        times = self.spans.mean(1)
        return np.concatenate([[0.0], (times[1:] + times[:-1]) / 2, [self.length]])


def timeline_figure(timeline: Timeline) -> Figure:
    """Draw the probabilities of a video over time; as bars, if it is a single window.

    Curves have the chance of a guess as a dotted line. The strip below them has the most probable
    class of each window, the paler the less it leads, and frames of the video are below that.
    """
    if len(timeline.spans) == 1:
        return _single_figure(timeline)
    heights, widths = [3.4, 0.36, _PICTURES], [_CURVES, _LEGEND]
    figure = _new_figure(timeline, sum(widths), sum(heights))
    grid = figure.add_gridspec(3, 2, height_ratios=heights, width_ratios=widths)
    above = figure.add_subplot(grid[0, 0])
    strip, pictures = (figure.add_subplot(grid[row, 0], sharex=above) for row in (1, 2))
    count = -(-len(timeline.spans) // _MAX_POINTS)
    shown = _average(timeline, count)
    _draw_curves(above, shown)
    _draw_strip(strip, shown)
    if count > 1:
        above.set_ylabel(f"probability, means of {count} windows", fontsize=11)
    _draw_thumbnails(pictures, timeline)
    for ax in (above, strip):
        ax.tick_params(axis="x", length=0, labelbottom=False)
    _draw_legend(figure.add_subplot(grid[:, 1]), shown)
    return figure


def _single_figure(timeline: Timeline) -> Figure:
    """Draw a single window: bars, and its frames below them, or an image next to them."""
    if len(timeline.thumbnails) == 1:
        figure = _new_figure(timeline, _CURVES + _LEGEND, 3.0)
        bars, picture = figure.subplots(1, 2, width_ratios=[_CURVES, _LEGEND])
        picture.imshow(timeline.thumbnails[0])
        picture.axis("off")
    else:
        figure = _new_figure(timeline, _CURVES, 3.0 + _PICTURES)
        bars, pictures = figure.subplots(2, 1, height_ratios=[3.0, _PICTURES])
        _draw_thumbnails(pictures, timeline)
    _draw_bars(bars, timeline)
    return figure


def _new_figure(timeline: Timeline, width: float, height: float) -> Figure:
    """Return a figure with the title; width and height are those of its panels, in inches."""
    figure = new_figure(width + 0.6, height + 1.2)
    title = textwrap.fill(timeline.title, int(10 * width))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    return figure


def _style(c: int) -> dict[str, Any]:
    return {"color": _COLORS[c % len(_COLORS)], "linestyle": _LINES[c // 8 % 2]}


def _wrap(name: str, width: int = 20) -> str:
    """Break a long name into lines of ``width`` Latin letters."""
    if max(name, default="") >= _WIDE_LETTER:
        width //= 2
    return textwrap.fill(name, width)


def _draw_curves(ax: Axes, timeline: Timeline) -> None:
    """Draw a curve for each class through the middles of the windows."""
    times = timeline.spans.mean(1)
    style: dict[str, Any] = {"linewidth": 1.1, "clip_on": False}
    if len(times) <= 120:
        style["linewidth"] = 1.8
    if len(times) <= 60:
        style |= {"marker": "o", "markersize": 3.5}
    lines = ax.plot(times, timeline.probabilities, **style)
    for c, line in enumerate(lines):
        line.set(**_style(c))
    for begin, end, top in _runs(timeline):
        if top is None:
            ax.axvspan(begin, end, facecolor="#f4f4f4", linewidth=0, zorder=0)
    ax.axhline(1 / len(timeline.classes), color=FAINT, linewidth=1, linestyle=(0, (1, 2)))
    ax.set(xlim=(0, timeline.length), ylim=(0, 1), yticks=np.linspace(0, 1, 6))
    ax.set_ylabel("probability", fontsize=11)
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)


def _average(timeline: Timeline, count: int) -> Timeline:
    """Average every ``count`` windows; those without a prediction do not count."""
    starts = range(0, len(timeline.spans), count)
    spans = [timeline.spans[i : i + count].mean(0) for i in starts]
    probabilities = []
    for i in starts:
        values = timeline.probabilities[i : i + count]
        predicted = values[~np.isnan(values).any(1)]
        # a mean of nothing is NaN
        probabilities.append(predicted.sum(0) / (len(predicted) or np.nan))
    return replace(timeline, spans=np.stack(spans), probabilities=np.stack(probabilities))


def _runs(timeline: Timeline) -> Iterator[tuple[float, float, int | None]]:
    """Yield begin, end and most probable class of neighbouring windows that have the same one."""
    first = 0
    for top, same in groupby(map(_top, timeline.probabilities)):
        last = first + len(list(same))
        yield float(timeline.edges[first]), float(timeline.edges[last]), top
        first = last


def _top(p: np.ndarray) -> int | None:
    """Return the most probable class of a window, None without a prediction."""
    if np.isnan(p).any():
        return None
    return int(p.argmax())


def _draw_strip(ax: Axes, timeline: Timeline) -> None:
    """Color the most probable class around each time; name it where its name fits."""
    colors = np.array([_strip_color(p) for p in timeline.probabilities])
    ax.pcolormesh(timeline.edges, [0, 1], colors[None])
    for begin, end, top in _runs(timeline):
        if top is None:
            ax.axvspan(begin, end, **EMPTY)
            continue
        name = timeline.classes[top]
        wide = 0.06 + 0.08 * len(name) + 0.06 * sum(letter >= _WIDE_LETTER for letter in name)
        if wide > (end - begin) / timeline.length * _CURVES:
            continue
        inside = (timeline.edges[:-1] >= begin) & (timeline.edges[1:] <= end)
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "color": "white"}
        if colors[inside].mean(0) @ _BRIGHTNESS > 0.55:
            style["color"] = INK
        ax.text((begin + end) / 2, 0.47, name, in_layout=False, **style)
    ax.set(ylim=(0, 1), yticks=[])
    ax.set_ylabel("top", rotation=0, ha="right", va="center", fontsize=10)
    ax.spines[:].set_visible(False)


def _strip_color(p: np.ndarray) -> np.ndarray:
    """Return the color of the most probable class on white, the paler the less it leads."""
    top = _top(p)
    if top is None:
        return np.ones(3)
    margin = p[top] - np.delete(p, top).max(initial=0.0)
    opacity = _PALEST + (1 - _PALEST) * float(margin)
    return 1 - opacity * (1 - np.array(to_rgb(_style(top)["color"])))


def _draw_thumbnails(ax: Axes, timeline: Timeline) -> None:
    """Draw frames side by side, each in the middle of its part of the time."""
    tile = timeline.length / len(timeline.thumbnails)
    shape = _CURVES / len(timeline.thumbnails) / _PICTURES
    for i, picture in enumerate(timeline.thumbnails):
        ratio = picture.shape[1] / picture.shape[0] / shape
        width, height = min(ratio, 1) * 0.97 * tile, min(1 / ratio, 1) * 0.97
        left, bottom = (i + 0.5) * tile - width / 2, (1 - height) / 2
        ax.imshow(picture, extent=(left, left + width, bottom, bottom + height), aspect="auto")
    ax.set(xlim=(0, timeline.length), ylim=(0, 1), yticks=[])
    ax.spines[:].set_visible(False)
    _label_time(ax, timeline)


def _label_time(ax: Axes, timeline: Timeline) -> None:
    """Label the time in the unit that fits the length of the video."""
    length = timeline.length
    hours = math.ceil(length / _MAX_TICKS / 3600)
    steps = [*(s for s in _STEPS if length <= _MAX_TICKS * s), 3600 * hours]
    step, unit, formatted = steps[0], "seconds", _format_number
    if timeline.in_frames:
        unit, step = "frame", max(round(step), 1)
    elif length >= 3600:
        unit, formatted = "hours:minutes", _format_minutes
    elif length >= 120:
        unit, formatted = "minutes:seconds", _format_seconds
    ax.xaxis.set_major_locator(MultipleLocator(step))
    ax.xaxis.set_major_formatter(FuncFormatter(formatted))
    ax.set_xlabel(unit, fontsize=11)


def _format_number(value: float, _: Any) -> str:
    return f"{value:g}"


def _format_seconds(value: float, _: Any) -> str:
    return f"{value // 60:.0f}:{value % 60:02.0f}"


def _format_minutes(value: float, _: Any) -> str:
    return _format_seconds(value / 60, _)


def _draw_bars(ax: Axes, timeline: Timeline) -> None:
    """Draw the probabilities of a single window as bars, the most probable class on top."""
    order, places = timeline.order, range(len(timeline.classes))
    colors = [_style(c)["color"] for c in order]
    ax.barh(places, timeline.overall[order], 0.7, color=colors)
    for place, c in zip(places, order, strict=True):
        ax.text(timeline.overall[c] + 0.01, place, f"{timeline.overall[c]:.2f}", va="center")
    ax.axvline(1 / len(order), color=FAINT, linewidth=1, linestyle=(0, (1, 2)))
    ax.set_yticks(places, [_wrap(timeline.classes[c], 30) for c in order], fontsize=10)
    ax.set(xlim=(0, 1.08), xticks=np.linspace(0, 1, 6), ylim=(len(order) - 0.5, -0.5))
    ax.set_xlabel(f"probability (dotted: chance, {1 / len(order):.2f})", fontsize=11)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_legend(ax: Axes, timeline: Timeline) -> None:
    labels = {c: f"{_wrap(timeline.classes[c])}  {timeline.overall[c]:.2f}" for c in timeline.order}
    handles: list[Any] = [
        Line2D([], [], linewidth=2.5, label=label, **_style(c)) for c, label in labels.items()
    ]
    chance = f"chance  {1 / len(timeline.classes):.2f}"
    handles.append(Line2D([], [], color=FAINT, linewidth=1, linestyle=(0, (1, 2)), label=chance))
    if np.isnan(timeline.probabilities).any():
        handles.append(Patch(label="no face", **EMPTY))
    legend = ax.legend(
        handles=handles,
        title="whole video",
        alignment="left",
        loc="upper left",
        borderaxespad=0,
        frameon=False,
        fontsize=10,
    )
    legend.get_title().set(fontsize=10, fontweight="bold", color=INK)
    ax.axis("off")
