"""Scores of probabilities, as ``result.json`` and ``summary.json`` hold them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CalibrationScores:
    """Scores of the probabilities of one table or, as means, of several folds.

    Attributes
    ----------
    nll : float
        Mean negative log likelihood of the labels, in nats.
    brier : float
        Mean over clips of the sum over classes of squared errors (Brier, Monthly Weather Review 78,
        1950): between 0 and 2.
    ece, ece_equal_mass : float
        Expected calibration error: the mean over clips of the distance between accuracy and mean
        confidence of their bin, with 15 bins of equal width (Guo et al., "On Calibration of Modern
        Neural Networks", ICML 2017, equation 3) or of equal mass (Nixon et al., CVPR Workshops
        2019). It is biased: a perfectly calibrated model of a few hundred clips has 0.07.
    squared_error : float
        Mean over clips of the squared distance in bins of equal mass, without bias: it can be
        negative (Kumar et al., "Verified Uncertainty Calibration", NeurIPS 2019, definition 5.1).
    risk_coverage_area : float
        Mean over k of the share of errors among the k most confident clips (Geifman et al., ICLR
        2019).
    accuracy_80, accuracy_90 : float
        Accuracy among the most confident 80 or 90 % of the clips.
    """

    nll: float
    brier: float
    ece: float
    ece_equal_mass: float
    squared_error: float
    risk_coverage_area: float
    accuracy_80: float
    accuracy_90: float


@dataclass(frozen=True)
class CalibrationSummary:
    """Means of :class:`CalibrationScores` over folds, with the bounds of their 95 % intervals.

    A bound is None where the bootstrap does not cover the truth.
    """

    mean: CalibrationScores
    low: dict[str, float | None]
    high: dict[str, float | None]
