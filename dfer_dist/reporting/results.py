"""What stands in ``fold-K/``, read and held against the predictions beside it.

A result is never believed: its figures are computed again from the table of predictions. Folds of different runs are never mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
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
_SAME = (
    "dataset",
    "selection",
    "classes",
    "config_hash",
    "index_hash",
)  # folds that differ here are of different runs
_REQUIRED = (*_SAME, "fold", "n", "uar", "war", "support", "confusion", "absent", "epoch")


@dataclass(frozen=True)
class Predictions:
    """A row a clip, in the order of the file: keys [N], labels [N], logits [N, C], the predicted classes [N], and their scores."""

    keys: list[str]
    labels: Ints
    logits: NDArray[np.float32]
    predicted: Ints
    scores: Scores


@dataclass(frozen=True)
class FoldResult:
    """A finished fold: ``result.json``, its predictions, and those with shuffled frames where they were made."""

    result: dict[str, Any]
    table: Predictions
    shuffled: Predictions | None


def read_fold(fold_dir: Path) -> dict[str, Any]:
    """The ``result.json`` of a fold, checked against the predictions beside it.

    Raises
    ------
    UserError
        A file that is missing or damaged, or figures that the predictions do not give; the text names the file.
    """
    return load_fold(fold_dir).result


def load_folds(run: RunDir, folds: Sequence[int]) -> list[FoldResult]:
    """Those of ``folds`` that are done.

    Raises
    ------
    UserError
        No fold is done, a fold is damaged, or two folds are of different runs.
    """
    there = [k for k in folds if run.fold(k).result.is_file()]
    if not there:
        raise UserError(
            f"{run.root} has no finished fold: no fold-K/result.json for K in {', '.join(map(str, folds))}"
        )
    loaded = [load_fold(run.fold(k).root) for k in there]
    for k, fold in zip(there, loaded, strict=True):
        _check_same_run(run, k, fold.result, there[0], loaded[0].result)
    return loaded


def load_fold(fold_dir: Path) -> FoldResult:
    """A finished fold with its predictions. Errors as for :func:`read_fold`."""
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
    check_figures(files.result, result, table.scores, ("n", "support", "confusion", "uar", "war"))
    shuffled = None
    if result.get("shuffled") is not None:
        shuffled = read_predictions(files.shuffled_predictions, result["classes"])
        check_figures(files.result, result["shuffled"], shuffled.scores, ("uar", "war"))
        if shuffled.scores.support != table.scores.support:
            raise UserError(
                f"{files.shuffled_predictions} has other clips than {files.predictions.name}: evaluate this fold again"
            )
    return FoldResult(result, table, shuffled)


def read_predictions(path: Path, classes: list[str]) -> Predictions:
    """A table of predictions.

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
        return Predictions(
            data["key"].to_pylist(), labels, values, predicted, score(labels, predicted, classes)
        )
    except (OSError, KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as e:
        reason = str(e).partition("\n")[0]
        raise UserError(f"{path} is missing or damaged ({reason}): evaluate this fold again") from e


def check_figures(path: Path, written: Any, scores: Scores, names: tuple[str, ...]) -> None:
    """Hold figures ``written`` in the file ``path`` against ``scores``.

    Raises
    ------
    UserError
        If one of ``names`` differs.
    """
    for name in names:
        said, counted = written.get(name), getattr(scores, name)
        # a hundredth leaves room for rounded figures; a clip more or less is seen in the confusion matrix
        same = (
            isinstance(said, int | float) and abs(said - counted) <= 0.01
            if name in ("uar", "war")
            else said == counted
        )
        if not same:
            detail = (
                f" (it says {said}, they give {counted})" if name in ("n", "uar", "war") else ""
            )
            raise UserError(
                f"{path}: its {name} is not that of the predictions beside it{detail}: evaluate this fold again"
            )


def _check_same_run(
    run: RunDir, k: int, result: dict[str, Any], first: int, reference: dict[str, Any]
) -> None:
    if result["fold"] != k:
        raise UserError(
            f"{run.fold(k).result} is of fold {result['fold']}: fold folders must not be renamed"
        )
    for name in _SAME:
        if result[name] != reference[name]:
            what = f"folds {first} and {k} differ in {name} ({reference[name]}, {result[name]})"
            raise UserError(
                f"{run.root}: {what}: they are of different runs; train or evaluate one of them again"
            )
