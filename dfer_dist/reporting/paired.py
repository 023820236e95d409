"""Two runs on the same clips: what differs in their scores, how sure that is, and which clips changed.

Clips are matched by fold and key. Whatever makes the comparison less than a fair one is said in plain words beside every number of it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from dfer_dist.reporting.results import FoldResult, load_folds
from dfer_dist.reporting.wording import folds_text, join
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError


@dataclass(frozen=True)
class LoadedRun:
    """A run with its finished folds by number, and the numbers of all its folds."""

    name: str
    run: RunDir
    folds: dict[int, FoldResult]
    all_folds: list[int]

    @property
    def result(self) -> dict[str, object]:
        """The ``result.json`` of its first finished fold."""
        return next(iter(self.folds.values())).result

    @property
    def classes(self) -> list[str]:
        return next(iter(self.folds.values())).table.scores.classes


@dataclass(frozen=True)
class Change:
    """A clip of which the runs say different things; probabilities are those that each gave to what it said."""

    fold: int
    key: str
    truth: str
    first: str
    first_probability: float
    second: str
    second_probability: float

    @property
    def kind(self) -> str:
        """``gained``, ``lost``, or ``other mistake``."""
        return (
            "gained"
            if self.second == self.truth
            else "lost"
            if self.first == self.truth
            else "other mistake"
        )


@dataclass(frozen=True)
class ClassChange:
    """A class over all folds pooled. Recalls in percent; ``p`` is McNemar's, Holm's correction for all classes made."""

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
        """``gained`` or ``lost`` where chance is an unlikely cause, else nothing."""
        return "" if self.p >= 0.05 else "gained" if self.difference.value > 0 else "lost"


@dataclass(frozen=True)
class FoldScores:
    """UAR and WAR of both runs on the clips of a fold that both have, percent."""

    fold: int
    clips: int
    uar: tuple[float, float]
    war: tuple[float, float]


@dataclass(frozen=True)
class Paired:
    """Everything the same clips say of two runs; differences are second minus first, in percent points."""

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
        return sum(f.clips for f in self.folds)


@dataclass(frozen=True)
class Comparison:
    """``second`` held against ``first``; ``paired`` is None where they have no clip in common, or other classes."""

    first: LoadedRun
    second: LoadedRun
    warnings: list[str]
    paired: Paired | None


def load_runs(runs: Sequence[RunDir]) -> list[LoadedRun]:
    """Runs to compare, with names that tell them apart.

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
    sides = []
    for name, run in zip(names, runs, strict=True):
        numbers = run.describe()["folds"]
        sides.append(
            LoadedRun(name, run, {f.result["fold"]: f for f in load_folds(run, numbers)}, numbers)
        )
    return sides


def compare(first: LoadedRun, second: LoadedRun) -> Comparison:
    """Hold ``second`` against ``first`` on the clips they have in common."""
    warnings = _unlike(first, second)
    common = [k for k in first.folds if k in second.folds]
    if set(first.classes) != set(second.classes):
        return Comparison(
            first,
            second,
            [*warnings, "Their classes differ: nothing can be compared clip by clip."],
            None,
        )
    matched = {k: _match(first.folds[k], second.folds[k]) for k in common}
    warnings += [text for k in common for text in matched[k].warnings]
    there = {k: m for k, m in matched.items() if len(m.labels)}
    if not there:
        return Comparison(
            first,
            second,
            [*warnings, "They have no clip in common: nothing can be compared clip by clip."],
            None,
        )
    return Comparison(first, second, warnings, _paired(first, second, there))


def _unlike(first: LoadedRun, second: LoadedRun) -> list[str]:
    """Sentences on what makes the comparison less than fair."""
    a, b, lines = first.result, second.result, []
    if a["dataset"] != b["dataset"]:
        lines.append(f"They are of different data sets ({a['dataset']}, {b['dataset']}).")
    elif a["index_hash"] != b["index_hash"]:
        hashes = f"{str(a['index_hash'])[:12]}, {str(b['index_hash'])[:12]}"
        lines.append(f"They were trained and tested on different data (index {hashes}).")
    if a["selection"] != b["selection"]:
        optimistic = (
            "; best_test looks at the test fold and is optimistic"
            if "best_test" in (a["selection"], b["selection"])
            else ""
        )
        lines.append(
            f"Their epochs were chosen in different ways ({a['selection']}, {b['selection']}{optimistic})."
        )
    for side in (first, second):
        missing = [k for k in side.all_folds if k not in side.folds]
        if missing:
            lines.append(
                f"{side.name} has {len(side.folds)} of {len(side.all_folds)} folds ({join(missing)} missing)."
            )
    if first.folds.keys() != second.folds.keys():
        common = [k for k in first.folds if k in second.folds]
        lines.append(
            f"Only {folds_text(common)} of both are compared."
            if common
            else "They have no fold in common."
        )
    return lines


@dataclass(frozen=True)
class _Matched:
    """Clips that both runs have in a fold, by the classes of the first: keys, truth, what each said and how surely, all [N]."""

    keys: list[str]
    labels: Ints
    said: tuple[Ints, Ints]
    surely: tuple[np.ndarray, np.ndarray]
    warnings: list[str]


def _match(first: FoldResult, second: FoldResult) -> _Matched:
    a, b = first.table, second.table
    order = np.array(
        [a.scores.classes.index(c) for c in b.scores.classes]
    )  # the same classes may have other numbers
    rows = {key: i for i, key in enumerate(b.keys)}
    both = [(i, rows[key]) for i, key in enumerate(a.keys) if key in rows]
    fold, warnings = first.result["fold"], []
    if len(both) < max(len(a.keys), len(b.keys)):
        unmatched = f"{len(a.keys) - len(both)} and {len(b.keys) - len(both)}"
        warnings.append(
            f"Fold {fold} is not the same clips: {unmatched} that only one of them has are left out."
        )
    same = [(i, j) for i, j in both if a.labels[i] == order[b.labels[j]]]
    if len(same) < len(both):
        warnings.append(
            f"Fold {fold} has {len(both) - len(same)} clips with another label in each: they are left out."
        )
    i, j = (np.array(x, dtype=np.int64) for x in (zip(*same, strict=True) if same else ([], [])))
    said, surely = (
        (a.predicted[i], order[b.predicted[j]]),
        tuple(softmax(x, axis=1).max(1) for x in (a.logits[i], b.logits[j])),
    )
    return _Matched(
        [a.keys[k] for k in i], a.labels[i].astype(np.int64), said, (surely[0], surely[1]), warnings
    )


def _paired(first: LoadedRun, second: LoadedRun, matched: dict[int, _Matched]) -> Paired:
    classes = first.classes
    pairs = pair([(m.labels, *m.said) for m in matched.values()], len(classes))
    right = np.stack(
        [
            [_counts(m.labels[m.labels == m.said[i]], classes) for m in matched.values()]
            for i in (0, 1)
        ]
    )
    linear, folds = weights(pairs), len(matched)
    of_folds = {
        name: (folds * w * right).sum(2).T.tolist() for name, w in linear.items()
    }  # [K][2], percent
    n_test = float(pairs.clips.sum()) / folds
    n_train = (
        (len(first.all_folds) - 1) * n_test * min(_trained_share(first), _trained_share(second))
    )
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
        classes=_class_changes(pairs, right.sum(1), classes),
        changes=[c for k, m in matched.items() for c in _changes(k, m, classes)],
    )


def _counts(labels: Ints, classes: Sequence[str]) -> Ints:
    return np.bincount(labels, minlength=len(classes))


def _trained_share(side: LoadedRun) -> float:
    """Share of the training folds that was trained on: some are held out where that chooses the epoch."""
    if side.result["selection"] == "best_val":
        with suppress(UserError):
            return 1.0 - read_config(side.run.config).train.val_fraction
    return 1.0


def _class_changes(pairs: Pairs, right: Ints, classes: Sequence[str]) -> list[ClassChange]:
    """Of each class that has clips; ``right`` is int [2, C]."""
    n, gained, lost = (x.sum(0) for x in (pairs.clips, pairs.gained, pairs.lost))
    there = np.flatnonzero(n).tolist()
    found = differences(pairs, list(class_weights(pairs)[there]))
    p = holm([mcnemar(int(gained[c]), int(lost[c])).p for c in there])
    recalls = (100.0 * right / np.maximum(n, 1)).tolist()
    return [
        ClassChange(
            classes[c],
            int(n[c]),
            int(gained[c]),
            int(lost[c]),
            recalls[0][c],
            recalls[1][c],
            found[i],
            p[i],
        )
        for i, c in enumerate(there)
    ]


def _changes(fold: int, m: _Matched, classes: Sequence[str]) -> list[Change]:
    """Clips that were said to be different things, the surest first."""
    rows = np.flatnonzero(m.said[0] != m.said[1])
    order = rows[np.argsort(-(m.surely[0] + m.surely[1])[rows], kind="stable")]
    return [
        Change(
            fold,
            m.keys[i],
            classes[m.labels[i]],
            classes[m.said[0][i]],
            float(m.surely[0][i]),
            classes[m.said[1][i]],
            float(m.surely[1][i]),
        )
        for i in order
    ]
