"""The interval of a mean over models that were tested on the same clips."""

from __future__ import annotations

import numpy as np
import pytest

from dfer_dist.evaluation.crosseval import mean_interval
from dfer_dist.evaluation.metrics import bootstrap_ci


def guesses(rng: np.random.Generator, labels: np.ndarray, easy: np.ndarray) -> np.ndarray:
    """Return predictions that are right with probability 0.95 on easy clips, else 0.3."""
    right = rng.random(len(labels)) < np.where(easy, 0.95, 0.3)
    return np.where(right, labels, (labels + 1) % 3)


@pytest.mark.parametrize("metric", ["uar", "war"])
def test_interval_equals_that_of_drawn_clips(metric: str) -> None:
    rng = np.random.default_rng(3)
    labels = rng.choice(3, 120, p=[0.6, 0.3, 0.1])
    easy = rng.random(120) < 0.6
    models = [guesses(rng, labels, easy) for _ in range(5)]
    right = np.mean([m == labels for m in models], axis=0)
    values = []
    for _ in range(4000):
        drawn = np.concatenate(
            [rng.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in range(3)]
        )
        recalls = [right[drawn][labels[drawn] == c].mean() for c in range(3)]
        values.append(np.mean(recalls) if metric == "uar" else right[drawn].mean())
    want = 100 * np.percentile(values, [2.5, 97.5])
    low, high = mean_interval(labels, models, metric)
    assert (low, high) == pytest.approx(want, abs=0.15 * (want[1] - want[0]))
    # models agree: as if they had been tested on different clips would be too narrow
    narrow = bootstrap_ci([(labels, m) for m in models], 3, metric)
    assert high - low > 1.3 * (narrow[1] - narrow[0])


def test_interval_of_one_model_is_that_of_its_scores() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=200)
    model = guesses(rng, labels, rng.random(200) < 0.5)
    want = bootstrap_ci([(labels, model)], 3, "war", resamples=20_000)
    assert mean_interval(labels, [model], "war", resamples=20_000) == pytest.approx(want, abs=0.6)


def test_interval_covers_the_mean_of_all_clips() -> None:
    rng, covered = np.random.default_rng(1), 0
    for trial in range(300):
        labels = np.repeat(np.arange(3), [60, 30, 20])
        easy = rng.random(len(labels)) < 0.6
        models = [guesses(rng, labels, easy) for _ in range(5)]
        low, high = mean_interval(labels, models, "uar", resamples=300, seed=trial)
        covered += low <= 100 * (0.6 * 0.95 + 0.4 * 0.3) <= high
    assert 0.91 <= covered / 300 <= 0.98
