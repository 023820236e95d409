"""Variance components of seeds and folds, and how often the interval of their mean holds."""

from __future__ import annotations

import numpy as np
import pytest

from dfer_dist.evaluation.random_effects import (
    ClipVariance,
    clip_variance,
    components,
    mean_interval,
)

NO_CLIPS = ClipVariance(0.0, 0.0)


def made(rng: np.random.Generator, seeds: int, folds: int, stds: tuple[float, ...]) -> np.ndarray:
    """Return scores whose seed, fold and rest have these standard deviations."""
    seed, fold, rest = stds
    return (
        50.0
        + seed * rng.normal(size=(seeds, 1))
        + fold * rng.normal(size=(1, folds))
        + rest * rng.normal(size=(seeds, folds))
    )


def test_components_of_a_worked_table() -> None:
    """Mean squares by hand: seeds 24, folds 14, rest 0 of an additive table."""
    scores = np.array([[10.0, 12.0, 14.0], [14.0, 16.0, 18.0]])
    found = components(scores, [NO_CLIPS] * 3)
    assert (found.seed, found.fold, found.training) == pytest.approx((8.0, 4.0, 0.0))
    # of the fold's variance 3 are the clips that both seeds share, of the rest nothing is left
    found = components(scores, [ClipVariance(5.0, 3.0)] * 3)
    assert (found.clips, found.fold, found.training) == pytest.approx((5.0, 1.0, 0.0))
    assert found.total == pytest.approx(14.0)


def test_components_are_right_on_average() -> None:
    rng = np.random.default_rng(0)
    found = [components(made(rng, 4, 6, (2, 3, 1)), [NO_CLIPS] * 6) for _ in range(1500)]
    means = np.mean([[c.seed, c.fold, c.training] for c in found], axis=0)
    assert means == pytest.approx([4, 9, 1], rel=0.08)


@pytest.mark.parametrize("metric", ["uar", "war"])
def test_variance_by_clips_is_that_of_drawing_clips(metric: str) -> None:
    """Draw new clips of each class again and again: seeds share how hard a clip is."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [40, 12, 8])
    means, estimates = [], []
    for _ in range(1500):
        hard = rng.random(len(labels)) < 0.5
        right = (rng.random((3, len(labels))) < np.where(hard, 0.3, 0.9)).astype(float)
        by_class = np.stack([right[:, labels == c].mean(1) for c in range(3)])
        means.append(100 * (by_class.mean(0) if metric == "uar" else right.mean(1)))
        estimates.append(clip_variance(right, labels, metric))
    true = np.cov(np.array(means).T)
    own, shared = np.mean(estimates, axis=0)
    assert own == pytest.approx(np.diagonal(true).mean(), rel=0.06)
    assert shared == pytest.approx(true[np.triu_indices(3, 1)].mean(), rel=0.12)


# standard deviations of the seed, the training and the clips of a fold, and the rest; the coverage
# that docs/reference/report-formulas.md gives
CASES = [
    ((0.0, 0.0, 2.0, 1.0), 96.0),
    ((0.0, 2.0, 1.0, 1.0), 93.0),
    ((1.4, 1.0, 1.0, 1.0), 96.1),
    ((2.0, 0.0, 0.0, 1.0), 96.1),
]


@pytest.mark.parametrize(("stds", "documented"), CASES)
def test_interval_covers_as_documented(stds: tuple[float, ...], documented: float) -> None:
    """Three seeds, five folds; the training of two folds is correlated by their common clips."""
    seed, train, clips, rest = stds
    rng = np.random.default_rng(2)
    shared = [ClipVariance(clips**2, clips**2)] * 5
    held, trials = 0, 1500
    for _ in range(trials):
        scores = made(rng, 3, 5, (seed, clips, rest)) - 50
        scores += train * (np.sqrt(0.8) * rng.normal(size=(1, 5)) + np.sqrt(0.2) * rng.normal())
        found = mean_interval(scores, shared, 0.25, 100).interval
        held += found.low <= 0 <= found.high
    assert 100 * held / trials == pytest.approx(documented, abs=1.6)


def test_interval_of_one_fold_has_seeds_and_clips() -> None:
    rng = np.random.default_rng(3)
    held, trials = 0, 2000
    for _ in range(trials):
        scores = rng.normal() * 1.5 + rng.normal(size=(3, 1))
        found = mean_interval(scores, [ClipVariance(2.25, 2.25)], 0.25, 400)
        held += found.interval.low <= 0 <= found.interval.high
    assert 93 <= 100 * held / trials <= 98.5


def test_scores_that_do_not_vary_have_no_test() -> None:
    found = mean_interval(np.full((2, 3), 4.0), [NO_CLIPS] * 3, 0.5, 10)
    assert (found.interval.low, found.interval.high, found.p) == (4.0, 4.0, None)
