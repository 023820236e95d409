"""Scores of single classes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.evaluation.metrics import score
from dfer_dist.reporting.class_scores import (
    Share,
    class_precisions,
    class_recalls,
    confusion_csv,
)
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.reporting.sections import run_sections
from tests.helpers.made_runs import load_made, make_fold, write_table

CLASSES = ["joy", "fear", "anger", "calm"]


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedRun:
    """Return a run of one fold: 2 of 3 of joy right, 1 of 2 of fear, 0 of 12 of anger, no calm."""
    labels = np.array([0, 0, 0, 1, 1, *[2] * 12])
    predicted = np.array([0, 0, 1, 1, 0, *[0] * 12])
    scores = vars(score(labels, predicted, CLASSES))
    fold = make_fold(tmp_path, 1, **scores)
    write_table(fold / "predictions.parquet", labels, np.eye(4, dtype=np.float32)[predicted])
    return load_made(tmp_path, [1])


@pytest.mark.parametrize(
    ("share", "text"),
    [((2, 3), "2/3"), ((9, 9), "9/9"), ((5, 12), "41.67"), ((0, 10), "0.00"), ((0, 0), "absent")],
)
def test_share_of_few_clips_is_a_fraction(share: tuple[int, int], text: str) -> None:
    assert Share(*share).text == text


def test_recalls_of_classes(loaded: LoadedRun) -> None:
    found = class_recalls(loaded.summary)
    assert [(c.name, *c.pooled) for c in found] == [
        ("joy", 2, 3),
        ("fear", 1, 2),
        ("anger", 0, 12),
        ("calm", 0, 0),
    ]
    assert [c.folds for c in found] == [[c.pooled] for c in found]
    assert found[2].interval == pytest.approx((0, 24.25), abs=0.01)


def test_precision_and_f1_of_classes(loaded: LoadedRun) -> None:
    joy, fear, anger, calm = class_precisions(loaded)
    assert (joy.predicted, joy.precision) == (15, pytest.approx(100 * 2 / 15))
    assert joy.f1 == pytest.approx(100 * 2 * 2 / (3 + 15))
    assert (fear.precision, fear.f1) == pytest.approx((50, 50))
    # never predicted: F1 is 0, precision is not defined
    assert (anger.predicted, anger.f1, np.isnan(anger.precision)) == (0, 0, True)
    assert (calm.clips, np.isnan(calm.f1)) == (0, True)


def test_csv_of_the_confusion_has_counts_under_the_names_of_classes() -> None:
    names = ["joy", "fear, or none", 'a "c"']
    text = confusion_csv(score([0, 0, 0, 1, 2], [0, 0, 1, 2, 0], names))
    header, *rows = csv.reader(io.StringIO(text))
    assert header == ["truth", *names]
    counts = [["2", "1", "0"], ["0", "0", "1"], ["1", "0", "0"]]
    assert rows == [[name, *own] for name, own in zip(names, counts, strict=True)]


def test_tables_of_confusions_and_precision(loaded: LoadedRun) -> None:
    sections = {s.key: s for s in run_sections(loaded)}
    confusions, precision = sections["confusion"].tables
    assert confusions.rows == [
        ["anger", "joy", "12", "100.00"],
        ["joy", "fear", "1", "1/3"],
        ["fear", "joy", "1", "1/2"],
    ]
    assert precision.rows[2:] == [
        ["anger", "12", "0", "never predicted", "0.00"],
        ["calm", "0", "0", "never predicted", "absent"],
        ["mean of the classes", "", "", "", f"{(100 * 4 / 18 + 50) / 3:.2f}"],
    ]
    (recall,) = sections["recall"].tables
    assert [row[2] for row in recall.rows] == ["2/3", "1/2", "0.00", "absent"]
    assert recall.notes == ["Fractions: clips that are right, of fewer than 10."]
