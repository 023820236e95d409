"""The curves of a fold: loss and scores over steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from dfer_dist.reporting.history import Curve, smooth
from dfer_dist.reporting.page_plots import curves_figure, curves_png, fold_figure
from dfer_dist.reporting.plots import UAR, WAR
from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import FoldResult
from tests.helpers.made_runs import make_fold

RATES = {"lr_prompt": 1e-3, "lr_temporal": 1e-3}


@pytest.fixture
def result(tmp_path: Path) -> FoldResult:
    return FoldResult.read(make_fold(tmp_path / "lora", 1) / "result.json")


def training(losses: list[float], scores: dict[int, float]) -> list[dict[str, Any]]:
    """Return lines of a log whose test WAR and UAR are equal."""
    lines: list[dict[str, Any]] = [
        {"step": i, "loss": loss} | RATES for i, loss in enumerate(losses, 1)
    ]
    return lines + [{"step": s, "test_war": x, "test_uar": x} for s, x in scores.items()]


def curves_by_label(ax: Axes) -> dict[str, Any]:
    return {str(line.get_label()): line for line in ax.get_lines()}


def test_mean_of_a_falling_loss_falls_from_its_peak() -> None:
    # warm-up: the loss rises to step 30 and falls from there
    steps = [float(i) for i in range(1, 201)]
    values = np.interp(steps, [1, 30, 59, 200], [1, 3, 1, 0]).tolist()
    curve = Curve(steps, values)
    mean = smooth(curve, 10)
    assert mean.x[np.argmax(mean.values)] == 30
    falling = [v for x, v in zip(*mean, strict=True) if x >= 30]
    assert all(np.diff(falling) < 0)
    middle = mean.x.index(100.0)
    assert mean.values[middle] == pytest.approx(np.mean(values[89:110]))
    # no end of a single value
    assert (mean.x[0], mean.x[-1]) == (6.0, 195.0)


def test_curves_of_a_fold_have_no_panel_of_one_dot_and_no_learning_rates(
    result: FoldResult,
) -> None:
    figure = fold_figure("lora", result, training([2.0 / i for i in range(1, 61)], {60: 70.0}))
    (panel,) = figure.axes
    assert panel.get_ylabel() == "training loss"
    assert set(curves_by_label(panel)) == {"mean of 21 steps of the log", "each step of the log"}
    title = f"lora on DFEW, fold 1: UAR {result.uar:.2f} %, WAR {result.war:.2f} %"
    assert figure.get_suptitle() == title


def test_few_losses_are_drawn_once(result: FoldResult) -> None:
    figure = fold_figure("lora", result, training([3.0, 2.0, 1.0], {}))
    assert set(curves_by_label(figure.axes[0])) == {"each step of the log"}


def test_equal_scores_are_both_seen_in_the_colors_of_other_plots(result: FoldResult) -> None:
    figure = fold_figure("lora", result, training([2.0, 1.0], {1: 60.0, 2: 70.0}))
    lines = curves_by_label(figure.axes[1])
    war, uar = lines["test WAR"], lines["test UAR"]
    assert war.get_ydata().tolist() == uar.get_ydata().tolist() == [60.0, 70.0]
    assert (to_hex(war.get_color()), to_hex(uar.get_color())) == (WAR.lower(), UAR.lower())
    # the wide one below, the narrow one above
    assert war.get_linewidth() > 2 * uar.get_linewidth()
    assert war.get_zorder() < uar.get_zorder()


def test_page_shows_both_scores_where_they_are_equal() -> None:
    scored = Curve([1.0, 2.0], [60.0, 70.0])
    scores = {"val_war": {1: scored}, "val_uar": {1: scored}}
    war, _, uar = curves_figure({1: scored}, scores, {1: 2.0}).axes[1].get_lines()
    assert war.get_linewidth() > 2 * uar.get_linewidth()
    assert war.get_zorder() < uar.get_zorder()


def test_curves_file_is_reproducible(result: FoldResult, tmp_path: Path) -> None:
    fold = FoldDir(tmp_path / "lora" / "fold-1")
    curves_png("lora", result, fold)
    first = fold.curves.read_bytes()
    curves_png("lora", result, fold)
    assert first[:4] == b"\x89PNG"
    assert fold.curves.read_bytes() == first
