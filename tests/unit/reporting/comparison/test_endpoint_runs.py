"""Reports and comparisons of a run whose model names a class and gives no probabilities."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.evaluation.metrics import score
from dfer_dist.evaluation.predictions import write_classes
from dfer_dist.reporting.class_scores import confusion_csv
from dfer_dist.reporting.comparison.paired import compare, load_runs
from dfer_dist.reporting.comparison.sections import comparison_sections
from dfer_dist.reporting.plots.errors_sheet import draw_confident_errors
from dfer_dist.reporting.results import LoadedRun, ScoredPredictions, load_run
from dfer_dist.reporting.sections import run_sections
from dfer_dist.runs.endpoint import NO_CLASS, EndpointTest
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json
from tests.helpers.made_runs import CLASSES, make_run

ASKED = EndpointTest("org/eye-1", "Choose one.", 210, 2000, 30)


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDir]:
    """A trained run, and one of a model at an endpoint that agrees with it on most clips.

    In each of the three folds clips 0 to 5 are refused, 6 to 9 unreadable and 10 failed.
    """
    first, second = (make_run(tmp_path / name) for name in ("one", "eye"))
    second.config.unlink()
    for k, fold in load_run(first).folds.items():
        files, table = second.fold(k), fold.table
        predicted = table.predicted.copy()
        predicted[:11] = np.repeat([7, 8, 9], [6, 4, 1])
        write_classes(files.predictions, table.keys, table.labels.tolist(), predicted.tolist())
        scores = score(table.labels, predicted, [*CLASSES, *NO_CLASS])
        how = {"output": "class", "selection": "none", "epoch": 0, "endpoint": asdict(ASKED)}
        write_json(files.result, read_json(files.result) | asdict(scores) | how)
    return [first, second]


def tables(loaded: LoadedRun) -> list[ScoredPredictions]:
    return [fold.table for fold in loaded.folds.values()]


def cells(loaded: LoadedRun, section: str) -> list[list[str]]:
    (found,) = (s for s in run_sections(loaded) if s.key == section)
    return [list(row) for row in found.tables[0].rows]


def test_report_counts_clips_without_class_as_wrong(runs: list[RunDir]) -> None:
    loaded = load_run(runs[1])
    right = sum(int((t.predicted == t.labels).sum()) for t in tables(loaded))
    assert loaded.summary.pooled.war == pytest.approx(100 * right / 600)
    notes = run_sections(loaded)[0].tables[0].notes
    assert notes[0] == (
        "The model has no class for 33 of 600 clips (18 refused, 12 unreadable, 3 failed): they "
        "count as wrong in UAR and WAR."
    )
    assert not any("no clip of" in text for text in notes)
    assert [row[0] for row in cells(loaded, "recall")] == CLASSES
    matrix = confusion_csv(loaded.summary.pooled).splitlines()
    assert [line.count(",") for line in matrix] == [len(CLASSES) + 3] * (1 + len(CLASSES))
    assert cells(loaded, "cost")[-1] == ["sum", "600", "18", "12", "3", "630", "6,000", "90"]


def test_protocol_names_where_answers_come_from(runs: list[RunDir]) -> None:
    def endpoint(*urls: list[str]) -> str:
        for k, of_fold in enumerate(urls, 1):
            stored = read_json(runs[1].fold(k).result)
            stored["endpoint"]["urls"] = of_fold
            write_json(runs[1].fold(k).result, stored)
        return dict(cells(load_run(runs[1]), "protocol"))["Endpoint"]

    one, two = "http://a/v1", "http://b/v1"
    assert endpoint([one], [one], [one]) == one
    assert endpoint([one, two], [two], [two]) == f"fold 1: {one}, {two}; folds 2, 3: {two}"
    assert endpoint([], [], [two]) == f"folds 1, 2: not recorded; fold 3: {two}"


def test_report_leaves_out_what_needs_probabilities_and_says_so(runs: list[RunDir]) -> None:
    loaded = load_run(runs[1])
    assert loaded.summary.calibration is None
    (section,) = (s for s in run_sections(loaded) if s.key == "calibration")
    assert not section.tables
    assert "gives no probabilities" in section.text[0]
    with pytest.raises(UserError, match="leave --errors out"):
        draw_confident_errors(runs[1], 3)


@pytest.mark.parametrize("endpoint_first", [False, True])
def test_comparison_counts_pairs_in_both_orders(runs: list[RunDir], endpoint_first: bool) -> None:
    first, second = load_runs(runs[::-1] if endpoint_first else runs)
    comparison = compare(first, second)
    trained = load_run(runs[0])
    lost = sum(int((t.predicted == t.labels)[:11].sum()) for t in tables(trained))
    assert comparison.paired
    found = comparison.paired.mcnemar
    counts = (found.gained, found.lost)
    assert counts == ((lost, 0) if endpoint_first else (0, lost))
    changes = comparison.paired.changes
    assert len(changes) == 33
    assert {x.first if endpoint_first else x.second for x in changes} == {*NO_CLASS}
    confidence = [x.confidence for x in changes[:11]]
    assert confidence == sorted(confidence, reverse=True)
    (section,) = (s for s in comparison_sections([first, second], [comparison]) if s.key == "clips")
    row = section.tables[0].rows[0]
    assert row[3 + (not endpoint_first)] in NO_CLASS
    assert any("which clips it was trained on is not known" in x for x in comparison.warnings)
    assert not any("epochs" in text for text in comparison.warnings)


def test_table_of_classes_that_is_damaged_is_refused(runs: list[RunDir]) -> None:
    files = runs[1].fold(1)
    for keys, predicted, part in ((["a", "a"], [0, 1], "twice"), (["a", "b"], [0, 10], "outside")):
        write_classes(files.predictions, keys, [0, 1], predicted)
        with pytest.raises(UserError, match=part):
            load_run(runs[1])
