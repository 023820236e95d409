"""The plots of a comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfer_dist.reporting.comparison.fairness import same_clips
from dfer_dist.reporting.comparison.paired import Comparison, Paired, compare
from dfer_dist.reporting.history import Curve
from dfer_dist.reporting.plots.compared import (
    confusion_change_figure,
    curves_figure,
    recalls_figure,
)
from dfer_dist.reporting.results import load_run
from dfer_dist.utils.files import read_json, write_json
from tests.helpers.made_runs import CLASSES, make_run


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    runs = [
        make_run(tmp_path / name, (1, 2), 2, history=False, sure=sure)
        for name, sure in (("full", 2.0), ("lora", 1.0))
    ]
    return compare(*map(load_run, runs))


def paired_of(comparison: Comparison) -> Paired:
    assert comparison.paired
    return comparison.paired


def test_matrix_of_changes_is_the_difference_of_the_matrices(comparison: Comparison) -> None:
    paired = paired_of(comparison)
    support = {x.name: x.clips for x in paired.classes}
    figure = confusion_change_figure(paired.changes, CLASSES, support, "t")
    texts = [text.get_text().replace("−", "-") for text in figure.axes[0].texts]
    first, second = (
        np.array(run.summary.pooled.confusion) for run in (comparison.first, comparison.second)
    )
    assert [int(text) for text in texts] == (second - first).ravel().tolist()
    assert figure.axes[0].get_title() == "t"


def test_recalls_are_paired_dots(comparison: Comparison) -> None:
    paired = paired_of(comparison)
    figure = recalls_figure("full", "lora", paired.classes)
    full, lora = figure.axes[0].get_lines()
    assert list(full.get_xdata()) == [x.first for x in paired.classes]
    assert list(lora.get_xdata()) == [x.second for x in paired.classes]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["full", "lora"]


def test_curves_of_runs_share_an_axis() -> None:
    folds = [Curve([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]), Curve([1.0, 2.0], [5.0, 4.0])]
    runs = {
        "full": [{"loss": c, "val_war": c} for c in folds],
        "lora": [{"loss": folds[0]}],
        "none": [{"loss": Curve([], [])}],
    }
    loss, war = curves_figure(runs, "val_war").axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["full", "lora"]
    # two folds and their mean, and one fold and its own
    assert (len(loss.get_lines()), len(war.get_lines())) == (3 + 2, 3)
    mean = loss.get_lines()[2]
    assert list(mean.get_xdata()[[0, -1]]) == [1.0, 2.0]
    assert list(mean.get_ydata()[[0, -1]]) == [4.0, 3.0]
    assert war.get_ylabel() == "val war, percent"


def test_same_clips_needs_equal_folds_data_and_held_out_parts(comparison: Comparison) -> None:
    first, second = comparison.first, comparison.second
    assert same_clips(first, second)
    fold = second.run.fold(2).result
    write_json(fold, read_json(fold) | {"lost_clips": 1})
    assert not same_clips(first, load_run(second.run))
    for run in (first.run, second.run):
        for k in (1, 2):
            path = run.fold(k).result
            write_json(path, read_json(path) | {"lost_clips": 0, "selection": "best_val"})
    assert same_clips(load_run(first.run), load_run(second.run))
    text = second.run.config.read_text()
    second.run.config.write_text(text.replace("val_fraction: 0.1", "val_fraction: 0.2"))
    assert not same_clips(load_run(first.run), load_run(second.run))
