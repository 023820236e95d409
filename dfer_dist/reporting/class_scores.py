"""Scores of single classes, folds pooled: recall, precision, F1 and confusions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from dfer_dist.evaluation.metrics import wilson_interval
from dfer_dist.reporting.results import LoadedRun
from dfer_dist.runs.endpoint import own_classes
from dfer_dist.runs.records import Scores
from dfer_dist.runs.summary import Summary
from dfer_dist.utils.files import csv_text

MIN_CLIPS = 10  # of a class for a percentage with decimals


class Share(NamedTuple):
    """A number of clips out of others."""

    part: int
    whole: int

    @property
    def percent(self) -> float:
        """The share in percent; NaN without clips."""
        return 100.0 * self.part / self.whole if self.whole else float("nan")

    @property
    def text(self) -> str:
        """The share in percent, or a fraction such as ``2/3`` of few clips."""
        if not self.whole:
            return "absent"
        if self.whole < MIN_CLIPS:
            return f"{self.part}/{self.whole}"
        return f"{self.percent:.2f}"


@dataclass(frozen=True)
class ClassRecall:
    """Recall of a class, folds pooled, with Wilson's 95 % interval in percent; and of each fold."""

    name: str
    pooled: Share
    interval: tuple[float, float]
    folds: list[Share]

    @property
    def clips(self) -> int:
        """Clips of the class."""
        return self.pooled.whole

    @property
    def recall(self) -> float:
        """Recall in percent; NaN without clips."""
        return self.pooled.percent


@dataclass(frozen=True)
class ClassPrecision:
    """How often a class is predicted, and its precision and F1 in percent, folds pooled.

    ``precision`` is NaN for a class that is never predicted, and ``f1`` for one that has no clips
    either.
    """

    name: str
    clips: int
    predicted: int
    precision: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """Clips of the class ``truth`` that were predicted as another class."""

    truth: str
    predicted: str
    count: int
    support: int


def class_recalls(summary: Summary) -> list[ClassRecall]:
    """Return the recall of each class."""
    classes = own_classes(summary.pooled.classes)
    matrices = np.array([summary.pooled.confusion, *(r.confusion for r in summary.folds)])
    correct, clips = np.diagonal(matrices, axis1=1, axis2=2).T.tolist(), matrices.sum(2).T.tolist()
    found = []
    for name, right, counts in zip(classes, correct, clips, strict=False):
        pooled, *folds = map(Share, right, counts)
        interval = (0.0, 0.0)
        if pooled.whole:
            interval = wilson_interval(*pooled)
        found.append(ClassRecall(name, pooled, interval, folds))
    return found


def class_precisions(loaded: LoadedRun) -> list[ClassPrecision]:
    """Return precision and F1 of each class."""
    from sklearn.metrics import precision_recall_fscore_support

    tables = [fold.table for fold in loaded.folds.values()]
    labels = np.concatenate([t.labels for t in tables])
    predicted = np.concatenate([t.predicted for t in tables])
    classes = own_classes(loaded.summary.pooled.classes)
    precision, _, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), zero_division=np.nan
    )
    counts = np.bincount(predicted, minlength=len(classes))[: len(classes)]
    columns = support.tolist(), counts.tolist(), (100 * precision).tolist(), (100 * f1).tolist()
    return [ClassPrecision(*row) for row in zip(classes, *columns, strict=True)]


def confusion_csv(scores: Scores) -> str:
    """Return the confusion matrix as CSV: a row for each true class, a column for each predicted.

    The first column, ``truth``, has the names of the classes.
    """
    rows = zip(own_classes(scores.classes), scores.confusion, strict=False)
    return csv_text([["truth", *scores.classes], *([name, *counts] for name, counts in rows)])


def top_confusions(scores: Scores, count: int) -> list[Confusion]:
    """Return the most frequent confusions; of equal ones those of earlier classes."""
    found = [
        Confusion(truth, predicted, scores.confusion[i][j], scores.support[truth])
        for (i, truth), (j, predicted) in product(enumerate(scores.classes), repeat=2)
        if i != j and scores.confusion[i][j]
    ]
    return sorted(found, key=lambda x: -x.count)[:count]
