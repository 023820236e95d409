"""Compare two runs on the same clips: differences of scores, their significance, changed clips.

Clips are matched by fold and key; by key alone where the runs have different folds. Whatever makes
the comparison less than fair becomes a warning, which accompanies every number of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from dfer_dist.evaluation import significance
from dfer_dist.evaluation.metrics import Ints
from dfer_dist.evaluation.significance import Difference, Floats, McNemar, Pairs, TTest
from dfer_dist.evaluation.votes import mean_over_folds
from dfer_dist.reporting.comparison.fairness import other_folds, unfair
from dfer_dist.reporting.results import LoadedRun, ScoredPredictions, load_run, read_settings
from dfer_dist.runs.endpoint import own_classes
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError

# In place of a fold's number, where all folds of a run are compared as one.
POOLED = 0
_CALIBRATION = ("nll", "brier")  # means over clips


@dataclass(frozen=True)
class Change:
    """A clip that the runs predict differently, with the probability of each prediction.

    Probabilities are NaN of a run without.
    """

    fold: int
    key: str
    truth: str
    first: str
    first_probability: float
    second: str
    second_probability: float

    @property
    def confidence(self) -> float:
        """The sum of the probabilities that the runs have."""
        known = (self.first_probability, self.second_probability)
        return sum(p for p in known if not math.isnan(p))

    @property
    def kind(self) -> str:
        """Return ``gained``, ``lost``, or ``other mistake``."""
        if self.second == self.truth:
            return "gained"
        if self.first == self.truth:
            return "lost"
        return "other mistake"


@dataclass(frozen=True)
class ClassChange:
    """A class over all folds pooled.

    Recalls are in percent. ``p`` is McNemar's, with Holm's correction for all classes.
    """

    name: str
    clips: int
    gained: int
    lost: int
    first: float
    second: float
    difference: Difference
    p: float

    @property
    def verdict(self) -> str:
        """Return ``gained`` or ``lost`` if the change is significant, else an empty text."""
        if self.p >= 0.05:
            return ""
        return "gained" if self.difference.value > 0 else "lost"


@dataclass(frozen=True)
class CalibrationChange:
    """A score of the probabilities on the common clips, means over folds; lower is better."""

    name: str
    first: float
    second: float
    difference: Difference


@dataclass(frozen=True)
class FoldScores:
    """UAR and WAR of both runs on the common clips of a fold, in percent.

    ``fold`` is :data:`POOLED` for the clips of all folds.
    """

    fold: int
    clips: int
    uar: list[float]
    war: list[float]


@dataclass(frozen=True)
class Paired:
    """Two runs on their common clips; differences are second minus first, in percent points.

    ``calibration`` is empty unless both have softmax outputs; its differences are in the scores'
    own units.
    """

    folds: list[FoldScores]
    n_test: float  # clips of a test fold, mean
    n_train: float
    difference: dict[str, Difference]  # by 'uar' and 'war', mean over folds
    t_test: dict[str, TTest | None]  # None with fewer than two folds
    mcnemar: McNemar
    classes: list[ClassChange]
    changes: list[Change]
    calibration: list[CalibrationChange] = field(default_factory=list)

    @property
    def clips(self) -> int:
        """Return the number of common clips."""
        return sum(f.clips for f in self.folds)

    @property
    def is_pooled(self) -> bool:
        """Whether the clips of all folds are compared as one, since the runs have other folds."""
        return self.folds[0].fold == POOLED


@dataclass(frozen=True)
class Comparison:
    """``second`` against ``first``; ``paired`` is None without common clips or classes."""

    first: LoadedRun
    second: LoadedRun
    warnings: list[str]
    paired: Paired | None

    @property
    def title(self) -> str:
        """The names of both runs."""
        return f"{self.second.name} against {self.first.name}"


def load_runs(runs: Sequence[RunDir]) -> list[LoadedRun]:
    """Load runs to compare, under distinct names.

    Raises
    ------
    UserError
        As :func:`~dfer_dist.reporting.results.load_run`, and if a run is given twice.
    """
    if len({run.root for run in runs}) < len(runs):
        raise UserError("the same run is given twice: a comparison needs different ones")
    names = [run.root.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.root.parent.name}/{run.root.name}" for run in runs]
    return [load_run(run, name) for run, name in zip(runs, names, strict=True)]


def compare(first: LoadedRun, second: LoadedRun) -> Comparison:
    """Compare ``second`` with ``first`` on their common clips."""
    warnings, paired = unfair(first, second), None
    if len({frozenset(own_classes(x.result.classes)) for x in (first, second)}) > 1:
        warnings.append("Their classes differ: nothing can be compared clip by clip.")
        return Comparison(first, second, warnings, None)
    if other_folds(first, second):
        tables = {POOLED: (_pool(first), _pool(second))}
    else:
        common = [k for k in first.folds if k in second.folds]
        tables = {k: (first.folds[k].table, second.folds[k].table) for k in common}
    matched = {k: _match(k, *both, warnings) for k, both in tables.items()}
    matched = {k: m for k, m in matched.items() if m.keys}
    if matched:
        paired = _paired(first, second, matched)
    else:
        warnings.append("They have no clip in common: nothing can be compared clip by clip.")
    return Comparison(first, second, warnings, paired)


def _pool(loaded: LoadedRun) -> ScoredPredictions:
    """Return the predictions of all finished folds as one table."""
    tables = [fold.table for fold in loaded.folds.values()]
    logits = [table.logits for table in tables if table.logits is not None]
    return ScoredPredictions(
        keys=[key for table in tables for key in table.keys],
        labels=np.concatenate([table.labels for table in tables]),
        logits=np.concatenate(logits) if logits else None,
        predicted=np.concatenate([table.predicted for table in tables]),
        scores=loaded.summary.pooled,
    )


def joint_classes(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return the classes of the first run, and what else the second one may predict."""
    return list(dict.fromkeys([*first, *second]))


@dataclass(frozen=True)
class _Matched:
    """The N common clips of a fold, with labels as of :func:`joint_classes`.

    ``predicted`` and ``probability`` are [2, N]: of each run. A probability is NaN of a run
    without. ``calibration`` has the scores of :data:`_CALIBRATION`, float64 [scores, 2, N].
    """

    keys: list[str]
    labels: Ints
    predicted: Ints
    probability: NDArray[np.float32]
    calibration: Floats


def _match(fold: int, a: ScoredPredictions, b: ScoredPredictions, warnings: list[str]) -> _Matched:
    """Match the clips of a fold; add sentences on those that are left out to ``warnings``."""
    name = f"Fold {fold}" if fold != POOLED else "The union of all folds"
    # The same classes may have other labels in the second run.
    classes = joint_classes(a.scores.classes, b.scores.classes)
    order = np.array([classes.index(c) for c in b.scores.classes])
    rows = {key: i for i, key in enumerate(b.keys)}
    both = [(i, rows[key]) for i, key in enumerate(a.keys) if key in rows]
    if len(both) < max(len(a.keys), len(b.keys)):
        unmatched = f"{len(a.keys) - len(both)} and {len(b.keys) - len(both)}"
        warnings.append(
            f"{name} is not the same clips: {unmatched} that only one of them has are left out."
        )
    same = [(i, j) for i, j in both if a.labels[i] == order[b.labels[j]]]
    if len(same) < len(both):
        warnings.append(
            f"{name} has {len(both) - len(same)} clips with another label in each: they are "
            "left out."
        )
    i, j = np.array(same, dtype=np.int64).reshape(-1, 2).T
    return _Matched(
        keys=[a.keys[k] for k in i],
        labels=a.labels[i].astype(np.int64),
        predicted=np.stack([a.predicted[i], order[b.predicted[j]]]),
        probability=np.stack([_probability(a.logits, i), _probability(b.logits, j)]),
        calibration=np.stack([_calibration(a)[:, i], _calibration(b)[:, j]], axis=1),
    )


def _probability(logits: NDArray[np.float32] | None, rows: Ints) -> NDArray[np.float32]:
    """Return the probability of the predictions of some clips."""
    if logits is None:
        return np.full(len(rows), np.nan, np.float32)
    return np.asarray(softmax(logits[rows], axis=1).max(1))


def _paired(first: LoadedRun, second: LoadedRun, matched: dict[int, _Matched]) -> Paired:
    classes = joint_classes(first.result.classes, second.result.classes)
    folds = len(matched)
    pairs = significance.pair([(m.labels, *m.predicted) for m in matched.values()], len(classes))
    # Of each fold, run and class.
    correct = np.array(
        [
            [np.bincount(m.labels[m.labels == p], minlength=len(classes)) for p in m.predicted]
            for m in matched.values()
        ]
    )
    linear = significance.weights(pairs)
    # Scores in percent, [K][2], by metric.
    scores = {name: (folds * w[:, None] * correct).sum(2).tolist() for name, w in linear.items()}
    n_test = float(pairs.clips.sum()) / folds
    share = min(trained_share(first), trained_share(second))
    n_train = (len(first.all_folds) - 1) * n_test * share
    t_tests: dict[str, TTest | None] = dict.fromkeys(linear)
    if folds > 1:
        for name, values in scores.items():
            by_fold = [b - a for a, b in values]
            t_tests[name] = significance.corrected_t(by_fold, n_test / n_train)
    found = significance.differences(pairs, list(linear.values()))
    return Paired(
        folds=[
            FoldScores(k, len(m.keys), uar, war)
            for (k, m), uar, war in zip(matched.items(), scores["uar"], scores["war"], strict=True)
        ],
        n_test=n_test,
        n_train=n_train,
        difference=dict(zip(linear, found, strict=True)),
        t_test=t_tests,
        mcnemar=significance.mcnemar(int(pairs.gained.sum()), int(pairs.lost.sum())),
        classes=_class_changes(pairs, correct.sum(0), classes),
        changes=[c for k, m in matched.items() for c in _changes(k, m, classes)],
        calibration=_calibration_changes(first, second, list(matched.values())),
    )


def _calibration_changes(
    first: LoadedRun, second: LoadedRun, matched: Sequence[_Matched]
) -> list[CalibrationChange]:
    """Return the changes of the means over clips, which a paired bootstrap can compare."""
    if {first.result.output, second.result.output} != {"softmax"}:
        return []
    values = [m.calibration for m in matched]
    means = np.mean([v.mean(2) for v in values], axis=0).tolist()
    found = mean_over_folds([v[:, 1] - v[:, 0] for v in values], [m.labels for m in matched])
    return [
        CalibrationChange(name, first_mean, second_mean, difference)
        for name, (first_mean, second_mean), difference in zip(
            _CALIBRATION, means, found, strict=True
        )
    ]


def _calibration(table: ScoredPredictions) -> Floats:
    """Return the scores of each clip that are compared, float64 [scores, N]; NaN without logits."""
    if table.logits is None:
        return np.full((len(_CALIBRATION), len(table.keys)), np.nan)
    return np.stack([getattr(table.outputs, name) for name in _CALIBRATION])


def trained_share(loaded: LoadedRun) -> float:
    """Return the share of the training folds that was not held out to choose the epoch."""
    config = read_settings(loaded.run)
    if loaded.result.selection == "best_val" and config:
        return 1.0 - config.train.val_fraction
    return 1.0


def _class_changes(pairs: Pairs, correct: Ints, classes: Sequence[str]) -> list[ClassChange]:
    """Return the changes of each class that has clips; ``correct`` is int [2, C]."""
    n, gained, lost = (x.sum(0).tolist() for x in (pairs.clips, pairs.gained, pairs.lost))
    present = np.flatnonzero(n).tolist()
    found = significance.differences(pairs, list(significance.class_weights(pairs)[present]))
    p = significance.holm([significance.mcnemar(gained[c], lost[c]).p for c in present])
    first, second = (100.0 * correct / np.maximum(n, 1)).tolist()
    return [
        ClassChange(classes[c], n[c], gained[c], lost[c], first[c], second[c], found[i], p[i])
        for i, c in enumerate(present)
    ]


def _changes(fold: int, m: _Matched, classes: Sequence[str]) -> list[Change]:
    """Return the clips with different predictions, the most confident first."""
    rows = np.flatnonzero(m.predicted[0] != m.predicted[1])
    order = rows[np.argsort(-np.nansum(m.probability, 0)[rows], kind="stable")]
    return [
        Change(
            fold=fold,
            key=m.keys[i],
            truth=classes[m.labels[i]],
            first=classes[m.predicted[0, i]],
            first_probability=float(m.probability[0, i]),
            second=classes[m.predicted[1, i]],
            second_probability=float(m.probability[1, i]),
        )
        for i in order
    ]
