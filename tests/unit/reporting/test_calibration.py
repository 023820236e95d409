"""The calibration of a run in its report, against the scores of its predictions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.evaluation.calibration import score_calibration
from dfer_dist.reporting.calibration import calibration_section
from dfer_dist.reporting.plots.calibration import calibration_figure
from dfer_dist.reporting.results import LoadedRun, load_run
from tests.helpers.made_runs import make_run, make_run_with_gaps


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    return load_run(make_run_with_gaps(tmp_path_factory.mktemp("runs")))


def test_table_has_each_fold_its_mean_and_intervals(loaded: LoadedRun) -> None:
    section = calibration_section(loaded)
    assert section
    (table,) = section.tables
    scores = {k: score_calibration(fold.table.outputs) for k, fold in loaded.folds.items()}
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["2"] == ["missing"] * 8
    for k, own in scores.items():
        assert rows[str(k)][0] == f"{own.nll:.3f}"
        assert rows[str(k)][2] == f"{100 * own.ece:.2f}"
        assert rows[str(k)][4] == f"{100 * math.sqrt(max(own.squared_error, 0)):.2f}"
        assert rows[str(k)][6] == f"{100 * own.accuracy_80:.2f}"
    mean = np.mean([own.brier for own in scores.values()])
    assert rows["mean of folds 1, 3, 5"][1] == f"{mean:.3f}"
    low, high = map(float, rows["95 % interval"][1].split(" to "))
    assert low < mean < high
    assert rows["95 % interval"][2] == ""


def test_second_table_is_of_the_scaled_logits(loaded: LoadedRun) -> None:
    assert len(calibration_section(loaded).tables) == 1  # type: ignore[union-attr]
    folds = {
        k: replace(fold, result=replace(fold.result, temperature=1.0 + k))
        for k, fold in loaded.folds.items()
    }
    section = calibration_section(replace(loaded, folds=folds))
    assert section
    table = section.tables[1]
    rows = {row[0]: row[1:] for row in table.rows}
    for k, fold in loaded.folds.items():
        scaled = score_calibration(fold.table.outputs.scaled(1.0 + k))
        assert rows[str(k)][0] == f"{scaled.nll:.3f}"
        assert rows[str(k)][2] == f"{100 * scaled.ece:.2f}"
    assert "2.000 in fold 1, 4.000 in fold 3" in table.notes[0]


def test_only_runs_without_validation_clips_say_that_they_have_no_temperature(
    loaded: LoadedRun, tmp_path: Path
) -> None:
    section = calibration_section(loaded)
    assert section and "which only train.selection=best_val does" in section.tables[0].notes[1]
    other = load_run(make_run(tmp_path / "run", (1,), 1, selection="best_val", temperature=1.5))
    section = calibration_section(other)
    assert section and len(section.tables) == 2
    assert not [note for t in section.tables for note in t.notes if "No temperature" in note]


def test_results_of_older_versions_get_their_calibration(loaded: LoadedRun) -> None:
    for fold in loaded.folds.values():
        assert fold.result.calibration == score_calibration(fold.table.outputs)


def test_figure_has_a_dot_for_each_bin_and_a_line_for_each_fold(loaded: LoadedRun) -> None:
    folds = {k: fold.table.outputs for k, fold in loaded.folds.items()}
    left, right = calibration_figure(folds).axes
    assert len(right.lines) == 3
    for line, outputs in zip(right.lines, folds.values(), strict=True):
        errors = 100 * (1 - outputs.is_correct.mean())
        assert np.asarray(line.get_ydata())[-1] == pytest.approx(errors)
    dots = np.asarray(left.collections[0].get_offsets())
    assert ((dots >= 0) & (dots <= 100)).all() and 2 <= len(dots) <= 15


def test_dots_at_the_top_cover_no_text(loaded: LoadedRun) -> None:
    """They reach over the panel, where a title would be."""
    outputs = loaded.folds[1].table.outputs
    sure = replace(outputs, logits=9 * np.eye(7, dtype=np.float32)[outputs.labels])
    left, _ = calibration_figure({1: sure}).axes
    assert np.asarray(left.collections[0].get_offsets())[:, 1].max() == 100
    assert not left.get_title() and "below the line: overconfident" in left.get_xlabel()
