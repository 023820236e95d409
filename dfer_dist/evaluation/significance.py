"""Significance of the difference between two models on the same test clips.

Everything is computed from three numbers for each fold and true class: clips, clips that only the
second model has right (gained), clips that only the first has right (lost). All differences are
second minus first. UAR, WAR and recall of a class are sums of gained minus lost with fixed
weights, so one set of resamples gives all of them. ``docs/reference/report-formulas.md`` has
the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfer_dist.evaluation.metrics import Ints

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Clips, gained and lost ones, int64 [K, C], by fold and true class."""

    clips: Ints
    gained: Ints
    lost: Ints


@dataclass(frozen=True)
class Difference:
    """A difference in percent points, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Return whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class TTest:
    """Corrected resampled t-test over folds.

    ``t`` and ``p`` are None if all folds differ by the same amount.
    """

    mean: float
    t: float | None
    p: float | None
    df: int


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of the clips that only one of two models has right."""

    gained: int
    lost: int
    p: float


def pair(tables: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]], num_classes: int) -> Pairs:
    """Count the clips that only one of two models has right.

    Parameters
    ----------
    tables : sequence of (labels int [N], first int [N], second int [N])
        The truth and both predictions of the same clips, in 0..C-1; one for each fold.

    Raises
    ------
    ValueError
        No fold, a fold without clips, or lists of different lengths.
    """
    rows = []
    for truth, first, second in tables:
        labels, a, b = (np.asarray(x, dtype=np.int64) for x in (truth, first, second))
        if not labels.size or labels.ndim != 1 or not labels.shape == a.shape == b.shape:
            raise ValueError(
                f"labels {labels.shape} and predictions {a.shape}, {b.shape} must be lists of the "
                "same length"
            )
        a, b = a == labels, b == labels
        groups = (labels, labels[b & ~a], labels[a & ~b])
        rows.append([np.bincount(g, minlength=num_classes) for g in groups])
    if not rows:
        raise ValueError("no fold to compare")
    clips, gained, lost = np.moveaxis(np.array(rows, dtype=np.int64), 1, 0)
    return Pairs(clips, gained, lost)


def weights(pairs: Pairs) -> dict[str, Floats]:
    """Return what a gained clip adds to ``uar`` and ``war``, in percent points, float64 [K, C].

    Both are means over folds. A fold's UAR is the mean over its classes, so a clip of a rare class
    weighs more.
    """
    n = pairs.clips
    folds, present = len(n), (n > 0).sum(1, keepdims=True)
    per_class = np.divide(100.0 / folds / present, n, out=np.zeros(n.shape), where=n > 0)
    per_clip = np.broadcast_to(100.0 / folds / n.sum(1, keepdims=True), n.shape)
    return {"uar": per_class, "war": per_clip}


def class_weights(pairs: Pairs) -> Floats:
    """Return the weights for the recall of each class, folds pooled, float64 [C, K, C].

    They are zero for a class without clips.
    """
    total = pairs.clips.sum(0)
    out = np.zeros((len(total), *pairs.clips.shape))
    for c in np.flatnonzero(total):
        out[c, :, c] = 100.0 / total[c]
    return out


def differences(
    pairs: Pairs,
    linear: Sequence[Floats],
    resamples: int = 4000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Difference]:
    """Return differences with intervals by a paired bootstrap.

    Clips are drawn within fold and class, a clip with both its predictions.

    Of the n clips of a fold and class, g are gained and l are lost. Drawing n of them with
    replacement makes the numbers of gained and lost ones multinomial, and every difference depends
    on a draw through these only.

    A plain percentile interval is too narrow where a fold has few clips of a class, or few clips
    differ at all: in simulations of null differences it left out zero up to 11 times in a hundred.
    Two well-known corrections bring that to 3 to 7 where six clips or more differ, and below where
    fewer do: a stratum's deviations are multiplied by sqrt(n / (n - 1)), and the proportions that
    are drawn from have half a gained and half a lost clip more, spread over the strata by their
    size.

    Parameters
    ----------
    linear : sequence of float [K, C]
        As :func:`weights` and :func:`class_weights` give.

    References
    ----------
    Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13. Rao & Wu,
    "Resampling inference with complex survey data", JASA 83 (1988): the factor. Agresti & Min,
    "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine
    24 (2005): half a clip in each cell.
    """
    n, rng = pairs.clips, np.random.default_rng(seed)
    extra = n / n.sum()  # a clip over all strata
    safe = np.maximum(n, 1)
    gained, lost = ((x + extra / 2) / (safe + extra) for x in (pairs.gained, pairs.lost))
    shares = np.stack([gained, lost, np.maximum(1.0 - gained - lost, 0.0)], axis=-1)
    drawn = rng.multinomial(n, shares, size=(resamples, *n.shape))
    factor = np.sqrt(safe / np.maximum(n - 1, 1))
    deviations = ((drawn[..., 0] - drawn[..., 1]) - n * (gained - lost)) * factor
    matrix = np.stack([w.ravel() for w in linear])
    values = matrix @ (pairs.gained - pairs.lost).ravel()
    tail = 50.0 * (1.0 - level)
    resampled = deviations.reshape(resamples, -1) @ matrix.T
    low, high = np.percentile(resampled, [tail, 100.0 - tail], axis=0)
    bounds = zip(values, values + low, values + high, strict=True)
    return [Difference(*map(float, row)) for row in bounds]


def corrected_t(by_fold: ArrayLike, test_to_train: float) -> TTest:
    """Return the corrected resampled t-test of the differences over folds, two-sided.

    Training sets of folds overlap, so their differences are not independent, and a plain t-test
    finds too much. With J folds, mean m and sample variance s2 of the differences, t = m / sqrt((1
    / J + n_test / n_train) s2) has J - 1 degrees of freedom.

    Parameters
    ----------
    by_fold : float [J]
        Two or more.
    test_to_train : float
        n_test / n_train, in clips.

    Raises
    ------
    ValueError
        Fewer than two folds.

    References
    ----------
    Nadeau & Bengio, "Inference for the generalization error", Machine Learning 52 (2003). Its use
    in cross-validation: Bouckaert & Frank, "Evaluating the replicability of significance tests for
    comparing learning algorithms", PAKDD 2004.
    """
    from scipy.stats import t as student

    values = np.asarray(by_fold, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError("a t-test over folds needs two folds or more")
    mean, df = float(values.mean()), len(values) - 1
    error = math.sqrt((1 / len(values) + test_to_train) * values.var(ddof=1))
    if error <= 1e-12 * max(1.0, abs(mean)):  # the same in every fold but for rounding
        return TTest(mean, 0.0, 1.0, df) if abs(mean) < 1e-12 else TTest(mean, None, None, df)
    return TTest(mean, mean / error, float(2 * student.sf(abs(mean / error), df)), df)


def mcnemar(gained: int, lost: int) -> McNemar:
    """Test whether as many clips are gained as lost: McNemar's exact test, two-sided.

    Its mid-p version and chi-square find a little more, and too much: with 100 discordant clips
    mid-p calls 5.7 of a hundred null differences significant at 0.05. The exact test's error is
    below 5 for every number; the price is small where many clips differ.

    References
    ----------
    McNemar, Psychometrika 12 (1947). Fagerland, Lydersen & Laake, "The McNemar test for binary
    matched-pairs data: mid-p and asymptotic are better than exact conditional", BMC Medical
    Research Methodology 13 (2013), who weigh the same facts otherwise.
    """
    from scipy.stats import binomtest

    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return McNemar(gained, lost, float(p))


@dataclass(frozen=True)
class Chance:
    """Scores of guessing in percent, and the probability that a guess is as good or better."""

    war: float
    war_p: float
    uar: float
    uar_p: float


def against_chance(
    labels: ArrayLike,
    predictions: ArrayLike,
    num_classes: int,
    permutations: int = 9999,
    seed: int = 0,
) -> Chance:
    """Compare one table of predictions with guessing.

    WAR against always the commonest class, which no blind guess betters (its share is 1 / C or
    more): the exact binomial test, one-sided. UAR against 1 / C': the predictions are given to the
    clips in random orders, which leaves them independent of the labels, and p is the share of
    orders whose UAR is as high, with the one that was seen counted among them. C' are the classes
    that occur in the truth, over which UAR is the mean. Both take clips as independent; those of
    one video or person are not, and p is then too small.

    Parameters
    ----------
    labels, predictions : int [N], in 0..C-1
    permutations : int
        Random orders; p of UAR is at least 1 / (permutations + 1).

    References
    ----------
    Phipson & Smyth, "Permutation p-values should never be zero", Statistical Applications in
    Genetics and Molecular Biology 9 (2010).
    """
    from scipy.stats import binomtest

    truth, said = (np.asarray(x, dtype=np.int64) for x in (labels, predictions))
    support = np.bincount(truth, minlength=num_classes)
    present, rng = np.flatnonzero(support), np.random.default_rng(seed)

    def recalls(order: Ints) -> float:
        right = np.bincount(truth[truth == order], minlength=num_classes)
        return float((right[present] / support[present]).mean())

    seen = recalls(said) - 1e-12
    as_high = sum(recalls(rng.permutation(said)) >= seen for _ in range(permutations))
    share, right = float(support.max() / len(truth)), int((truth == said).sum())
    war_p = float(binomtest(right, len(truth), share, alternative="greater").pvalue)
    return Chance(100 * share, war_p, 100 / len(present), (as_high + 1) / (permutations + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's (1979) corrected p-values of several tests.

    One in twenty families of tests has a false finding below 0.05.
    """
    values, order = np.array(p, dtype=np.float64), np.argsort(p, kind="stable")
    scaled = values[order] * np.arange(len(p), 0, -1)
    values[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(value) for value in values]
