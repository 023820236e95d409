"""The table of methods that a paper prints."""

from __future__ import annotations

import pytest

from dfer_dist.data.sources.records import ELEVEN, SEVEN
from dfer_dist.reporting.comparison.published import (
    Input,
    Method,
    PaperSelection,
    Published,
    PublishedScores,
)
from dfer_dist.reporting.paper_table import abbreviate, paper_table
from dfer_dist.reporting.results import LoadedRun, load_run
from dfer_dist.reporting.tables import Cell
from tests.helpers.made_runs import CLASSES, make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[LoadedRun]:
    """Three folds of ``weak``, and the first two of ``strong``, which has no clip of disgust."""
    root = tmp_path_factory.mktemp("runs")
    weak = make_run(root / "weak", history=False)
    strong = make_run(root / "strong", (1, 2), sure=4.0, without=5, history=False)
    return [load_run(weak), load_run(strong)]


def test_classes_are_abbreviated_as_in_papers() -> None:
    assert abbreviate(SEVEN) == ["Hap.", "Sad", "Neu.", "Ang.", "Sur.", "Dis.", "Fea."]
    assert abbreviate(ELEVEN)[5:] == ["Disg.", "Fea.", "Con.", "Anx.", "Hel.", "Disa."]
    assert abbreviate(["joy", "joyful", "高兴的人"]) == ["Joy", "Joyf.", "高兴的."]


def test_rows_match_summaries_and_best_values_are_bold(runs: list[LoadedRun]) -> None:
    table = paper_table(runs, unfair=["Their data differ."])
    assert table.header == ["Method", *abbreviate(CLASSES), "UAR", "WAR"]
    for row, run in zip(table.rows, runs, strict=True):
        s = run.summary
        assert row[0] == run.name
        recalls = [s.pooled.recall[c] for c in CLASSES]
        assert row[1:8] == ["–" if x is None else f"{x:.2f}" for x in recalls]
        assert row[9] == f"{s.war.mean:.2f} ± {s.war.std:.2f}"
    # only one run has clips of disgust
    assert table.bold == [Cell(1, column) for column in (1, 2, 3, 4, 5, 7, 8, 9)]
    assert table.title == "Recall of each class, UAR and WAR of weak, strong on DFEW, in percent"
    text = " ".join(table.notes)
    assert "means over 3 or 2 test folds, ± is their sample deviation" in text
    assert "last: weights after the last epoch" in text
    assert table.warnings[0].startswith("strong: 1 of 3 folds missing (3)")
    assert table.warnings[1] == "Their data differ."


def test_recalls_of_many_classes_are_left_out(
    runs: list[LoadedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfer_dist.reporting.paper_table._MAX_CLASSES", 6)
    table = paper_table(runs[:1])
    uar, war = runs[0].summary.uar, runs[0].summary.war
    assert table.header == ["Method", "UAR", "WAR"]
    assert [row[1:] for row in table.rows] == [[f"{s.mean:.2f} ± {s.std:.2f}" for s in (uar, war)]]
    assert table.title == "UAR and WAR of weak on DFEW, in percent"
    assert "Recalls" not in " ".join(table.notes)


def test_equal_values_are_both_bold_and_a_single_row_is_plain(runs: list[LoadedRun]) -> None:
    table = paper_table([runs[0], runs[0]])
    assert table.bold == [Cell(row, column) for column in range(1, 10) for row in (0, 1)]
    alone = paper_table(runs[:1])
    assert not alone.bold
    assert "bold" not in " ".join(alone.notes)


def test_published_methods_are_above_the_runs_without_recalls(runs: list[LoadedRun]) -> None:
    best = PublishedScores(99.0, 99.5)
    methods = [
        Method("Best", "P", "V 2", selection=PaperSelection.last, scores={"dfew": best}),
        Method("Other", "P", "V 3", scores={"mafw": PublishedScores(50.0, 50.0)}),
        Method("First", "P", "V 1", input=[Input.audio], scores={"dfew": PublishedScores(war=2)}),
    ]
    table = paper_table(runs[:1], Published({"dfew": 3}, methods))
    assert [row[0] for row in table.rows] == ["First", "Best", "weak"]
    assert table.rows[0][8:] == ["–", "2.00"]
    assert table.rows[1][1:] == [*["–"] * 7, "99.00", "99.50"]
    assert table.rules == [2]
    assert table.bold == [Cell(1, 8), Cell(1, 9)]
    published = "Scores of First (V 1, audio), Best (V 2) are as published; brackets say what"
    assert any(note.startswith(published) for note in table.notes)
