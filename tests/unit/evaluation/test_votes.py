"""Predictions against votes: sums by hand, and intervals that hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from dfer_dist.evaluation.predictions import Predictions
from dfer_dist.evaluation.votes import any_annotator, kl_divergence, mean_over_folds, score_votes

VOTES = np.array([[5, 3, 2], [10, 0, 0], [0, 0, 0], [1, 0, 1]], dtype=np.float32)
LOGITS = np.array([[1.0, 0, -1], [0, 200, 0], [3, 0, 0], [0, 0, 0]], dtype=np.float32)


def test_divergence_is_that_of_the_softmax() -> None:
    rng = np.random.default_rng(0)
    votes, logits = rng.integers(0, 4, (50, 7)) + np.eye(7)[np.arange(50) % 7], rng.normal(0, 3, 7)
    shares = votes / votes.sum(1, keepdims=True)
    want = rel_entr(shares, softmax(logits)[None]).sum(1)
    assert kl_divergence(votes, logits[None].repeat(50, 0)) == pytest.approx(want)
    assert (want > 0).all()
    assert kl_divergence(votes, np.log(shares + 1e-300)) == pytest.approx(np.zeros(50), abs=1e-12)


def test_scores_leave_out_clips_without_votes() -> None:
    scores = score_votes(VOTES, LOGITS)
    q = np.exp(LOGITS[0]) / np.exp(LOGITS[0]).sum()
    first = 0.5 * math.log(0.5 / q[0]) + 0.3 * math.log(0.3 / q[1]) + 0.2 * math.log(0.2 / q[2])
    # a class without a vote adds nothing; a probability near zero is no infinity
    want = (first + 200.0 + math.log(3 / 2)) / 3
    assert scores is not None and scores.n == 3
    assert scores.kl == pytest.approx(want, rel=1e-6)
    assert scores.any_annotator == pytest.approx(200 / 3)
    assert any_annotator(VOTES, [1, 1, 0, 2]).tolist() == [100, 0, 0, 100]
    assert score_votes(VOTES[2:3], LOGITS[2:3]) is None


def test_predictions_without_votes_have_no_such_scores(tmp_path) -> None:
    import pyarrow.parquet as pq

    plain = Predictions(list("abcd"), np.zeros(4, np.int32), LOGITS)
    assert plain.score_votes() is None
    plain.write(tmp_path / "plain.parquet")
    assert pq.read_schema(tmp_path / "plain.parquet").names == ["key", "label", "logits"]
    voted = Predictions(list("abcd"), np.zeros(4, np.int32), LOGITS, votes=VOTES)
    assert voted.score_votes() == score_votes(VOTES, LOGITS)
    voted.write(tmp_path / "voted.parquet")
    assert pq.read_table(tmp_path / "voted.parquet")["votes"].to_pylist() == VOTES.tolist()


def test_interval_of_means_over_folds_covers() -> None:
    """Nineteen of twenty intervals hold the truth, with classes of few clips too."""
    rng, covered, trials = np.random.default_rng(1), np.zeros(2), 120
    for _ in range(trials):
        values, labels = [], []
        for n in (30, 45):
            classes = np.sort(rng.integers(0, 4, n))
            values.append(np.stack([classes + rng.normal(size=n), rng.exponential(size=n)]))
            labels.append(classes)
        truth = [np.mean([c.mean() for c in labels]), 1.0]
        found = mean_over_folds(values, labels, resamples=300)
        covered += [d.low <= t <= d.high for d, t in zip(found, truth, strict=True)]
    assert (0.87 * trials < covered).all() and (covered < trials).all()


def test_interval_is_about_the_mean_of_the_folds() -> None:
    values, labels = [np.array([[1.0, 1, 4]]), np.array([[10.0]])], [[2, 2, 0], [1]]
    (found,) = mean_over_folds(values, labels)
    assert found.value == pytest.approx((2 + 10) / 2)
    # no deviation within a class, so none at all
    assert (found.low, found.high) == pytest.approx((6, 6))
