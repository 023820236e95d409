"""How far a model's probabilities can be trusted: calibration, and abstention by confidence.

The confidence of a prediction is the largest of the clip's probabilities. All errors are shares in
0..1, not percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dfer_dist.evaluation.metrics import Ints, confusion, top_class
from dfer_dist.runs.calibration import CalibrationScores, CalibrationSummary

Floats = NDArray[np.float64]

BINS = 15
COVERAGES = (0.8, 0.9)
_AT_ONCE = 100  # resamples
_MAX_LOG_TEMPERATURE = math.log(100.0)


@dataclass(frozen=True)
class Outputs:
    """Labels and logits of a table of predictions.

    Attributes
    ----------
    labels : int64 [N]
        The truth, in 0..C-1.
    logits : float64 [N, C]

    Raises
    ------
    ValueError
        From :func:`~dfer_dist.evaluation.metrics.confusion` and
        :func:`~dfer_dist.evaluation.metrics.top_class`.
    """

    labels: Ints
    logits: Floats

    def __post_init__(self) -> None:
        confusion(self.labels, top_class(self.logits), self.logits.shape[1])

    @classmethod
    def of(cls, labels: ArrayLike, logits: ArrayLike) -> Outputs:
        """Return the table of arrays of any type."""
        return cls(np.asarray(labels, np.int64), np.asarray(logits, np.float64))

    @cached_property
    def log_probabilities(self) -> Floats:
        """Logarithms of the softmax, float64 [N, C]."""
        return log_softmax(self.logits)

    @cached_property
    def confidence(self) -> Floats:
        """Largest probability of each clip, float64 [N]."""
        return np.exp(self.log_probabilities.max(1))

    @cached_property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether the most probable class is the label, bool [N]."""
        return top_class(self.logits) == self.labels

    @cached_property
    def nll(self) -> Floats:
        """Negative log likelihood of the label of each clip, float64 [N], in nats."""
        return -self.log_probabilities[np.arange(len(self.labels)), self.labels]

    @cached_property
    def brier(self) -> Floats:
        """Sum over the classes of the squared errors of each clip's probabilities, float64 [N].

        Their mean is the score of Brier, "Verification of forecasts expressed in terms of
        probability", Monthly Weather Review 78 (1950): between 0 and 2.
        """
        errors = np.exp(self.log_probabilities)
        errors[np.arange(len(self.labels)), self.labels] -= 1
        return np.asarray((errors**2).sum(1))

    def scaled(self, temperature: float) -> Outputs:
        """Return the same with logits divided by ``temperature``."""
        return Outputs(self.labels, self.logits / temperature)


@dataclass(frozen=True)
class Bin:
    """Clips of about equal confidence: how many, their mean confidence and their accuracy."""

    clips: int
    confidence: float
    accuracy: float


def log_softmax(logits: Floats) -> Floats:
    """Return the logarithms of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def bin_numbers(confidence: Floats, equal_mass: bool) -> Ints:
    """Return the bin of each clip, int64 [N] in 0..BINS-1.

    Bins of equal width are ((b-1)/B, b/B], those of equal mass hold N/B clips each, up to one.
    """
    if not equal_mass:
        return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    ranks = np.empty(len(confidence), np.int64)
    ranks[np.argsort(confidence, kind="stable")] = np.arange(len(confidence))
    return ranks * BINS // len(confidence)


def reliability(outputs: Outputs, equal_mass: bool = False) -> list[Bin]:
    """Return the bins that hold clips, by rising confidence: a reliability diagram."""
    numbers = bin_numbers(outputs.confidence, equal_mass)
    clips = np.bincount(numbers, minlength=BINS)
    confidence = np.bincount(numbers, outputs.confidence, BINS)
    correct = np.bincount(numbers, outputs.is_correct, BINS)
    return [
        Bin(int(n), float(total / n), float(right / n))
        for n, total, right in zip(clips, confidence, correct, strict=True)
        if n
    ]


def risk_coverage(outputs: Outputs) -> Floats:
    """Return the share of errors among the k most confident clips for k = 1..N, float64 [N].

    References
    ----------
    Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.
    """
    order = np.argsort(-outputs.confidence, kind="stable")
    wrong = np.cumsum(~outputs.is_correct[order])
    return np.asarray(wrong / np.arange(1, len(order) + 1))


def score_calibration(outputs: Outputs) -> CalibrationScores:
    """Return the scores of one table."""
    (scores,) = _Scorer(outputs).score(np.ones((1, len(outputs.labels))))
    return CalibrationScores(*scores.tolist())


def summarize_calibration(
    tables: Sequence[Outputs], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> CalibrationSummary:
    """Return the means of the scores over folds, with bootstrap intervals.

    Clips are drawn within fold and class. The intervals are the percentiles of the resampled
    scores. That of ``squared_error`` is the basic interval around the unbiased estimate, from the
    distances of resampled estimates to the biased error of the table, which is the truth of the
    resamples; its lower bound is at least 0. In simulations of 140 to 2,000 clips they held the
    truth in 88 to 96 of 100 tables, that of ``squared_error`` in 93 to 100, but a percentile
    interval of ``ece`` in 0 to 95: it has none, its bounds are None.

    Parameters
    ----------
    tables : sequence of Outputs
        One for each fold.

    References
    ----------
    Efron & Tibshirani, An Introduction to the Bootstrap (1993), sections 13.3 and 13.4.
    """
    rng = np.random.default_rng(seed)
    scorers = [_Scorer(table) for table in tables]
    values = [astuple(score_calibration(table)) for table in tables]
    mean = CalibrationScores(*np.mean(values, axis=0).tolist())
    drawn = np.mean([scorer.resample(rng, resamples) for scorer in scorers], axis=0)
    tail = 50.0 * (1.0 - level)
    bounds = np.percentile(drawn, [tail, 100.0 - tail], axis=0)
    names = [field.name for field in fields(CalibrationScores)]
    squared = names.index("squared_error")
    biased = np.mean([scorer.biased_squared_error for scorer in scorers])
    bounds[:, squared] = np.maximum(mean.squared_error - (bounds[::-1, squared] - biased), 0)
    low, high = (dict(zip(names, bound, strict=True)) for bound in bounds.tolist())
    unknown = {"ece": None, "ece_equal_mass": None}
    return CalibrationSummary(mean, {**low, **unknown}, {**high, **unknown})


class _Scorer:
    """Scores of resamples of a table, given by weights [R, N]: how often each clip was drawn."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs, self.clips = outputs, len(outputs.labels)
        self.order = np.argsort(-outputs.confidence, kind="stable")
        self.bins = [bin_numbers(outputs.confidence, equal_mass) for equal_mass in (False, True)]
        self.classes = [np.flatnonzero(outputs.labels == c) for c in np.unique(outputs.labels)]

    def resample(self, rng: np.random.Generator, count: int) -> Floats:
        """Return the scores of ``count`` resamples, float64 [count, scores]."""
        sizes = [min(_AT_ONCE, count - done) for done in range(0, count, _AT_ONCE)]
        return np.concatenate([self.score(self.draw(rng, size)) for size in sizes])

    def draw(self, rng: np.random.Generator, count: int) -> Floats:
        """Draw as many clips of each class as there are, ``count`` times; return the weights."""
        starts = self.clips * np.arange(count)[:, None]
        drawn = [
            (starts + rows[rng.integers(len(rows), size=(count, len(rows)))]).ravel()
            for rows in self.classes
        ]
        counts = np.bincount(np.concatenate(drawn), minlength=count * self.clips)
        return counts.reshape(count, -1).astype(np.float64)

    def score(self, weights: Floats) -> Floats:
        """Return the scores of each resample in the order of their fields, float64 [R, scores]."""
        outputs, n = self.outputs, self.clips
        sorted_weights = weights[:, self.order]
        covered = sorted_weights.cumsum(1)
        wrong = (sorted_weights * ~outputs.is_correct[self.order]).cumsum(1)
        risk = wrong / np.maximum(covered, 1)
        # of the clip with which the share is reached
        kept = [np.argmax(covered >= math.ceil(share * n), axis=1) for share in COVERAGES]
        width, mass = (self._gaps(weights, numbers) for numbers in self.bins)
        scores = {
            "nll": weights @ outputs.nll / n,
            "brier": weights @ outputs.brier / n,
            "ece": (width.share * abs(width.gap)).sum(1),
            "ece_equal_mass": (mass.share * abs(mass.gap)).sum(1),
            "squared_error": (mass.share * (mass.gap**2 - mass.variance)).sum(1),
            "risk_coverage_area": (sorted_weights * risk).sum(1) / n,
            "accuracy_80": 1 - risk[np.arange(len(risk)), kept[0]],
            "accuracy_90": 1 - risk[np.arange(len(risk)), kept[1]],
        }
        return np.stack([scores[field.name] for field in fields(CalibrationScores)], axis=1)

    @property
    def biased_squared_error(self) -> float:
        bins = self._gaps(np.ones((1, self.clips)), self.bins[1])
        return float((bins.share * bins.gap**2).sum())

    def _gaps(self, weights: Floats, numbers: Ints) -> _Gaps:
        inside = np.eye(BINS)[numbers]
        clips = weights @ inside
        confidence = weights @ (inside * self.outputs.confidence[:, None])
        correct = weights @ (inside * self.outputs.is_correct[:, None])
        at_least_one = np.maximum(clips, 1)
        accuracy = correct / at_least_one
        # of the accuracy, without bias; a single clip tells nothing of it
        variance = accuracy * (1 - accuracy) / np.maximum(clips - 1, 1)
        return _Gaps(clips / self.clips, accuracy - confidence / at_least_one, variance)


@dataclass(frozen=True)
class _Gaps:
    """Bins: their share of the clips, accuracy minus confidence, its variance; [R, BINS] each."""

    share: Floats
    gap: Floats
    variance: Floats


def fit_temperature(outputs: Outputs) -> float:
    """Return the temperature by which logits are divided for the least negative log likelihood.

    Fit it on validation clips. It is searched in 0.01 to 100.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return float(outputs.scaled(math.exp(log_temperature)).nll.mean())

    bounds = (-_MAX_LOG_TEMPERATURE, _MAX_LOG_TEMPERATURE)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))
