"""Scores and confusion matrix of a table of predictions, and intervals of means over folds.

UAR (unweighted average recall) is the mean of the recalls of the classes that occur in the truth.
WAR (weighted average recall) is accuracy. F1 of a class is the harmonic mean of its precision and
its recall; macro F1 is its mean over the classes that occur in the truth, weighted F1 the mean
weighted by their clips. Top-2 accuracy is the share of clips whose label has one of the two highest
logits. All are in percent everywhere, but for Cohen's kappa, which is in -1..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfer_dist.runs.records import METRICS, Scores

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def top_class(logits: ArrayLike) -> Ints:
    """Return the predicted class of each clip; of equal logits the lower class counts.

    Parameters
    ----------
    logits : float [N, C]

    Returns
    -------
    int64 [N]

    Raises
    ------
    ValueError
        Not a matrix, or a logit that is not finite (argmax would quietly pick a NaN).
    """
    values = np.asarray(logits)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"logits must be a matrix of clips x classes, not of shape {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise ValueError(f"logits of {bad.size} clip(s) are not finite, the first in row {bad[0]}")
    return values.argmax(axis=1).astype(np.int64)


def in_top_two(labels: ArrayLike, logits: ArrayLike) -> NDArray[np.bool_]:
    """Return whether the label of each clip has one of the two highest logits, bool [N].

    Of equal logits the lower class counts, as for :func:`top_class`. scikit-learn's
    ``top_k_accuracy_score`` takes the higher one; without equal logits its mean is the same.

    Parameters
    ----------
    labels : int [N]
        The truth, in 0..C-1.
    logits : float [N, C]

    Raises
    ------
    ValueError
        As :func:`top_class` and :func:`confusion`.
    """
    values = np.asarray(logits)
    truth, _ = _checked(labels, top_class(values), values.shape[1])
    two = np.argsort(-values, axis=1, kind="stable")[:, :2]
    return np.asarray((two == truth[:, None]).any(axis=1))


def confusion(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> Ints:
    """Return the confusion matrix, int64 [C, C]: rows are the truth, columns the prediction.

    Parameters
    ----------
    labels, predictions : int [N]
        Classes in 0..C-1.

    Raises
    ------
    ValueError
        No clip, lengths that differ, or a class outside 0..C-1.
    """
    truth, predicted = _checked(labels, predictions, num_classes)
    counts = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def score(labels: ArrayLike, outputs: ArrayLike, classes: Sequence[str]) -> Scores:
    """Return the scores of one table of predictions.

    Parameters
    ----------
    labels : int [N]
        The truth, in 0..C-1.
    outputs : float [N, C] or int [N]
        Logits, or the predicted classes themselves.
    classes : sequence of str
        The C class names in label order.

    Raises
    ------
    ValueError
        No clip, shapes that do not fit, a class outside 0..C-1, logits that are not finite.
    """
    values, count = np.asarray(outputs), len(classes)
    if values.ndim == 2 and values.shape[1] != count:
        raise ValueError(f"logits have {values.shape[1]} columns for {count} classes")
    matrix = confusion(labels, _predictions(labels, values), count)
    support, correct, predicted = matrix.sum(axis=1), matrix.diagonal(), matrix.sum(axis=0)
    top2 = None
    if values.ndim == 2 and count > 2:
        top2 = 100.0 * float(in_top_two(labels, values).mean())
    recall = {
        c: 100.0 * int(k) / int(n) if n else None
        for c, k, n in zip(classes, correct, support, strict=True)
    }
    present = [r for r in recall.values() if r is not None]
    f1 = f1_of_classes(correct, predicted, support)[support > 0]
    return Scores(
        n=int(support.sum()),
        uar=float(np.mean(present)),
        war=100.0 * int(correct.sum()) / int(support.sum()),
        recall=recall,
        support={c: int(n) for c, n in zip(classes, support, strict=True)},
        confusion=matrix.tolist(),
        classes=list(classes),
        absent=[c for c, r in recall.items() if r is None],
        macro_f1=100.0 * float(f1.mean()),
        weighted_f1=100.0 * float(np.average(f1, weights=support[support > 0])),
        top2=top2,
        kappa=float(cohens_kappa(correct, predicted, support)),
    )


def metric_values(scores: Scores) -> dict[str, float]:
    """Return the metrics of a table by name, those that were computed.

    Names are those of :data:`~dfer_dist.runs.records.METRICS` and of ``MULTILABEL_METRICS``.
    """
    values = {metric: getattr(scores, metric) for metric in (*METRICS, "mean_ap", "auc")}
    if scores.multilabel:
        values |= {f"multilabel_{name}": x for name, x in vars(scores.multilabel).items()}
    return {metric: value for metric, value in values.items() if value is not None}


def f1_of_classes(correct: ArrayLike, predicted: ArrayLike, support: ArrayLike) -> Floats:
    """Return F1 of each class, in 0..1.

    Parameters
    ----------
    correct, predicted, support : int [..., C]
        Clips of a class that are right, clips predicted as it, clips that are of it.

    Returns
    -------
    float64 [..., C]
        0 for a class that is neither predicted nor true.
    """
    both = np.add(predicted, support)
    return 2.0 * np.asarray(correct) / np.maximum(both, 1)


def cohens_kappa(correct: ArrayLike, predicted: ArrayLike, support: ArrayLike) -> Floats:
    """Return Cohen's kappa of truth and prediction, in -1..1.

    It is (p - e) / (1 - e), with p the share of clips that are right, and e the share if the same
    predictions were given to clips at random.

    Parameters
    ----------
    correct, predicted, support : int [..., C]
        Clips of a class that are right, clips predicted as it, clips that are of it.

    Returns
    -------
    float64 [...]
        0 where all clips are of one class and predicted as it: scikit-learn has no value there.

    References
    ----------
    Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological
    Measurement 20 (1960).
    """
    clips = np.sum(support)
    right = np.sum(correct, axis=-1) / clips
    by_chance = np.sum(np.multiply(predicted, support), axis=-1) / clips**2
    possible = 1.0 - by_chance
    return np.asarray(
        np.divide(right - by_chance, possible, out=np.zeros_like(right), where=possible > 0)
    )


def bootstrap_ci(
    tables: Sequence[tuple[ArrayLike, ArrayLike]],
    num_classes: int,
    metric: str,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over folds of a metric.

    Clips are drawn within fold and class. Of n clips of a class in a fold, k are right. n clips
    drawn with replacement are n independent trials with probability k/n, so the number of right
    ones is Binomial(n, k/n), and UAR and WAR depend on these numbers only; top-2 accuracy is the
    WAR where each of the two classes counts as the prediction. Drawing the numbers is the same
    bootstrap in distribution, at a cost that does not grow with the clips.

    The interval covers the choice of test clips, not of the training seed. A class whose clips are
    all right or all wrong has no spread.

    Parameters
    ----------
    tables : sequence of (labels int [N], outputs)
        One for each fold. Outputs are logits or, not for ``top2``, the predicted classes.
    metric : str
        Of :data:`~dfer_dist.runs.records.METRICS`; the bounds are in its unit.

    Raises
    ------
    ValueError
        No fold, an unknown metric, or what :func:`top_class` and :func:`confusion` refuse.

    References
    ----------
    Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3 (percentile interval).
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, not '{metric}'")
    if not tables:
        raise ValueError("no fold to draw from")
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for labels, outputs in tables:
        truth, predicted = _checked(labels, _predictions(labels, outputs, metric), num_classes)
        resample = _resample if metric in ("uar", "war", "top2") else _resample_counts
        total += resample(rng, truth, predicted, metric, resamples)
    if METRICS[metric].is_percent:
        total *= 100.0
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(total / len(tables), [tail, 100.0 - tail])
    return float(low), float(high)


def _predictions(labels: ArrayLike, outputs: ArrayLike, metric: str = "") -> NDArray[Any]:
    """Return the predicted classes; for ``top2`` the labels that have one of the two top logits."""
    values = np.asarray(outputs)
    if metric == "top2":
        others = (np.asarray(labels) + 1) % values.shape[1]
        return np.where(in_top_two(labels, values), labels, others)
    return top_class(values) if values.ndim == 2 else values


def _resample(
    rng: np.random.Generator, truth: Ints, predicted: Ints, metric: str, resamples: int
) -> Floats:
    """Return UAR, or WAR for other metrics, of each resample of a fold, in 0..1."""
    support = np.bincount(truth)
    correct = np.bincount(truth[truth == predicted], minlength=len(support))
    # k correct ones of n clips of each class that has clips
    n, k = support[support > 0], correct[support > 0]
    drawn = rng.binomial(n, k / n, size=(resamples, n.size))
    scores = (drawn / n).mean(axis=1) if metric == "uar" else drawn.sum(axis=1) / n.sum()
    return np.asarray(scores)


def _resample_counts(
    rng: np.random.Generator, truth: Ints, predicted_classes: Ints, metric: str, resamples: int
) -> Floats:
    """Return macro F1, weighted F1 or kappa of each resample of a fold, F1 in 0..1.

    They depend on how often each class is predicted too, so the predictions of a class are drawn
    from the multinomial distribution of its row of the confusion matrix.
    """
    matrix = confusion(truth, predicted_classes, 1 + max(truth.max(), predicted_classes.max()))
    support = matrix.sum(axis=1)
    present = np.flatnonzero(support)
    predicted = np.zeros((resamples, len(matrix)))
    correct = np.zeros_like(predicted)
    for label in present:
        # most classes are never predicted for clips of this one
        columns = np.flatnonzero(matrix[label])
        shares = matrix[label, columns] / support[label]
        drawn = rng.multinomial(support[label], shares, size=resamples)
        predicted[:, columns] += drawn
        correct[:, label] = drawn[:, columns == label].sum(axis=1)
    if metric == "kappa":
        return cohens_kappa(correct, predicted, support)
    f1 = f1_of_classes(correct, predicted, support)[:, present]
    weights = None if metric == "macro_f1" else support[present]
    return np.asarray(np.average(f1, axis=1, weights=weights))


def _checked(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> tuple[Ints, Ints]:
    truth, predicted = np.asarray(labels), np.asarray(predictions)
    if truth.ndim != 1 or truth.shape != predicted.shape:
        raise ValueError(
            f"labels {truth.shape} and predictions {predicted.shape} must be of the same length"
        )
    if truth.size == 0:
        raise ValueError("no clip to score")
    for name, values in (("label", truth), ("prediction", predicted)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name}s must be integers, not {values.dtype}")
        bad = np.flatnonzero((values < 0) | (values >= num_classes))
        if bad.size:
            raise ValueError(
                f"{name} {values[bad[0]]} in row {bad[0]} is outside 0..{num_classes - 1}"
            )
    return truth.astype(np.int64), predicted.astype(np.int64)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of ``correct`` of ``n`` clips, in percent.

    It holds for a handful of clips too, and where all or none are correct.

    References
    ----------
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    from scipy.stats import binomtest

    bounds = binomtest(correct, n).proportion_ci(method="wilson")
    return 100.0 * bounds.low, 100.0 * bounds.high


def left_out_text(lost: int, tested: int) -> str:
    """Return how many clips the data lacks, such as ``2 of 10 test clips left out``."""
    return f"{lost} of {lost + tested} test clips left out when the data was packed"


def other_classes_text(left_out: Mapping[str, int]) -> str:
    """Return which clips of classes that the model lacks were left out.

    Such as ``7 clips of classes that the model lacks were left out (awe 2, contempt 5)``.
    """
    classes = ", ".join(f"{name} {count}" for name, count in left_out.items())
    return (
        f"{sum(left_out.values())} clips of classes that the model lacks were left out ({classes})"
    )
