"""``summary.json``: what the finished folds of a run give together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dfer_dist.runs.records import FoldResult, Scores
from dfer_dist.utils.records import Record, stored_as


@dataclass(frozen=True)
class Spread:
    """A metric over folds, in percent.

    ``std`` is the sample standard deviation, None for one fold. ``ci95`` is the lower and the
    upper end of a 95 % bootstrap interval of the mean; empty for a metric without intervals.
    """

    mean: float
    std: float | None
    ci95: list[float]


@dataclass(frozen=True)
class UarWarSpread:
    """UAR and WAR over folds."""

    uar: Spread
    war: Spread


@dataclass(frozen=True)
class VotesSpread:
    """:class:`~dfer_dist.runs.records.VoteScores` over folds; ``kl`` is in nats."""

    n: int
    kl: Spread
    any_annotator: Spread


@dataclass(frozen=True)
class MajorityBaseline:
    """The WAR in percent of always predicting the most frequent class."""

    class_name: str = field(metadata=stored_as("class"))
    war: float


@dataclass(frozen=True)
class RunCost:
    """What training the folds of a run took; None where no fold recorded it.

    ``clips_per_second`` is the median over folds, ``peak_bytes`` the largest peak of a rank.
    ``ranks`` are the different numbers of ranks of all attempts, ``device_hours`` the sum over
    attempts of hours times ranks.
    """

    trained_parameters: int | None
    clips_per_second: float | None
    peak_bytes: int | None
    parameters: int | None = None
    ranks: list[int] = field(default_factory=list)
    device_hours: float | None = None


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


@dataclass(frozen=True)
class Summary(Record):
    """``summary.json``: a run's metrics over its finished folds.

    ``pooled`` are the metrics of all clips of all finished folds. ``shuffled`` is None unless every
    finished fold was also tested with its frames shuffled, ``votes`` unless test clips of every
    finished fold have votes. ``multilabel`` has the further metrics of sets of labels that all
    folds have, without intervals. Summaries of older versions have no ``cost`` and no F1.
    """

    remedy: ClassVar[str] = "write it again with dfer report"

    dataset: str
    selection: str
    folds: list[FoldResult]
    missing: list[int]
    uar: Spread
    war: Spread
    pooled: Scores
    majority: MajorityBaseline
    shuffled: UarWarSpread | None = None
    cost: RunCost | None = None
    macro_f1: Spread | None = None
    weighted_f1: Spread | None = None
    calibration: CalibrationSummary | None = None
    multilabel: dict[str, Spread] = field(default_factory=dict)
    votes: VotesSpread | None = None
