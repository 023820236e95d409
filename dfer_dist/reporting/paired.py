"""Compare two runs on the same clips: differences of scores, their significance, changed clips.

Clips are matched by fold and key. Whatever makes the comparison less than fair becomes a warning,
which accompanies every number of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from dfer_dist.config.load import read_config
from dfer_dist.evaluation.metrics import Ints
from dfer_dist.evaluation.significance import (
    Difference,
    McNemar,
    Pairs,
    TTest,
    class_weights,
    corrected_t,
    differences,
    holm,
    mcnemar,
    pair,
    weights,
)
from dfer_dist.reporting.results import LoadedFold, load_folds
from dfer_dist.reporting.wording import folds_text, join
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError


@dataclass(frozen=True)
class LoadedRun:
    """A run with its finished folds by number, and the numbers of all its folds."""

    name: str
    run: RunDir
    folds: dict[int, LoadedFold]
    all_folds: list[int]

    @property
    def result(self) -> dict[str, object]:
        """Return the ``result.json`` of the first finished fold."""
        return next(iter(self.folds.values())).result

    @property
    def classes(self) -> list[str]:
        """Return the class names in label order."""
        return next(iter(self.folds.values())).table.scores.classes


@dataclass(frozen=True)
class Change:
    """A clip that the runs predict differently, with the probability of each prediction."""

    fold: int
    key: str
    truth: str
    first: str
    first_probability: float
    second: str
    second_probability: float

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
class FoldScores:
    """UAR and WAR of both runs on the common clips of a fold, in percent."""

    fold: int
    clips: int
    uar: tuple[float, float]
    war: tuple[float, float]


@dataclass(frozen=True)
class Paired:
    """Two runs on their common clips; differences are second minus first, in percent points."""

    folds: list[FoldScores]
    n_test: float  # clips of a test fold, mean
    n_train: float
    difference: dict[str, Difference]  # by 'uar' and 'war', mean over folds
    t_test: dict[str, TTest | None]  # None with fewer than two folds
    mcnemar: McNemar
    classes: list[ClassChange]
    changes: list[Change]

    @property
    def clips(self) -> int:
        """Return the number of common clips."""
        return sum(f.clips for f in self.folds)


@dataclass(frozen=True)
class Comparison:
    """``second`` against ``first``; ``paired`` is None without common clips or classes."""

    first: LoadedRun
    second: LoadedRun
    warnings: list[str]
    paired: Paired | None


def load_runs(runs: Sequence[RunDir]) -> list[LoadedRun]:
    """Load runs to compare, under distinct names.

    Raises
    ------
    UserError
        As :func:`~dfer_dist.reporting.results.load_folds`, and if a run is given twice.
    """
    if len({run.root for run in runs}) < len(runs):
        raise UserError("the same run is given twice: a comparison needs different ones")
    names = [run.root.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.root.parent.name}/{run.root.name}" for run in runs]
    loaded = []
    for name, run in zip(names, runs, strict=True):
        numbers = run.info().folds
        folds = {f.result["fold"]: f for f in load_folds(run, numbers)}
        loaded.append(LoadedRun(name, run, folds, numbers))
    return loaded


def compare(first: LoadedRun, second: LoadedRun) -> Comparison:
    """Compare ``second`` with ``first`` on their common clips."""
    warnings = _unfair(first, second)
    if set(first.classes) != set(second.classes):
        warnings.append("Their classes differ: nothing can be compared clip by clip.")
        return Comparison(first, second, warnings, None)
    common = [k for k in first.folds if k in second.folds]
    matched = {k: _match(first.folds[k], second.folds[k]) for k in common}
    warnings += [text for k in common for text in matched[k].warnings]
    with_clips = {k: m for k, m in matched.items() if len(m.labels)}
    if not with_clips:
        warnings.append("They have no clip in common: nothing can be compared clip by clip.")
        return Comparison(first, second, warnings, None)
    return Comparison(first, second, warnings, _paired(first, second, with_clips))


def _unfair(first: LoadedRun, second: LoadedRun) -> list[str]:
    """Return sentences on what makes the comparison less than fair."""
    a, b, lines = first.result, second.result, []
    if a["dataset"] != b["dataset"]:
        lines.append(f"They are of different data sets ({a['dataset']}, {b['dataset']}).")
    elif a["index_hash"] != b["index_hash"]:
        hashes = f"{str(a['index_hash'])[:12]}, {str(b['index_hash'])[:12]}"
        lines.append(f"They were trained and tested on different data (index {hashes}).")
    if a["selection"] != b["selection"]:
        selections = f"{a['selection']}, {b['selection']}"
        if "best_test" in (a["selection"], b["selection"]):
            selections += "; best_test looks at the test fold and is optimistic"
        lines.append(f"Their epochs were chosen differently ({selections}).")
    for loaded in (first, second):
        missing = [k for k in loaded.all_folds if k not in loaded.folds]
        if missing:
            folds = f"{len(loaded.folds)} of {len(loaded.all_folds)} folds"
            lines.append(f"{loaded.name} has {folds} ({join(missing)} missing).")
    common = [k for k in first.folds if k in second.folds]
    if not common:
        lines.append("They have no fold in common.")
    elif first.folds.keys() != second.folds.keys():
        lines.append(f"Only {folds_text(common)} of both are compared.")
    return lines


@dataclass(frozen=True)
class _Matched:
    """The N common clips of a fold, in the label order of the first run.

    ``predicted`` and ``probability`` hold one array [N] for each run.
    """

    keys: list[str]
    labels: Ints
    predicted: tuple[Ints, Ints]
    probability: tuple[np.ndarray, np.ndarray]
    warnings: list[str]


def _match(first: LoadedFold, second: LoadedFold) -> _Matched:
    a, b = first.table, second.table
    # The same classes may have other labels in the second run.
    order = np.array([a.scores.classes.index(c) for c in b.scores.classes])
    rows = {key: i for i, key in enumerate(b.keys)}
    both = [(i, rows[key]) for i, key in enumerate(a.keys) if key in rows]
    fold, warnings = first.result["fold"], []
    if len(both) < max(len(a.keys), len(b.keys)):
        unmatched = f"{len(a.keys) - len(both)} and {len(b.keys) - len(both)}"
        warnings.append(
            f"Fold {fold} is not the same clips: {unmatched} that only one of them has are left "
            "out."
        )
    same = [(i, j) for i, j in both if a.labels[i] == order[b.labels[j]]]
    if len(same) < len(both):
        warnings.append(
            f"Fold {fold} has {len(both) - len(same)} clips with another label in each: they are "
            "left out."
        )
    i, j = np.array(same, dtype=np.int64).reshape(-1, 2).T
    return _Matched(
        keys=[a.keys[k] for k in i],
        labels=a.labels[i].astype(np.int64),
        predicted=(a.predicted[i], order[b.predicted[j]]),
        probability=(
            softmax(a.logits[i], axis=1).max(1),
            softmax(b.logits[j], axis=1).max(1),
        ),
        warnings=warnings,
    )


def _paired(first: LoadedRun, second: LoadedRun, matched: dict[int, _Matched]) -> Paired:
    classes = first.classes
    pairs = pair([(m.labels, *m.predicted) for m in matched.values()], len(classes))
    correct = np.stack([_correct_clips(matched, i, len(classes)) for i in (0, 1)])
    linear, folds = weights(pairs), len(matched)
    # Scores in percent, [K][2], by metric.
    of_folds = {name: (folds * w * correct).sum(2).T.tolist() for name, w in linear.items()}
    n_test = float(pairs.clips.sum()) / folds
    trained_share = min(_trained_share(first), _trained_share(second))
    n_train = (len(first.all_folds) - 1) * n_test * trained_share
    tests: dict[str, TTest | None] = dict.fromkeys(linear)
    if folds > 1:
        tests = {
            name: corrected_t([b - a for a, b in of_folds[name]], n_test / n_train)
            for name in linear
        }
    rows = zip(matched.items(), of_folds["uar"], of_folds["war"], strict=True)
    return Paired(
        folds=[
            FoldScores(k, len(m.labels), (uar[0], uar[1]), (war[0], war[1]))
            for (k, m), uar, war in rows
        ],
        n_test=n_test,
        n_train=n_train,
        difference=dict(zip(linear, differences(pairs, list(linear.values())), strict=True)),
        t_test=tests,
        mcnemar=mcnemar(int(pairs.gained.sum()), int(pairs.lost.sum())),
        classes=_class_changes(pairs, correct.sum(1), classes),
        changes=[c for k, m in matched.items() for c in _changes(k, m, classes)],
    )


def _correct_clips(matched: Mapping[int, _Matched], run: int, num_classes: int) -> Ints:
    """Count the clips that run 0 or 1 predicts correctly, int [K, C]."""
    return np.stack(
        [
            np.bincount(m.labels[m.labels == m.predicted[run]], minlength=num_classes)
            for m in matched.values()
        ]
    )


def _trained_share(loaded: LoadedRun) -> float:
    """Return the share of the training folds that was not held out to choose the epoch."""
    if loaded.result["selection"] == "best_val":
        with suppress(UserError):
            return 1.0 - read_config(loaded.run.config).train.val_fraction
    return 1.0


def _class_changes(pairs: Pairs, correct: Ints, classes: Sequence[str]) -> list[ClassChange]:
    """Return the changes of each class that has clips; ``correct`` is int [2, C]."""
    n, gained, lost = (x.sum(0).tolist() for x in (pairs.clips, pairs.gained, pairs.lost))
    present = np.flatnonzero(n).tolist()
    found = differences(pairs, list(class_weights(pairs)[present]))
    p = holm([mcnemar(gained[c], lost[c]).p for c in present])
    first, second = (100.0 * correct / np.maximum(n, 1)).tolist()
    return [
        ClassChange(
            name=classes[c],
            clips=n[c],
            gained=gained[c],
            lost=lost[c],
            first=first[c],
            second=second[c],
            difference=found[i],
            p=p[i],
        )
        for i, c in enumerate(present)
    ]


def _changes(fold: int, m: _Matched, classes: Sequence[str]) -> list[Change]:
    """Return the clips with different predictions, the most confident first."""
    rows = np.flatnonzero(m.predicted[0] != m.predicted[1])
    order = rows[np.argsort(-(m.probability[0] + m.probability[1])[rows], kind="stable")]
    return [
        Change(
            fold=fold,
            key=m.keys[i],
            truth=classes[m.labels[i]],
            first=classes[m.predicted[0][i]],
            first_probability=float(m.probability[0][i]),
            second=classes[m.predicted[1][i]],
            second_probability=float(m.probability[1][i]),
        )
        for i in order
    ]
