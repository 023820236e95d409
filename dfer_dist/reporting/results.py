"""Finished folds, checked against the predictions next to them, and their summary.

A result is never trusted: its scores are computed again from the table of predictions. Folds of
different runs are never mixed. A mean over fewer folds than the data set has is marked wherever it
is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config
from dfer_dist.data.folds.overlay import FoldOverlay, validation_name
from dfer_dist.evaluation.calibration import Outputs, score_calibration, summarize_calibration
from dfer_dist.evaluation.metrics import Ints, bootstrap_ci, metric_values, score, top_class
from dfer_dist.evaluation.multilabel import score_table
from dfer_dist.evaluation.votes import any_annotator, kl_divergence, mean_over_folds, score_votes
from dfer_dist.reporting.history import Cost, run_cost, training_cost
from dfer_dist.reporting.wording import PROTOCOLS, join
from dfer_dist.runs.calibration import CalibrationSummary
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import METRICS, MULTILABEL_METRICS, FoldResult, Scores, UarWar
from dfer_dist.runs.summary import (
    MajorityBaseline,
    Spread,
    Summary,
    UarWarSpread,
    VotesSpread,
)
from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# Folds that differ in one of these are of different runs.
_SAME = ("dataset", "selection", "classes", "config_hash", "index_hash")
# In percent points. Allows for rounded scores; a clip more or less shows in the confusion.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class ScoredPredictions:
    """Predictions of N clips in the order of their file, and their scores.

    Attributes
    ----------
    keys : list of N str
    labels : int [N]
    logits : float32 [N, C] or None
        None for a model that gives a class and no probabilities.
    predicted : int [N]
        The class with the highest logit.
    scores : Scores
        Also of sets of labels, if the table has them.
    votes : float32 [N, C] or None
        Of annotators; None if no clip has votes.
    """

    keys: list[str]
    labels: Ints
    logits: NDArray[np.float32] | None
    predicted: Ints
    scores: Scores
    votes: NDArray[np.float32] | None = None

    @property
    def outputs(self) -> Outputs:
        """Labels and logits, of a table that has logits."""
        assert self.logits is not None
        return Outputs.of(self.labels, self.logits)


@dataclass(frozen=True)
class LoadedFold:
    """A finished fold.

    Attributes
    ----------
    result : FoldResult
    table : ScoredPredictions
    shuffled : ScoredPredictions or None
        Predictions from shuffled frames, if they were made.
    cost : Cost
    """

    result: FoldResult
    table: ScoredPredictions
    shuffled: ScoredPredictions | None
    cost: Cost


@dataclass(frozen=True)
class LoadedRun:
    """A run with its finished folds by number.

    ``name`` is the one in comparisons, ``all_folds`` are the numbers of all folds.
    """

    run: RunDir
    name: str
    all_folds: list[int]
    folds: dict[int, LoadedFold]

    @property
    def result(self) -> FoldResult:
        """The result of the first finished fold."""
        return next(iter(self.folds.values())).result

    @property
    def costs(self) -> list[Cost]:
        """The cost of each finished fold."""
        return [fold.cost for fold in self.folds.values()]

    @cached_property
    def summary(self) -> Summary:
        """Mean, deviation and interval over the finished folds, and the pooled scores.

        ``ci95`` is :func:`~dfer_dist.evaluation.metrics.bootstrap_ci` of the mean.
        """
        tables = [fold.table for fold in self.folds.values()]
        labels = np.concatenate([t.labels for t in tables])
        predicted = np.concatenate([t.predicted for t in tables])
        pooled = score(labels, predicted, self.result.classes)
        metrics = _common_metrics(tables)
        if "top2" in metrics:
            clips = [t.scores.n for t in tables]
            top2 = np.average([t.scores.top2 for t in tables], weights=clips)
            pooled = replace(pooled, top2=float(top2))
        commonest = max(pooled.support, key=pooled.support.__getitem__)
        noise = [fold.shuffled for fold in self.folds.values() if fold.shuffled is not None]
        shuffled = None
        if len(noise) == len(tables):
            shuffled = UarWarSpread(score_spread(noise, "uar"), score_spread(noise, "war"))
        return Summary(
            dataset=self.result.dataset,
            validation=validation_name(self.run.folds),
            selection=self.result.selection,
            folds=[fold.result for fold in self.folds.values()],
            missing=[k for k in self.all_folds if k not in self.folds],
            **{metric: score_spread(tables, metric) for metric in metrics},
            pooled=pooled,
            majority=MajorityBaseline(commonest, 100.0 * pooled.support[commonest] / pooled.n),
            shuffled=shuffled,
            cost=run_cost(self.costs),
            calibration=self._calibration(),
            multilabel=_multilabel_spreads([t.scores for t in tables]),
            votes=_votes_spread(tables),
        )

    def _calibration(self) -> CalibrationSummary | None:
        """Return the calibration of softmax outputs."""
        if self.result.output != "softmax":
            return None
        return summarize_calibration([fold.table.outputs for fold in self.folds.values()])


def load_run(run: RunDir, name: str = "") -> LoadedRun:
    """Load a run with its finished folds; its folder's name is the default ``name``.

    Raises
    ------
    UserError
        ``run`` is not a run, no fold is finished, a fold is damaged, or two folds are of different
        runs.
    """
    numbers = run.info().folds
    finished = {k: run.fold(k) for k in numbers if run.fold(k).result.is_file()}
    if not finished:
        raise UserError(
            f"{run.root} has no finished fold: no fold-K/result.json for K in {join(numbers)}"
        )
    loaded = LoadedRun(
        run, name or run.root.name, numbers, {k: load_fold(f) for k, f in finished.items()}
    )
    for k, fold in loaded.folds.items():
        if fold.result.fold != k:
            raise UserError(
                f"{finished[k].result} is of fold {fold.result.fold}: fold folders must not be "
                "renamed"
            )
        for field in _SAME:
            values = getattr(loaded.result, field), getattr(fold.result, field)
            if values[0] != values[1]:
                raise UserError(
                    f"{run.root}: folds {loaded.result.fold} and {k} differ in {field} "
                    f"({values[0]}, {values[1]}): they are of different runs; train or evaluate "
                    "one of them again"
                )
    return loaded


def load_fold(files: FoldDir) -> LoadedFold:
    """Load a finished fold with its predictions.

    Raises
    ------
    UserError
        A file is missing or damaged, or the predictions contradict the result.
    """
    result = FoldResult.read(files.result)
    if result.selection not in PROTOCOLS:
        raise UserError(
            f"{files.result}: selection '{result.selection}' is none of {', '.join(PROTOCOLS)}"
        )
    table = read_predictions(files.predictions, result.classes)
    check_scores(files.result, result.scores, table.scores)
    if result.votes:
        found = None
        if table.votes is not None and table.logits is not None:
            found = score_votes(table.votes, table.logits)
        if found is None or found.n != result.votes.n or abs(found.kl - result.votes.kl) > 1e-3:
            raise UserError(
                f"{files.result}: its scores against votes are not those of the predictions next "
                "to it: evaluate this fold again"
            )
    shuffled = None
    if result.shuffled:
        shuffled = read_predictions(files.shuffled_predictions, result.classes)
        check_scores(files.result, result.shuffled, shuffled.scores)
        if shuffled.scores.support != table.scores.support:
            raise UserError(
                f"{files.shuffled_predictions} has other clips than {files.predictions.name}: "
                "evaluate this fold again"
            )
    # older versions did not record all of them
    complete = replace(result, **vars(table.scores))
    if result.output == "softmax":
        complete = replace(complete, calibration=score_calibration(table.outputs))
    return LoadedFold(complete, table, shuffled, training_cost(files, result))


def read_predictions(path: Path, classes: list[str]) -> ScoredPredictions:
    """Read and score a table of predictions.

    Raises
    ------
    UserError
        If it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
        if "predicted" in columns:
            return _read_classes(path, classes)
        has_sets, has_votes = "labels" in columns, "votes" in columns
        more = ["labels"] * has_sets + ["votes"] * has_votes
        data = pq.read_table(path, columns=["key", "label", "logits", *more])
        if data["label"].null_count:
            raise ValueError("a clip has no label")
        if pc.count_distinct(data["key"]).as_py() != data.num_rows:
            raise ValueError("a key occurs twice")
        labels = data["label"].to_numpy()
        values = _matrix(data, "logits", len(classes))
        votes = None
        if has_votes:
            votes = _matrix(data, "votes", len(classes))
        predicted = top_class(values)
        sets = data["labels"].to_pylist() if has_sets else None
        scores = score_table(labels, values, classes, sets)
    except (OSError, LookupError, ValueError, TypeError, AttributeError, pa.ArrowException) as e:
        reason = str(e).partition("\n")[0]
        raise UserError(f"{path} is missing or damaged ({reason}): evaluate this fold again") from e
    if votes is not None and not votes.any():
        votes = None
    return ScoredPredictions(data["key"].to_pylist(), labels, values, predicted, scores, votes)


def _read_classes(path: Path, classes: list[str]) -> ScoredPredictions:
    """Read a table without logits, as :func:`read_predictions`."""
    import pyarrow.parquet as pq

    data = pq.read_table(path, columns=["key", "label", "predicted"])
    keys = data["key"].to_pylist()
    if len(set(keys)) < len(keys):
        raise ValueError("a key occurs twice")
    labels, predicted = (data[name].to_numpy() for name in ("label", "predicted"))
    return ScoredPredictions(keys, labels, None, predicted, score(labels, predicted, classes))


def _matrix(table: pa.Table, name: str, width: int) -> NDArray[np.float32]:
    """Return a column of lists as a matrix, float32 [N, ``width``].

    Raises
    ------
    ValueError
        If a list has another length.
    """
    import pyarrow.compute as pc

    lists = table[name].combine_chunks()
    if pc.value_counts(pc.list_value_length(lists)).field(0).to_pylist() != [width]:
        raise ValueError(f"not every clip has {width} {name}")
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, width))


def check_scores(path: Path, written: Scores | UarWar, scores: Scores) -> None:
    """Check the scores ``written`` in the file ``path`` against computed ones.

    Raises
    ------
    UserError
        If one of them differs.
    """
    metrics = metric_values(written) if isinstance(written, Scores) else vars(written)
    computed_metrics = metric_values(scores)
    for name in ("n", "support", "confusion", *metrics):
        computed = computed_metrics.get(name, getattr(scores, name, None))
        value = metrics.get(name, getattr(written, name, computed))
        same = value == computed
        if name in metrics and name in computed_metrics:
            same = abs(metrics[name] - computed_metrics[name]) <= _TOLERANCE
        if not same:
            raise UserError(
                f"{path}: its {name} is not that of the predictions next to it (it has {value}, "
                f"they give {computed}): evaluate this fold again"
            )


def folds_name(run: RunDir, folds_hash: str | None) -> str:
    """Return how reports name the folds of a run: ``folds_hash`` is None for the set's own."""
    if folds_hash is None:
        return "the set's own"
    with suppress(UserError):
        return FoldOverlay.read(run.folds).name
    return folds_hash[:12]


def read_settings(run: RunDir) -> Config | None:
    """Return the settings of a run; None if this version cannot read them."""
    with suppress(UserError):
        return read_config(run.config)
    return None


def vote_values(table: ScoredPredictions) -> tuple[NDArray[np.float64], Ints]:
    """Return the divergence and the agreement of the clips with votes, [2, N], and their labels."""
    assert table.votes is not None
    assert table.logits is not None
    known = table.votes.any(1)
    votes = table.votes[known]
    divergence = kl_divergence(votes, table.logits[known])
    return np.stack([divergence, any_annotator(votes, table.predicted[known])]), table.labels[known]


def _votes_spread(tables: Sequence[ScoredPredictions]) -> VotesSpread | None:
    if any(t.votes is None for t in tables):
        return None
    values, labels = zip(*map(vote_values, tables), strict=True)
    by_fold = np.array([v.mean(1) for v in values])
    spreads = []
    for i, found in enumerate(mean_over_folds(values, labels)):
        _, deviation = _mean_and_deviation(by_fold[:, i].tolist())
        spreads.append(Spread(found.value, deviation, [found.low, found.high]))
    return VotesSpread(sum(map(len, labels)), *spreads)


def _multilabel_spreads(scores: Sequence[Scores]) -> dict[str, Spread]:
    """Return the metrics of sets of labels that all folds have."""
    by_fold = [metric_values(s) for s in scores]
    return {
        name: Spread(*_mean_and_deviation([values[name] for values in by_fold]), [])
        for name in MULTILABEL_METRICS
        if all(name in values for values in by_fold)
    }


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    deviation = None
    if len(values) > 1:
        deviation = float(np.std(values, ddof=1))
    return float(np.mean(values)), deviation


def _common_metrics(tables: Sequence[ScoredPredictions]) -> list[str]:
    """Return the metrics that all tables have."""
    return [m for m in METRICS if all(getattr(t.scores, m) is not None for t in tables)]


def score_spread(tables: Sequence[ScoredPredictions], metric: str) -> Spread:
    """Return mean, deviation and interval of a metric over the tables of folds."""
    values = [getattr(t.scores, metric) for t in tables]
    outputs = {"top2": "logits"}.get(metric, "predicted")
    pairs = [(t.labels, getattr(t, outputs)) for t in tables]
    interval = bootstrap_ci(pairs, len(tables[0].scores.classes), metric)
    return Spread(*_mean_and_deviation(values), list(interval))
