"""``summary.json``: what the finished folds of a run give together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dfer_dist.runs.calibration import CalibrationSummary
from dfer_dist.runs.records import FoldResult, Scores
from dfer_dist.utils.records import Record, stored_as


@dataclass(frozen=True)
class Spread:
    """A metric over folds, in percent, but for kappa.

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
class Summary(Record):
    """``summary.json``: a run's metrics over its finished folds.

    ``pooled`` are the metrics of all clips of all finished folds. ``shuffled`` is None unless every
    finished fold was also tested with its frames shuffled, ``votes`` unless test clips of every
    finished fold have votes. ``multilabel`` has the further metrics of sets of labels that all
    folds have, without intervals. ``validation`` names the part of the training clips that a trial
    of ``dfer tune`` is scored on, None of a test fold. ``top2`` is None where a fold has no logits.
    Summaries of older versions have no ``cost``, F1, ``top2`` and ``kappa``.
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
    top2: Spread | None = None
    kappa: Spread | None = None
    calibration: CalibrationSummary | None = None
    multilabel: dict[str, Spread] = field(default_factory=dict)
    votes: VotesSpread | None = None
    validation: str | None = None
