"""Runs of the same settings with several seeds: what varies, and settings compared seed by seed.

Only seeds that are tested on the same folds count together, and clips are matched by key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dfer_dist.config.schema import NEUTRAL, flatten
from dfer_dist.evaluation.metrics import Ints
from dfer_dist.evaluation.random_effects import (
    ClipVariance,
    Components,
    Mean,
    clip_variance,
    components,
    mean_interval,
)
from dfer_dist.evaluation.significance import Floats
from dfer_dist.reporting.comparison.fairness import unfair
from dfer_dist.reporting.comparison.paired import trained_share
from dfer_dist.reporting.results import LoadedRun, read_settings
from dfer_dist.reporting.wording import join
from dfer_dist.runs.endpoint import own_classes

_SEED = "train.seed"
SCORES = ("uar", "war")


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but their seed, by seed; ``name`` says what is special."""

    name: str
    runs: dict[int, LoadedRun]

    @property
    def first(self) -> LoadedRun:
        """The run of the first seed."""
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class Block:
    """Scores of S seeds in K folds, on the same clips for all seeds.

    Attributes
    ----------
    seeds, folds : list of int
    clips : int
        Of all folds.
    scores : dict of float [S, K]
        By ``uar`` and ``war``, in percent; of a comparison their differences.
    by_clips : dict of list of K ClipVariance
    mean : dict of Mean
    warnings : list of str
        What is left out.
    """

    seeds: list[int]
    folds: list[int]
    clips: int
    scores: dict[str, Floats]
    by_clips: dict[str, list[ClipVariance]]
    mean: dict[str, Mean]
    warnings: list[str]

    def components(self, metric: str) -> Components:
        """Return what varies in a score."""
        return components(self.scores[metric], self.by_clips[metric])


@dataclass(frozen=True)
class SeedComparison:
    """``second`` against ``first``; ``block`` is None if they share no two seeds."""

    first: Setting
    second: Setting
    block: Block | None
    warnings: list[str]


def by_setting(runs: Sequence[LoadedRun]) -> list[Setting]:
    """Return runs by their settings, in the order of their first runs.

    A run whose settings this version cannot read is a setting of its own. Of runs with the same
    settings and seed, as of two versions of the code, the second ones are another setting.
    """
    groups: dict[str, dict[int, LoadedRun]] = {}
    values: dict[str, dict[str, Any]] = {}
    for run in runs:
        config = read_settings(run.run)
        flat, key = {}, run.name
        if config:
            flat = {k: v for k, v in flatten(config).items() if k not in NEUTRAL}
        seed = flat.pop(_SEED, 0)
        if config:
            key = repr([flat, run.result.index_hash])
        while seed in groups.setdefault(key, {}):
            key += " again"
        values[key] = flat
        groups[key][seed] = run
    names = _names(values, groups)
    return [Setting(names[key], dict(sorted(same.items()))) for key, same in groups.items()]


def _names(
    values: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Mapping[int, LoadedRun]]
) -> dict[str, str]:
    """Return for each setting what differs between all of them, or else its first run's name."""
    keys = {key: None for flat in values.values() for key in flat}
    differ = [key for key in keys if len({repr(flat.get(key)) for flat in values.values()}) > 1]
    names = {
        key: join(f"{name}={flat[name]}" for name in differ if name in flat)
        for key, flat in values.items()
    }
    if len({*names.values()} - {""}) < len(names):
        return {key: next(iter(same.values())).name for key, same in groups.items()}
    return names


def has_seeds(settings: Sequence[Setting]) -> bool:
    """Return whether any setting has several seeds."""
    return any(len(setting.runs) > 1 for setting in settings)


def seeds_block(setting: Setting) -> Block | None:
    """Return the scores of a setting; None if fewer than two seeds share a fold."""
    return _block({seed: [run] for seed, run in setting.runs.items()})


def compare_seeds(first: Setting, second: Setting) -> SeedComparison:
    """Compare two settings: each seed and fold of one with the same of the other."""
    common = [seed for seed in first.runs if seed in second.runs]
    pairs = {seed: [first.runs[seed], second.runs[seed]] for seed in common}
    warnings = [text for pair in pairs.values() for text in unfair(*pair)]
    if own_classes(first.first.result.classes) != own_classes(second.first.result.classes):
        return SeedComparison(first, second, None, ["Their classes differ."])
    block = _block(pairs)
    if block is None:
        warnings.append("They have fewer than two seeds with a fold in common.")
    return SeedComparison(first, second, block, list(dict.fromkeys(warnings)))


def _block(runs: Mapping[int, Sequence[LoadedRun]]) -> Block | None:
    """Return the scores of the one run of each seed, or differences of its second and first."""
    folds_of = {
        seed: frozenset.intersection(*(frozenset(run.folds) for run in same))
        for seed, same in runs.items()
    }
    seeds, folds = _largest(folds_of)
    if len(seeds) < 2 or not folds:
        return None
    all_folds = {k for known in folds_of.values() for k in known}
    warnings = []
    if len(seeds) < len(runs) or len(folds) < len(all_folds):
        warnings.append(
            f"Only seeds {join(seeds)} with folds {join(folds)} are complete: the others are left "
            "out."
        )
    scores: dict[str, list[Floats]] = {metric: [] for metric in SCORES}
    by_clips: dict[str, list[ClipVariance]] = {metric: [] for metric in SCORES}
    clips = 0
    for fold in folds:
        labels, right, dropped = _aligned([runs[seed] for seed in seeds], fold)
        if dropped:
            warnings.append(f"Fold {fold}: {dropped} clips that only some runs have are left out.")
        if not len(labels):
            return None
        clips += len(labels)
        for metric in SCORES:
            scores[metric].append(_score(right, labels, metric))
            by_clips[metric].append(clip_variance(right, labels, metric))
    tables = {metric: np.stack(columns, axis=1) for metric, columns in scores.items()}
    first = runs[seeds[0]][0]
    share = min(trained_share(run) for run in runs[seeds[0]])
    ratio = 1 / (share * max(1, len(first.all_folds) - 1))
    mean = {m: mean_interval(tables[m], by_clips[m], ratio, clips) for m in SCORES}
    return Block(seeds, folds, clips, tables, by_clips, mean, warnings)


def _largest(folds_of: Mapping[int, frozenset[int]]) -> tuple[list[int], list[int]]:
    """Return seeds and folds without a gap: those with the most scores in all."""
    best: tuple[list[int], list[int]] = ([], [])
    if not folds_of:
        return best
    for folds in (*folds_of.values(), frozenset.intersection(*folds_of.values())):
        seeds = [seed for seed, known in folds_of.items() if folds <= known]
        is_larger = len(seeds) * len(folds) > len(best[0]) * len(best[1])
        if len(seeds) > 1 and (is_larger or not best[0]):
            best = seeds, sorted(folds)
    return best


def _aligned(runs: Sequence[Sequence[LoadedRun]], fold: int) -> tuple[Ints, Floats, int]:
    """Match the clips of a fold that all runs have, with the same label.

    Returns
    -------
    labels : int64 [N]
    right : float64 [S, N]
        1 for a clip that is right; of two runs second minus first.
    dropped : int
        Clips that some runs lack.
    """
    tables = [[run.folds[fold].table for run in same] for same in runs]
    rows = [[dict(zip(t.keys, range(len(t.keys)), strict=True)) for t in same] for same in tables]
    first = tables[0][0]
    labels = dict(zip(first.keys, first.labels.tolist(), strict=True))
    keys = [
        key
        for key, label in labels.items()
        if all(
            key in index and table.labels[index[key]] == label
            for same, indexes in zip(tables, rows, strict=True)
            for table, index in zip(same, indexes, strict=True)
        )
    ]
    truth = np.array([labels[key] for key in keys], dtype=np.int64)
    right = [
        [
            (table.predicted[[index[key] for key in keys]] == truth).astype(np.float64)
            for table, index in zip(same, indexes, strict=True)
        ]
        for same, indexes in zip(tables, rows, strict=True)
    ]
    values = np.stack([same[-1] - same[0] if len(same) > 1 else same[0] for same in right])
    most = max(len(table.keys) for same in tables for table in same)
    return truth, values, most - len(keys)


def _score(right: Floats, labels: Ints, metric: str) -> Floats:
    """Return UAR or WAR of each seed, or their differences, in percent: float64 [S]."""
    if metric == "war":
        return np.asarray(100 * right.mean(1))
    recalls = [right[:, labels == c].mean(1) for c in np.unique(labels)]
    return np.asarray(100 * np.mean(recalls, axis=0))
