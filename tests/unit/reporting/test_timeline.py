from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text

from dfer_dist.data.sources.records import ELEVEN, SEVEN
from dfer_dist.reporting.plots.timeline import Timeline, timeline_figure

PICTURES = [np.full((90, 160, 3), 30 * i, np.uint8) for i in range(8)]


def timeline(
    length: float = 8.0,
    windows: int = 5,
    classes: tuple[str, ...] = SEVEN,
    probabilities: np.ndarray | None = None,
    in_frames: bool = False,
) -> Timeline:
    """A timeline of equal windows; the probabilities are random."""
    if probabilities is None:
        probabilities = np.random.default_rng(0).dirichlet(np.ones(len(classes)), windows)
    width = length / (len(probabilities) + 1)
    starts = np.arange(len(probabilities)) * width
    spans = np.stack([starts, starts + 2 * width], 1)
    if windows == 1:
        spans = np.array([[0.0, length]])
    overall = np.nanmean(probabilities, 0)
    return Timeline("a video", classes, spans, probabilities, overall, length, PICTURES, in_frames)


def strip_colors(figure: Figure) -> np.ndarray:
    """Colors of the most probable classes, float [W, 3]."""
    (mesh,) = figure.axes[1].findobj(QuadMesh)
    colors = mesh.get_array()  # type: ignore[attr-defined]
    return np.asarray(colors)[0]


def test_plot_has_a_line_style_for_each_class() -> None:
    shown = timeline(classes=ELEVEN)
    figure = timeline_figure(shown)
    curves, _, _, legend = figure.axes
    *lines, chance = curves.lines
    assert curves.get_ylim() == (0, 1) and curves.get_xlim() == (0, 8)
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 11
    for c, line in enumerate(lines):
        np.testing.assert_allclose(line.get_ydata(), shown.probabilities[:, c])
        np.testing.assert_allclose(line.get_xdata(), shown.spans.mean(1))
    assert set(chance.get_ydata()) == {1 / 11}
    labels = [text.get_text() for text in legend.get_legend().get_texts()]  # type: ignore[union-attr]
    best = [f"{ELEVEN[c]}  {shown.overall[c]:.2f}" for c in np.argsort(-shown.overall)]
    assert labels == [*best, "chance  0.09"]


def test_strip_fades_by_the_lead_of_the_most_probable_class() -> None:
    leads = np.array([[0.98, 0.01, 0.01], [0.6, 0.3, 0.1], [0.4, 0.39, 0.21], [0.1, 0.8, 0.1]])
    colors = strip_colors(timeline_figure(timeline(probabilities=leads, classes=SEVEN[:3])))
    distance = np.linalg.norm(1 - colors, axis=1)
    assert distance[0] > 2 * distance[1] > 2 * distance[2] > 0
    # the same hue as the curve, and another class has another one
    hues = (1 - colors) / (1 - colors).sum(1, keepdims=True)
    np.testing.assert_allclose(hues[1:3], hues[[0, 0]], atol=1e-6)
    assert np.abs(hues[3] - hues[0]).max() > 0.1


def test_strip_names_classes_where_their_names_fit() -> None:
    p = np.full((40, 7), 0.05)
    p[:, 0] = 0.7
    p[0] = p[0, ::-1]
    figure = timeline_figure(timeline(probabilities=p))
    assert [text.get_text() for text in figure.axes[1].texts] == ["happiness"]
    wide = timeline_figure(timeline(probabilities=p, classes=("快" * 60, *SEVEN[1:])))
    assert not wide.axes[1].texts


def test_windows_without_a_face_break_curves_and_strip() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(7), 6)
    p[2:4] = np.nan
    figure = timeline_figure(timeline(probabilities=p))
    assert all(np.isnan(line.get_ydata()[2:4]).all() for line in figure.axes[0].lines[:7])
    np.testing.assert_allclose(strip_colors(figure)[2:4], 1)
    labels = [text.get_text() for text in figure.axes[3].get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels[-1] == "no face"


@pytest.mark.parametrize(
    ("length", "in_frames", "label", "ticks"),
    [
        (1.0, False, "seconds", ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (60.0, False, "seconds", ["0", "10", "20", "30", "40", "50", "60"]),
        (200.0, False, "minutes:seconds", [f"{t // 60}:{t % 60:02}" for t in range(0, 200, 30)]),
        (7200.0, False, "hours:minutes", ["0:00", "0:15", "0:30", "0:45", "1:00", "1:15", "1:30"]),
        (36000.0, False, "hours:minutes", ["0:00", "2:00", "4:00", "6:00", "8:00", "10:00"]),
        (5, True, "frame", ["0", "1", "2", "3", "4", "5"]),
        (240, True, "frame", ["0", "30", "60", "90", "120", "150", "180", "210", "240"]),
    ],
)
def test_axis_fits_the_length(length: float, in_frames: bool, label: str, ticks: list[str]) -> None:
    axis = timeline_figure(timeline(length, in_frames=in_frames)).axes[2].xaxis
    assert axis.get_label_text() == label
    inside = [t for t in axis.get_majorticklocs() if 0 <= t <= length + 1e-9]
    assert [axis.get_major_formatter()(t) for t in inside][: len(ticks)] == ticks
    assert len(inside) <= 9


def test_long_video_has_means_of_windows() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(7), 7000)
    p[:24] = p[30] = np.nan
    figure = timeline_figure(timeline(7200.0, probabilities=p))
    curves = figure.axes[0]
    assert len(curves.lines[0].get_xdata()) == len(strip_colors(figure)) == 292
    assert curves.get_ylabel() == "probability, means of 24 windows"
    first, second = curves.lines[3].get_ydata()[:2]
    assert np.isnan(first) and second == pytest.approx(np.nanmean(p[24:48, 3]))


def test_thumbnails_are_under_their_time_and_keep_their_shape() -> None:
    figure = timeline_figure(timeline(probabilities=np.full((9, 7), 1 / 7)))
    figure.draw_without_rendering()
    pictures = figure.axes[2]
    for i, image in enumerate(pictures.images):
        left, right, bottom, top = image.get_extent()
        assert (left + right) / 2 == pytest.approx(i + 0.5)
        box = pictures.transData.transform([(left, bottom), (right, top)])
        width, height = box[1] - box[0]
        assert width / height == pytest.approx(160 / 90, rel=0.1)
        assert np.array_equal(image.get_array(), PICTURES[i])


def test_single_window_is_drawn_as_bars() -> None:
    shown = timeline(2.0, 1)
    bars, pictures = timeline_figure(shown).axes
    order = np.argsort(-shown.overall)
    assert [label.get_text() for label in bars.get_yticklabels()] == [SEVEN[c] for c in order]
    widths = [bar.get_width() for bar in bars.patches]
    np.testing.assert_allclose(widths, shown.overall[order])
    assert "chance, 0.14" in bars.get_xlabel() and len(pictures.images) == 8


def test_image_is_next_to_its_bars() -> None:
    shown = replace(timeline(0.04, 1), thumbnails=PICTURES[3:4])
    _, picture = timeline_figure(shown).axes
    assert np.array_equal(picture.images[0].get_array(), PICTURES[3])
    assert not picture.axison


@pytest.mark.filterwarnings("ignore:Glyph")
def test_long_names_stay_inside_the_figure() -> None:
    names = (*(f"an expression with a very long name, number {i}" for i in range(6)), "长" * 30)
    figure = timeline_figure(timeline(classes=names))
    figure.draw_without_rendering()
    width = figure.bbox.width
    for text in figure.findobj(Text):
        assert text.get_window_extent().x1 <= width + 1, text.get_text()
    curves = figure.axes[0].get_window_extent()
    assert curves.width > 0.6 * width
