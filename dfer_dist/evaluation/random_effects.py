"""What varies in scores of several seeds and folds, and how sure their mean is.

The score of seed s in fold k is taken as mean + seed effect + fold effect + rest, all random:
crossed random effects with one observation in each cell. All seeds are tested on the same clips of
a fold, so the choice of clips is a part of the fold effect, as far as all seeds get the same clips
right, and otherwise a part of the rest. Those parts are computed from the predictions.
``docs/reference/report-formulas.md`` has the formulas and the coverage of the intervals.

References
----------
Searle, Casella & McCulloch, Variance Components (1992), chapter 4: the analysis of variance and its
estimates. Satterthwaite, "An approximate distribution of estimates of variance components",
Biometrics Bulletin 2 (1946): degrees of freedom. Nadeau & Bengio, "Inference for the generalization
error", Machine Learning 52 (2003): folds whose training sets overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dfer_dist.evaluation.metrics import Ints
from dfer_dist.evaluation.significance import Difference, Floats


class ClipVariance(NamedTuple):
    """The variance of a fold's score by the choice of its clips, in squared percent points.

    ``own`` is that of a seed, mean over seeds; ``shared`` is the part that all seeds have in
    common: the covariance of two seeds, mean over pairs.
    """

    own: float
    shared: float


@dataclass(frozen=True)
class Components:
    """Variances of the score of one seed in one fold, in squared percent points.

    Attributes
    ----------
    clips : float
        By the choice of the test clips.
    fold : float or None
        By what else differs between folds: their training clips, how hard they are. None for a
        single fold, whose score hides it.
    seed : float or None
        By what a seed does to all folds alike; None for a single fold.
    training : float
        By the seed in each fold alone. In a single fold it includes ``seed``.
    """

    clips: float
    fold: float | None
    seed: float | None
    training: float

    @property
    def total(self) -> float:
        """The sum of all."""
        return self.clips + (self.fold or 0.0) + (self.seed or 0.0) + self.training


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and folds with its 95 % interval.

    ``df`` are the degrees of freedom of t, ``p`` is the two-sided probability of a mean so far from
    zero; None if the scores do not vary at all.
    """

    interval: Difference
    df: float
    p: float | None


def clip_variance(right: Floats, labels: Ints, metric: str) -> ClipVariance:
    """Return the variance of UAR or WAR of a fold by the choice of clips within its classes.

    Parameters
    ----------
    right : float [S, N]
        Whether each of S seeds has a clip right, 1 or 0; for a difference, that of two models.
    labels : int [N]
        The class of each clip. One with a single clip has no variance.
    metric : {'uar', 'war'}

    Returns
    -------
    ClipVariance
        The sampling variance of a stratified mean, with the sample variance within each class.
    """
    seeds, classes = len(right), np.unique(labels)
    covariance = np.zeros((seeds, seeds))
    for c in classes:
        clips = right[:, labels == c]
        n = clips.shape[1]
        share = n / len(labels)
        if metric == "uar":
            share = 1 / len(classes)
        if n > 1:
            covariance += (100 * share) ** 2 / n * np.cov(clips).reshape(seeds, seeds)
    own = float(np.diagonal(covariance).mean())
    shared = float(covariance.sum() - seeds * own) / max(1, seeds * (seeds - 1))
    return ClipVariance(own, max(0.0, shared))


class _Squares(NamedTuple):
    """Mean squares of the analysis of variance of scores [S, K]."""

    seed: float
    fold: float
    rest: float


def _mean_squares(scores: Floats) -> _Squares:
    seeds, folds = scores.shape
    by_seed, by_fold = scores.mean(1, keepdims=True), scores.mean(0, keepdims=True)
    rest = scores - by_seed - by_fold + scores.mean()
    return _Squares(
        folds * float(by_seed.var(ddof=1)),
        seeds * float(by_fold.var(ddof=1)),
        float((rest**2).sum()) / ((seeds - 1) * (folds - 1)),
    )


def components(scores: Floats, clips: Sequence[ClipVariance]) -> Components:
    """Return the variance components of scores by the method of moments; negative ones are 0.

    Parameters
    ----------
    scores : float [S, K]
        Of S seeds (2 or more) in K folds, in percent.
    clips : sequence of K ClipVariance
    """
    seeds, folds = scores.shape
    own, shared = (float(np.mean(part)) for part in zip(*clips, strict=True))
    if folds == 1:
        rest = float(scores.var(ddof=1))
        return Components(own, None, None, max(0.0, rest - (own - shared)))
    squares = _mean_squares(scores)
    return Components(
        clips=own,
        fold=max(0.0, (squares.fold - squares.rest) / seeds - shared),
        seed=max(0.0, (squares.seed - squares.rest) / folds),
        training=max(0.0, squares.rest - (own - shared)),
    )


def mean_interval(
    scores: Floats, clips: Sequence[ClipVariance], test_to_train: float, num_clips: int
) -> Mean:
    """Return the mean of scores over seeds and folds with a 95 % t-interval.

    It speaks of other seeds, test clips and training clips. Its variance is estimated as
    (F + max(0, E - R)) / (S K), with the mean squares F of folds, or R if that is larger, E of
    seeds and R of the rest; and as training sets of folds overlap, the component of folds without
    the clips' part counts n_test / n_train more.

    Parameters
    ----------
    scores : float [S, K]
        Of S seeds (2 or more), or differences of two models with the same seed and fold.
    clips : sequence of K ClipVariance
    test_to_train : float
        n_test / n_train, in clips.
    num_clips : int
        Test clips of the fold, for the degrees of freedom where there is only one.
    """
    from scipy.stats import t as student

    seeds, folds = scores.shape
    shared = float(np.mean([clip.shared for clip in clips]))
    if folds == 1:
        # of the seeds, and of the clips that they share
        parts = [(float(scores.var(ddof=1)) / seeds, seeds - 1), (shared, max(1, num_clips - 1))]
        overlap = 0.0
    else:
        squares, cells = _mean_squares(scores), seeds * folds
        parts = [(max(squares.fold, squares.rest) / cells, folds - 1)]
        if squares.seed > squares.rest:
            parts.append((squares.seed / cells, seeds - 1))
            parts.append((-squares.rest / cells, (seeds - 1) * (folds - 1)))
        between = (squares.fold - squares.rest) / seeds - shared
        overlap = test_to_train * max(0.0, between)
    mean, variance = float(scores.mean()), sum(part for part, _ in parts)
    if variance + overlap <= 1e-20 * max(1.0, mean**2):
        return Mean(Difference(mean, mean, mean), math.inf, None)
    df = float(folds - 1)
    if variance > 0:
        df = variance**2 / sum(part**2 / d for part, d in parts)
    error = math.sqrt(variance + overlap)
    half = float(student.ppf(0.975, df)) * error
    p = float(2 * student.sf(abs(mean) / error, df))
    return Mean(Difference(mean, mean - half, mean + half), float(df), p)
