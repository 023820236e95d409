"""Tests of differences: against SciPy, scikit-learn and cases worked out by hand, and on simulated nulls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel
from sklearn.metrics import recall_score

from dfer_dist.evaluation.significance import (
    Pairs,
    class_weights,
    corrected_t,
    differences,
    holm,
    mcnemar,
    pair,
    weights,
)

Tables = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
DEMO = np.tile([28, 20, 22, 20, 18, 15, 17], (5, 1))  # clips by fold and class


def tables(seed: int = 0, folds: int = 3, n: int = 150, classes: int = 4) -> Tables:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(folds):
        labels = rng.choice(classes, size=n, p=[0.5, 0.3, 0.15, 0.05])
        first, second = (
            np.where(rng.random(n) < right, labels, rng.integers(classes, size=n))
            for right in (0.5, 0.7)
        )
        out.append((labels, first, second))
    return out


def test_differences_are_those_of_scikit_learn() -> None:
    data = tables()
    data[1] = tuple(x[data[1][0] != 3] for x in data[1])  # type: ignore[assignment]  # a fold without a class
    pairs = pair(data, 4)
    uar, war = differences(pairs, list(weights(pairs).values()))
    by_fold = []
    for truth, a, b in data:
        present = np.unique(truth)
        by_fold.append([recall_score(truth, x, labels=present, average="macro") for x in (a, b)])
    assert uar.value == pytest.approx(100 * np.mean([b - a for a, b in by_fold]))
    assert war.value == pytest.approx(
        100 * np.mean([(b == t).mean() - (a == t).mean() for t, a, b in data])
    )
    truth, a, b = (np.concatenate(x) for x in zip(*data, strict=True))
    recalls = recall_score(truth, b, average=None) - recall_score(truth, a, average=None)
    assert [d.value for d in differences(pairs, list(class_weights(pairs)))] == pytest.approx(
        100 * recalls
    )


def test_pairs_by_hand() -> None:
    truth, first, second = (
        np.array([0, 0, 0, 1, 1]),
        np.array([0, 1, 1, 1, 0]),
        np.array([0, 0, 1, 0, 1]),
    )
    pairs = pair([(truth, first, second)], 3)
    assert pairs.clips.tolist() == [[3, 2, 0]]
    assert (pairs.gained.tolist(), pairs.lost.tolist()) == ([[1, 1, 0]], [[0, 1, 0]])
    assert weights(pairs)["uar"][0].tolist() == pytest.approx([50 / 3, 25, 0])
    assert class_weights(pairs)[2].sum() == 0
    with pytest.raises(ValueError, match="same length"):
        pair([(truth, first, second[:-1])], 3)
    with pytest.raises(ValueError, match="no fold"):
        pair([], 3)


def test_interval_is_that_of_drawing_clips() -> None:
    """Against a bootstrap that samples the clips themselves, on tables where the two corrections hardly matter."""
    rng, data = np.random.default_rng(3), tables(1, 2, 400)
    pairs = pair(data, 4)
    found = differences(pairs, list(weights(pairs).values()), resamples=20_000)
    drawn = np.zeros((1500, 2))
    for d in range(len(drawn)):
        for truth, a, b in data:
            rows = np.concatenate(
                [rng.choice(r, r.size) for c in range(4) if (r := np.flatnonzero(truth == c)).size]
            )
            gain = (b[rows] == truth[rows]).astype(int) - (a[rows] == truth[rows])
            drawn[d, 0] += (
                100 * np.mean([gain[truth[rows] == c].mean() for c in np.unique(truth)]) / 2
            )
            drawn[d, 1] += 100 * gain.mean() / 2
    for i, d in enumerate(found):
        assert [d.low, d.high] == pytest.approx(
            np.percentile(drawn[:, i], [2.5, 97.5]), abs=0.25 * drawn[:, i].std()
        )


def test_intervals_are_seeded_and_of_no_change_around_zero() -> None:
    pairs = pair(tables(), 4)
    linear = list(weights(pairs).values())
    assert differences(pairs, linear) == differences(pairs, linear)
    assert differences(pairs, linear) != differences(pairs, linear, seed=1)
    same = pair([(t, a, a) for t, a, _ in tables()], 4)
    for d in differences(same, linear):
        assert d.value == 0
        assert d.low <= 0 <= d.high
        assert d.high - d.low < 2  # that no clip differs does not say that none could
        assert not d.certain


def simulate(clips: np.ndarray, gained: np.ndarray, lost: np.ndarray, trials: int) -> list[Pairs]:
    """Pairs of models that gain and lose a clip of class c with probabilities ``gained[c]`` and ``lost[c]``."""
    rng = np.random.default_rng(11)
    shares = np.stack([gained, lost, 1 - gained - lost], axis=-1)
    drawn = rng.multinomial(
        clips, np.broadcast_to(shares, (*clips.shape, 3)), size=(trials, *clips.shape)
    )
    return [Pairs(clips, x[..., 0], x[..., 1]) for x in drawn]


@pytest.mark.parametrize(
    ("clips", "gain", "loss"),
    [
        (DEMO, 0.05, 0.05),
        (DEMO, 0.15, 0.15),
        (np.full((5, 7), 5), 0.05, 0.05),
        (np.full((5, 3), 4), 0.15, 0.15),
        (DEMO, 0.12, 0.05),
    ],
    ids=[
        "few differ",
        "many differ",
        "five clips a class",
        "four clips a class",
        "a true difference",
    ],
)
def test_bootstrap_misses_the_truth_3_to_7_times_in_a_hundred(
    clips: np.ndarray, gain: float, loss: float
) -> None:
    classes = clips.shape[1]
    trials = simulate(clips, np.full(classes, gain), np.full(classes, loss), 1000)
    missed = np.zeros(2)
    for i, pairs in enumerate(trials):
        found = differences(pairs, list(weights(pairs).values()), resamples=300, seed=i)
        missed += [not d.low <= 100 * (gain - loss) <= d.high for d in found]
    # 1,000 trials stray by 0.69 of a hundred (a standard error): 3 to 7 with 1.4 of them either way
    assert ((missed / 1000 > 0.020) & (missed / 1000 < 0.080)).all(), missed / 1000


def test_corrected_t_by_hand_and_against_scipy() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = corrected_t(values, 1 / 4)
    assert (found.mean, found.df) == (3, 4)
    assert found.t == pytest.approx(3 / math.sqrt((1 / 5 + 1 / 4) * 2.5))  # mean 3, variance 2.5
    plain = corrected_t(values, 0.0)
    assert (plain.t, plain.p) == pytest.approx(tuple(ttest_1samp(values, 0)))
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    assert corrected_t(b - a, 0.0).p == pytest.approx(ttest_rel(b, a).pvalue)
    assert found.p is not None and plain.p is not None and found.p > plain.p
    assert corrected_t([0.0, 0.0], 0.25).p == 1
    assert corrected_t([0.3, 0.3, 0.3], 0.5).p is None
    with pytest.raises(ValueError, match="two folds"):
        corrected_t([1.0], 0.25)


def crossvalidated_null(trials: int, folds: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences by fold [trials, folds] of two learners that are as good as each other, and both's right clips pooled [trials, 2].

    Real cross-validation: two classes, two independent copies of the same noisy features; each learner is the nearest centroid on one of
    them. Training sets of folds overlap as they do in practice, and neither learner can be better.
    """
    rng = np.random.default_rng(21)
    labels = np.arange(n) % 2
    fold = np.arange(n) // 2 % folds
    by_fold, discordant = np.zeros((trials, folds)), np.zeros((trials, 2), dtype=int)
    x = rng.normal(size=(2, trials, n, 6)) + 0.35 * (2 * labels[:, None] - 1)
    for k in range(folds):
        test, train = fold == k, fold != k
        centres = [x[:, :, train & (labels == c)].mean(2, keepdims=True) for c in (0, 1)]
        far = [((x[:, :, test] - c) ** 2).sum(-1) for c in centres]
        right = (far[1] < far[0]) == (labels[test] == 1)
        by_fold[:, k] = right[1].mean(-1) - right[0].mean(-1)
        discordant += np.stack(
            [(right[1] & ~right[0]).sum(-1), (right[0] & ~right[1]).sum(-1)], axis=-1
        )
    return 100 * by_fold, discordant


def test_tests_find_a_difference_of_equal_learners_at_most_5_times_in_a_hundred() -> None:
    trials = 1500
    by_fold, discordant = crossvalidated_null(trials, 5, 100)
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    ts = np.mean([(corrected_t(row, 1 / 4).p or 0) < 0.05 for row in by_fold])
    assert 0.005 < ts < limit, ts
    assert np.mean([mcnemar(g, lost).p < 0.05 for g, lost in discordant.tolist()]) < limit
    plain = np.mean([(corrected_t(row, 0.0).p or 0) < 0.05 for row in by_fold])
    assert plain > ts  # what the correction is for


def test_corrected_t_is_exact_where_its_model_holds() -> None:
    """Fold differences with correlation n_test / (n_test + n_train), as the correction takes them to have."""
    rng, trials, folds = np.random.default_rng(5), 6000, 5
    common, own = rng.normal(size=(trials, 1)), rng.normal(size=(trials, folds))
    rows = math.sqrt(1 / folds) * common + math.sqrt(1 - 1 / folds) * own
    found = np.mean([(corrected_t(row, 1 / (folds - 1)).p or 0) < 0.05 for row in rows])
    assert found == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))


@pytest.mark.parametrize("n", [1, 6, 10, 25, 40, 100, 300])
def test_mcnemar_never_finds_too_much(n: int) -> None:
    """Sum over all outcomes of n discordant clips when both models are as good."""
    chance = [math.comb(n, k) / 2**n for k in range(n + 1)]
    assert sum(c for k, c in enumerate(chance) if mcnemar(k, n - k).p < 0.05) <= 0.05
    assert mcnemar(n // 3, n - n // 3).p == pytest.approx(2 * sum(chance[: n // 3 + 1]))


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0).p == 1
    assert mcnemar(5, 5).p == 1
    assert mcnemar(1, 5).p == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(5, 1).p == mcnemar(1, 5).p
    assert mcnemar(40, 60).p == pytest.approx(0.0569, abs=1e-4)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
