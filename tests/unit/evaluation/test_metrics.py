from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    recall_score,
    top_k_accuracy_score,
)

from dfer_dist.evaluation.metrics import (
    bootstrap_ci,
    confusion,
    in_top_two,
    metric_values,
    score,
    top_class,
)
from dfer_dist.runs.records import METRICS

FOUR = ["happiness", "sadness", "neutral", "anger"]


def table(seed: int, n: int, classes: int, right: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(
        classes, size=n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    )
    return labels, np.where(rng.random(n) < right, labels, rng.integers(0, classes, n))


def test_hand_computed_scores() -> None:
    # recalls 2/3, 1/2, 0/1; accuracy 3/6
    s = score(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1]), ["a", "b", "c"])
    assert s.recall == pytest.approx({"a": 200 / 3, "b": 50.0, "c": 0.0})
    assert s.uar == pytest.approx((200 / 3 + 50) / 3)
    assert s.war == 50.0
    assert s.confusion == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert (s.n, s.support, s.absent, s.classes) == (
        6,
        {"a": 3, "b": 2, "c": 1},
        [],
        ["a", "b", "c"],
    )


@pytest.mark.parametrize(("seed", "classes"), [(0, 7), (1, 11), (2, 2)])
def test_agrees_with_scikit_learn(seed: int, classes: int) -> None:
    labels, predictions = table(seed, 900, classes, 0.5)
    s = score(labels, predictions, [f"c{i}" for i in range(classes)])
    assert s.uar == pytest.approx(100 * balanced_accuracy_score(labels, predictions))
    assert s.war == pytest.approx(100 * accuracy_score(labels, predictions))
    assert list(s.recall.values()) == pytest.approx(
        list(100 * recall_score(labels, predictions, average=None))
    )
    assert s.confusion == confusion_matrix(labels, predictions).tolist()
    for average in ("macro", "weighted"):
        f1 = 100 * f1_score(labels, predictions, average=average)
        assert metric_values(s)[f"{average}_f1"] == pytest.approx(f1, abs=1e-9, rel=0)
    kappa = cohen_kappa_score(labels, predictions)
    assert s.kappa == pytest.approx(kappa, abs=1e-9, rel=0)


def logits_for(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Random logits, higher for the label."""
    random = np.random.default_rng(seed).normal(size=(len(labels), classes))
    return random + 1.5 * np.eye(classes)[labels]


@pytest.mark.parametrize(("seed", "classes"), [(0, 7), (1, 11), (2, 3)])
def test_top2_agrees_with_scikit_learn(seed: int, classes: int) -> None:
    labels, _ = table(seed, 500, classes, 0.5)
    logits = logits_for(labels, classes, seed)
    expected = 100 * top_k_accuracy_score(labels, logits, k=2, labels=range(classes))
    s = score(labels, logits, [f"c{i}" for i in range(classes)])
    assert s.top2 == pytest.approx(expected, abs=1e-9, rel=0)
    assert s.top2 > s.war


def test_of_equal_logits_the_lower_classes_are_the_top_two() -> None:
    logits = np.array([[1.0, 1, 1, 0], [0, 2, 1, 1], [0, 1, 1, 2], [3, 3, 3, 3]])
    top_two = [[0, 1], [1, 2], [3, 1], [0, 1]]
    for row, (first, second) in enumerate(top_two):
        counted = [c for c in range(4) if in_top_two([c], logits[row : row + 1])[0]]
        assert counted == sorted([first, second])
        assert top_class(logits[row : row + 1]) == first
    # scikit-learn counts the higher ones
    assert top_k_accuracy_score([2], logits[3:], k=2, labels=range(4)) == 1
    assert score([2], logits[3:], FOUR).top2 == 0


def test_tables_without_logits_or_with_two_classes_have_no_top2() -> None:
    labels = np.array([0, 1, 1])
    assert score(labels, np.array([0, 1, 0]), FOUR).top2 is None
    assert score(labels, np.eye(2)[labels], FOUR[:2]).top2 is None
    assert "top2" not in metric_values(score(labels, labels, FOUR))


def test_kappa_is_zero_for_chance_and_for_a_single_class() -> None:
    # as many right as by chance: 1/2 · 1/2 + 1/2 · 1/2
    assert score([0, 0, 1, 1], [0, 1, 0, 1], FOUR).kappa == 0
    assert score([0, 1, 2], [0, 1, 2], FOUR).kappa == 1
    assert score([0, 1], [1, 0], FOUR).kappa == -1
    assert score([2, 2], [2, 2], FOUR).kappa == 0
    assert bootstrap_ci([([2, 2], [2, 2])], 4, "kappa") == (0.0, 0.0)


def test_absent_class_is_named_and_left_out_of_uar() -> None:
    # class 1 is predicted but never true, class 3 neither
    s = score(np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2]), FOUR)
    assert s.absent == ["sadness", "anger"]
    assert s.recall == {"happiness": 50.0, "sadness": None, "neutral": 100.0, "anger": None}
    assert s.uar == 75.0
    assert s.war == 75.0
    assert len(s.confusion) == 4
    # F1 2/3 and 1; that of class 1 would be 0
    assert s.macro_f1 == s.weighted_f1 == pytest.approx(100 * (2 / 3 + 1) / 2, abs=1e-9)


def test_logits_and_the_predictions_they_give_score_alike() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    labels = np.arange(50) % 4
    without = replace(score(labels, logits, FOUR), top2=None)
    assert without == score(labels, logits.argmax(1), FOUR)
    assert top_class(np.zeros((2, 3))).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("labels", "outputs", "text"),
    [
        (np.zeros(0, int), np.zeros((0, 4)), "no clip"),
        (np.array([0, 4]), np.array([0, 0]), r"label 4 in row 1 is outside 0\.\.3"),
        (np.array([0, -1]), np.array([0, 0]), "label -1"),
        (np.array([0, 1]), np.array([0, 9]), "prediction 9"),
        (np.array([0, 1]), np.array([0, 1, 2]), "same length"),
        (np.array([0.0, 1.5]), np.array([0, 1]), "integers"),
        (np.array([0, 1]), np.zeros((2, 3)), "3 columns for 4"),
        (
            np.array([0, 1]),
            np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]]),
            "not finite, the first in row 1",
        ),
    ],
)
def test_refuses_what_cannot_be_scored(labels: np.ndarray, outputs: np.ndarray, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        score(labels, outputs, FOUR)


def test_confusion_is_int64_with_truth_in_rows() -> None:
    matrix = confusion(np.array([0, 0, 1]), np.array([1, 1, 1]), 3)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[0, 2, 0], [0, 1, 0], [0, 0, 0]]


def brute_force(
    tables: list[tuple[np.ndarray, np.ndarray]], classes: int, metric: str, resamples: int
) -> np.ndarray:
    """Means over folds of bootstraps that draw the clips themselves."""
    rng = np.random.default_rng(99)
    out = np.zeros(resamples)
    for d in range(resamples):
        for labels, predictions in tables:
            rows = np.concatenate(
                [
                    rng.choice(r, r.size)
                    for c in range(classes)
                    if (r := np.flatnonzero(labels == c)).size
                ]
            )
            out[d] += value(labels[rows], predictions[rows], metric) / len(tables)
    return out


def value(labels: np.ndarray, predictions: np.ndarray, metric: str) -> float:
    if metric == "top2":
        return 100 * float(in_top_two(labels, predictions).mean())
    right, present = labels == predictions, np.unique(labels)
    if metric == "kappa":
        # cohen_kappa_score takes a millisecond
        by_chance = np.bincount(labels, minlength=4) @ np.bincount(predictions, minlength=4)
        by_chance = by_chance / len(labels) ** 2
        return float((right.mean() - by_chance) / (1 - by_chance))
    if metric == "war":
        return 100 * float(right.mean())
    hits, clips = (np.array([x[labels == c].sum() for c in present]) for x in (right, right >= 0))
    if metric == "uar":
        return 100 * float(np.mean(np.divide(hits, clips)))
    f1 = 2 * hits / (clips + [(predictions == c).sum() for c in present])
    return 100 * float(np.mean(f1) if metric == "macro_f1" else np.dot(f1, clips) / len(labels))


@pytest.mark.parametrize("metric", METRICS)
def test_counts_give_the_same_bootstrap_as_drawing_clips(metric: str) -> None:
    # fold 2 lacks class 0, so its UAR is a mean over fewer classes
    tables = [table(3, 120, 4, 0.6), table(4, 90, 4, 0.4)]
    tables[1] = tuple(x[tables[1][0] > 0] for x in tables[1])  # type: ignore[assignment]
    if metric == "top2":
        tables = [(labels, logits_for(labels, 4, 1)) for labels, _ in tables]
    drawn = brute_force(tables, 4, metric, 3000)
    for level in (0.5, 0.8, 0.95):
        tails = [50 * (1 - level), 50 * (1 + level)]
        # a quantile of 3,000 resamples strays by about a twentieth of the deviation
        assert bootstrap_ci(tables, 4, metric, resamples=20_000, level=level) == pytest.approx(
            np.percentile(drawn, tails), abs=0.2 * drawn.std()
        )


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    right, hits, trials = np.array([0.8, 0.6, 0.5]), 0, 200
    for _ in range(trials):
        folds = []
        for _ in range(3):
            labels = np.repeat([0, 1, 2], 60)
            folds.append(
                (labels, np.where(rng.random(180) < right[labels], labels, (labels + 1) % 3))
            )
        low, high = bootstrap_ci(folds, 3, "uar", resamples=500)
        hits += low <= 100 * right.mean() <= high
    assert 0.90 <= hits / trials <= 0.99


def test_interval_of_logits_is_that_of_the_classes_they_predict() -> None:
    labels, _ = table(1, 90, 4, 0.6)
    logits = logits_for(labels, 4, 3)
    for metric in METRICS.keys() - {"top2"}:
        expected = bootstrap_ci([(labels, logits.argmax(1))], 4, metric)
        assert bootstrap_ci([(labels, logits)], 4, metric) == expected


def test_interval_is_reproducible_quick_and_around_the_mean() -> None:
    tables = [table(k, 2400, 7, 0.7) for k in range(5)]
    bootstrap_ci(tables, 7, "uar")
    start = time.perf_counter()
    low, high = bootstrap_ci(tables, 7, "uar")
    assert time.perf_counter() - start < 0.5
    assert (low, high) == bootstrap_ci(tables, 7, "uar", seed=0)
    assert (low, high) != bootstrap_ci(tables, 7, "uar", seed=1)
    assert low < np.mean([100 * balanced_accuracy_score(*t) for t in tables]) < high
    wide = bootstrap_ci(tables[:1], 7, "uar")
    assert wide[1] - wide[0] > 1.5 * (high - low)  # five folds: about the root of five narrower


def test_interval_of_perfect_predictions_is_a_point() -> None:
    labels = np.array([0, 1, 1, 2])
    assert bootstrap_ci([(labels, labels)], 3, "war") == (100.0, 100.0)


def test_interval_refuses_no_fold_and_unknown_metric() -> None:
    with pytest.raises(ValueError, match="no fold"):
        bootstrap_ci([], 3, "uar")
    with pytest.raises(ValueError, match="kappa, not 'f1'"):
        bootstrap_ci([(np.array([0]), np.array([0]))], 3, "f1")
