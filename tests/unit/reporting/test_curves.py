"""The curves of a fold: loss and scores over epochs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from dfer_dist.reporting.history import Curve, loss_curve
from dfer_dist.reporting.plots.page import curves_figure, curves_png
from dfer_dist.reporting.plots.scores import INK, UAR, WAR
from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import FoldResult
from tests.helpers.made_runs import make_fold

RATES = {"lr_prompt": 1e-3, "lr_temporal": 1e-3}


@pytest.fixture
def fold(tmp_path: Path) -> FoldDir:
    """Return fold 1 of the run lora, of 10 epochs of 6 steps."""
    return FoldDir(make_fold(tmp_path / "lora", 1, epoch=10, step=60))


def draw(fold: FoldDir, losses: list[float], scores: dict[int, float]) -> list[Axes]:
    """Draw a log whose test WAR and UAR are equal; return the panels."""
    lines: list[dict[str, Any]] = [
        {"step": i, "loss": loss} | RATES for i, loss in enumerate(losses, 1)
    ]
    lines += [{"step": s, "test_war": x, "test_uar": x} for s, x in scores.items()]
    fold.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return curves_png("lora", FoldResult.read(fold.result), fold).axes


def check_both_are_seen(wide: Line2D, dashed: Line2D) -> None:
    assert wide.get_linewidth() > 2 * dashed.get_linewidth()
    assert wide.get_zorder() < dashed.get_zorder()


@pytest.mark.parametrize("per_epoch", [1, 10, 40])
def test_mean_falls_where_the_loss_falls(per_epoch: int) -> None:
    # warm-up: the loss rises up to step 30 and falls from there
    steps = np.arange(1, 201)
    losses = np.interp(steps, [1, 30, 200], [1, 3, 0])
    lines = [{"step": int(s), "loss": float(x)} for s, x in zip(steps, losses, strict=True)]
    epochs, means = loss_curve(lines, per_epoch)
    assert len(means) < 70
    falling = [mean for x, mean in zip(epochs, means, strict=True) if x * per_epoch >= 30]
    assert all(np.diff(falling) < 0)
    # a mean over a straight part is on the loss
    straight = [(x, mean) for x, mean in zip(epochs, means, strict=True) if x * per_epoch > 60]
    assert straight
    for x, mean in straight:
        assert mean == pytest.approx(np.interp(x * per_epoch, steps, losses))


def test_curves_of_a_fold_have_no_panel_of_one_dot_or_of_learning_rates(fold: FoldDir) -> None:
    (panel,) = draw(fold, [2.0 / i for i in range(1, 61)], {60: 70.0})
    assert panel.get_ylabel() == "training loss"
    mean, each = panel.get_lines()
    assert (len(mean.get_xdata()), len(each.get_xdata())) == (40, 60)
    result = FoldResult.read(fold.result)
    title = f"lora on DFEW, fold 1: UAR {result.uar:.2f} %, WAR {result.war:.2f} %"
    assert panel.get_figure(root=True).get_suptitle() == title


def test_equal_scores_are_both_seen_in_the_colors_of_other_plots(fold: FoldDir) -> None:
    loss, scores = draw(fold, [2.0, 1.0], {6: 60.0, 60: 70.0})
    war, dot, uar = scores.get_lines()
    assert war.get_ydata().tolist() == uar.get_ydata().tolist() == [60.0, 70.0]
    # the epoch whose weights are reported
    assert (dot.get_xdata().tolist(), dot.get_ydata().tolist()) == ([10.0], [70.0])
    colors = [to_hex(line.get_color()).upper() for line in (loss.get_lines()[0], war, uar)]
    assert colors == [INK, WAR, UAR]
    check_both_are_seen(war, uar)


def test_page_shows_equal_scores_of_several_folds() -> None:
    scored = Curve([1.0, 2.0], [60.0, 70.0])
    curves = {"loss": scored, "step": scored, "val_war": scored, "val_uar": scored}
    figure = curves_figure({1: curves, 2: curves}, {1: 2.0, 2: 1.0})
    war, _, uar, *_ = figure.axes[1].get_lines()
    check_both_are_seen(war, uar)
    assert war.get_color() == uar.get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fold 1", "fold 2"]


def test_curves_file_is_reproducible(fold: FoldDir) -> None:
    draw(fold, [2.0, 1.0], {})
    first = fold.curves.read_bytes()
    draw(fold, [2.0, 1.0], {})
    assert first[:4] == b"\x89PNG"
    assert fold.curves.read_bytes() == first
