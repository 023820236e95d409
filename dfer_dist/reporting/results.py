"""Finished folds: ``result.json``, checked against the predictions next to it.

A result is never trusted: its scores are computed again from the table of predictions. Folds of
different runs are never mixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfer_dist.evaluation.metrics import Ints, Scores, score, top_class
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json

SELECTIONS = ("last", "best_val", "best_test")
# Folds that differ in one of these are of different runs.
_SAME = ("dataset", "selection", "classes", "config_hash", "index_hash")
_REQUIRED = (*_SAME, "fold", "n", "uar", "war", "support", "confusion", "absent", "epoch")
# In percent points. Allows for rounded scores; a clip more or less shows in the confusion.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class ScoredPredictions:
    """Predictions of N clips in the order of their file, and their scores.

    Attributes
    ----------
    keys : list of N str
    labels : int [N]
    logits : float32 [N, C]
    predicted : int [N]
        The class with the highest logit.
    scores : Scores
    """

    keys: list[str]
    labels: Ints
    logits: NDArray[np.float32]
    predicted: Ints
    scores: Scores


@dataclass(frozen=True)
class LoadedFold:
    """A finished fold: ``result.json`` and its predictions.

    Attributes
    ----------
    result : dict
    table : ScoredPredictions
    shuffled : ScoredPredictions or None
        Predictions from shuffled frames, if they were made.
    """

    result: dict[str, Any]
    table: ScoredPredictions
    shuffled: ScoredPredictions | None


def read_fold(fold_dir: Path) -> dict[str, Any]:
    """Return the ``result.json`` of a fold, checked against its predictions.

    Raises
    ------
    UserError
        As :func:`load_fold`.
    """
    return load_fold(fold_dir).result


def load_folds(run: RunDir, folds: Sequence[int]) -> list[LoadedFold]:
    """Load those of ``folds`` that are finished.

    Raises
    ------
    UserError
        No fold is finished, a fold is damaged, or two folds are of different runs.
    """
    finished = [k for k in folds if run.fold(k).result.is_file()]
    if not finished:
        numbers = ", ".join(map(str, folds))
        raise UserError(
            f"{run.root} has no finished fold: no fold-K/result.json for K in {numbers}"
        )
    loaded = [load_fold(run.fold(k).root) for k in finished]
    for k, fold in zip(finished, loaded, strict=True):
        if fold.result["fold"] != k:
            raise UserError(
                f"{run.fold(k).result} is of fold {fold.result['fold']}: "
                "fold folders must not be renamed"
            )
        _check_same_run(run, loaded[0].result, fold.result)
    return loaded


def load_fold(fold_dir: Path) -> LoadedFold:
    """Load a finished fold with its predictions.

    Raises
    ------
    UserError
        A file is missing or damaged, or the predictions contradict the result.
    """
    files = FoldDir(fold_dir)
    result = read_json(files.result)
    lacking = [k for k in _REQUIRED if k not in result]
    if lacking:
        raise UserError(f"{files.result} lacks {', '.join(lacking)}: evaluate this fold again")
    if result["selection"] not in SELECTIONS:
        raise UserError(
            f"{files.result}: selection '{result['selection']}' is none of {', '.join(SELECTIONS)}"
        )
    table = read_predictions(files.predictions, result["classes"])
    check_scores(files.result, result, table.scores, ("n", "support", "confusion", "uar", "war"))
    shuffled = None
    if result.get("shuffled") is not None:
        shuffled = read_predictions(files.shuffled_predictions, result["classes"])
        check_scores(files.result, result["shuffled"], shuffled.scores, ("uar", "war"))
        if shuffled.scores.support != table.scores.support:
            raise UserError(
                f"{files.shuffled_predictions} has other clips than {files.predictions.name}: "
                "evaluate this fold again"
            )
    return LoadedFold(result, table, shuffled)


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
        data = pq.read_table(path, columns=["key", "label", "logits"])
        logits = data["logits"].combine_chunks()
        widths = pc.value_counts(pc.list_value_length(logits)).field(0).to_pylist()
        if widths != [len(classes)] or data["label"].null_count:
            raise ValueError(f"not every clip has {len(classes)} logits and a label")
        if pc.count_distinct(data["key"]).as_py() != data.num_rows:
            raise ValueError("a key occurs twice")
        labels = data["label"].to_numpy()
        values = logits.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(classes))
        predicted = top_class(values)
        scores = score(labels, predicted, classes)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as e:
        reason = str(e).partition("\n")[0]
        raise UserError(f"{path} is missing or damaged ({reason}): evaluate this fold again") from e
    return ScoredPredictions(data["key"].to_pylist(), labels, values, predicted, scores)


def check_scores(
    path: Path, written: Mapping[str, Any], scores: Scores, names: Sequence[str]
) -> None:
    """Check the scores ``written`` in the file ``path`` against computed ones.

    Raises
    ------
    UserError
        If one of ``names`` differs.
    """
    for name in names:
        value, computed = written.get(name), getattr(scores, name)
        same = value == computed
        if name in ("uar", "war"):
            same = isinstance(value, int | float) and abs(value - computed) <= _TOLERANCE
        if not same:
            detail = ""
            if name in ("n", "uar", "war"):
                detail = f" (it has {value}, they give {computed})"
            raise UserError(
                f"{path}: its {name} is not that of the predictions next to it{detail}: "
                "evaluate this fold again"
            )


def _check_same_run(run: RunDir, first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for name in _SAME:
        if other[name] != first[name]:
            folds = f"folds {first['fold']} and {other['fold']}"
            raise UserError(
                f"{run.root}: {folds} differ in {name} ({first[name]}, {other[name]}): they are "
                "of different runs; train or evaluate one of them again"
            )
