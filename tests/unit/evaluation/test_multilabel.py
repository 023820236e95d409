"""Scores of sets of labels, held against scikit-learn and sums by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

from dfer_dist.config.schema import Output
from dfer_dist.data.sources.compound import membership
from dfer_dist.data.sources.records import CLASSES
from dfer_dist.evaluation.metrics import metric_values, score
from dfer_dist.evaluation.multilabel import (
    check_labels,
    choose_labels,
    expand_logits,
    indicator,
    label_probabilities,
    score_table,
)
from dfer_dist.evaluation.predictions import Predictions
from dfer_dist.reporting.results import read_predictions
from dfer_dist.runs.records import MULTILABEL_METRICS
from dfer_dist.utils.errors import UserError

MAFW = CLASSES["mafw-compound"]
MEMBERS = membership(MAFW)
FOUR = ("fear", "anger", "joy", "fear+anger")


def made(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int [n] and logits float32 [n, 11] that know a little about them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 43, n)
    noise = rng.normal(scale=1.5, size=(n, 11))
    return labels, (noise + 2 * MEMBERS[labels] - 1).astype(np.float32)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(1, keepdims=True)


def near(value: float) -> object:
    return pytest.approx(100 * value, abs=1e-9, rel=0)


def test_sums_of_logits_are_the_probabilities_of_sets_of_independent_classes() -> None:
    singles = np.array([[1.0, -0.5, 0.2]], np.float32)
    p = sigmoid(singles)[0]
    logits = expand_logits(singles, FOUR)
    assert logits[0].tolist() == pytest.approx([1.0, -0.5, 0.2, 0.5])
    # of exactly these labels and no others, given that they are one of the four sets
    sets = membership(FOUR)
    exact = np.where(sets, p, 1 - p).prod(axis=1)
    assert softmax(logits)[0] == pytest.approx(exact / exact.sum(), rel=1e-6)
    assert expand_logits(logits, FOUR) is logits


def test_scores_of_sigmoid_outputs_agree_with_scikit_learn() -> None:
    labels, singles = made(0)
    logits, truth, p = expand_logits(singles, MAFW), MEMBERS[labels], sigmoid(singles)
    sets = [tuple(np.flatnonzero(row)) for row in truth]
    s = score_table(labels, logits, MAFW, sets)
    predicted = p >= 0.5
    predicted[np.flatnonzero(~predicted.any(1)), p[~predicted.any(1)].argmax(1)] = True
    assert 0 < (~(p >= 0.5).any(1)).sum() < len(p) / 4
    m = s.multilabel
    assert m is not None
    assert m.exact_match == near(accuracy_score(truth, predicted))
    assert m.mean_ap == near(average_precision_score(truth, p, average="macro"))
    assert m.auc == near(roc_auc_score(truth, p, average="macro"))
    assert m.macro_f1 == near(f1_score(truth, predicted, average="macro"))
    assert m.weighted_f1 == near(f1_score(truth, predicted, average="weighted"))
    # of the 43 classes
    assert s.war == near(accuracy_score(labels, logits.argmax(1)))
    assert s.macro_f1 == near(f1_score(labels, logits.argmax(1), average="macro"))
    assert set(metric_values(s)) > set(MULTILABEL_METRICS)
    assert metric_values(s)["multilabel_auc"] == m.auc


def test_scores_of_softmax_outputs_over_compound_classes_agree_with_scikit_learn() -> None:
    labels, singles = made(1)
    logits = expand_logits(singles, MAFW)
    truth, p = np.eye(43)[labels], softmax(logits)
    s = score_table(labels, logits, MAFW)
    assert s.mean_ap == near(average_precision_score(truth, p, average="macro"))
    assert s.auc == near(roc_auc_score(truth, p, average="macro"))
    sets, predicted = MEMBERS[labels], MEMBERS[p.argmax(1)]
    m = s.multilabel
    assert m is not None and m.exact_match == s.war
    assert m.mean_ap == near(average_precision_score(sets, p @ MEMBERS, average="macro"))
    assert m.macro_f1 == near(f1_score(sets, predicted, average="macro"))


def test_absent_labels_do_not_count() -> None:
    logits = np.array([[2.0, 1.0, -3.0], [1.0, -1.0, 2.0], [3.0, 0.5, -1.0]], np.float32)
    s = score_table([0, 0, 0], logits, FOUR[:3], [(0,), (0,), (0, 1)])
    m = s.multilabel
    assert m is not None
    # every clip has the first label and none the third: only the second can be ranked
    truth, p = np.array([0, 0, 1]), logits[:, 1]
    assert m.auc == near(roc_auc_score(truth, p))
    assert m.mean_ap == near((1 + average_precision_score(truth, p)) / 2)
    assert m.macro_f1 == near((1 + 2 / 3) / 2)
    assert m.weighted_f1 == near((3 * 1 + 2 / 3) / 4)
    # the second clip gets a wrong label, the first one too
    assert m.exact_match == near(1 / 3)
    alike = score_table([0, 0], logits[:2], FOUR[:3], [(0,), (0,)]).multilabel
    assert alike is not None and alike.auc is None


def test_labels_that_no_class_tells_are_not_trained_on() -> None:
    index = SimpleNamespace(name="mine", classes=FOUR[:3], extras=("labels",))
    with pytest.raises(UserError, match="clips of mine have several labels") as caught:
        check_labels(index, Output.sigmoid)
    assert "\n" not in str(caught.value)
    check_labels(index, Output.softmax)
    check_labels(SimpleNamespace(name="mine", classes=FOUR[:3], extras=()), Output.sigmoid)
    check_labels(SimpleNamespace(name="mafw", classes=MAFW, extras=("labels",)), Output.sigmoid)


def test_a_clip_has_at_least_one_label() -> None:
    p = np.array([[0.5, 0.2, 0.9], [0.1, 0.4, 0.3], [0.49, 0.49, 0.0]])
    want = [[True, False, True], [False, True, False], [True, False, False]]
    assert choose_labels(p).tolist() == want


def test_single_labels_and_softmax_outputs_have_no_scores_of_sets() -> None:
    rng = np.random.default_rng(2)
    labels, logits = rng.integers(0, 3, 30), rng.normal(size=(30, 3)).astype(np.float32)
    assert score_table(labels, logits, FOUR[:3]) == score(labels, logits, FOUR[:3])
    assert label_probabilities(logits, FOUR[:3], False) == pytest.approx(softmax(logits))


@pytest.mark.parametrize("labels", [(), (3,), (-1, 1)])
def test_wrong_sets_of_labels_are_refused(labels: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one or more of 3"):
        indicator([(0,), labels], FOUR[:3])
    table = Predictions(
        ["a", "b"], np.array([0, 1]), np.eye(2, 3, dtype=np.float32), [(0,), labels]
    )
    table.write(tmp_path / "p.parquet")
    with pytest.raises(UserError, match="one or more of 3"):
        read_predictions(tmp_path / "p.parquet", list(FOUR[:3]))


def test_predictions_keep_their_sets(tmp_path: Path) -> None:
    labels, singles = made(3, 40)
    sets = [tuple(np.flatnonzero(row).tolist()) for row in MEMBERS[labels]]
    keys = [str(i) for i in range(40)]
    table = Predictions(keys, labels, expand_logits(singles, MAFW), sets)
    table.write(tmp_path / "p.parquet")
    read = read_predictions(tmp_path / "p.parquet", list(MAFW))
    assert read.scores == table.score(MAFW)
    assert read.scores.multilabel != score_table(labels, table.logits, MAFW).multilabel
