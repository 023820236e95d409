"""Results, checked against the predictions next to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dfer_dist.reporting.results import load_fold
from dfer_dist.runs.layout import FoldDir
from dfer_dist.utils.errors import UserError
from tests.helpers.made_runs import CLASSES, load_made, make_fold, write_table


def change(fold: Path, **fields: Any) -> None:
    path = fold / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _truncate(fold: Path) -> None:
    path = fold / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:-200])


def _flip(fold: Path) -> None:
    path = fold / "predictions.parquet"
    data = pq.read_table(path).to_pydict()
    labels = np.array(data["label"])
    labels[0] = (labels[0] + 1) % len(CLASSES)
    write_table(path, labels, np.array(data["logits"]))


def _rows(
    keep: slice, keys: Callable[[list[str]], list[str]] = lambda k: k
) -> Callable[[Path], None]:
    def damage(fold: Path) -> None:
        path = fold / "predictions.parquet"
        data = pq.read_table(path).to_pydict()
        write_table(
            path,
            np.array(data["label"])[keep],
            np.array(data["logits"])[keep],
            keys(data["key"][keep]),
        )

    return damage


def _ragged(fold: Path) -> None:
    logits = pa.array([[1.0] * 7, [1.0] * 6, [1.0] * 8], pa.list_(pa.float32()))
    table = {"key": ["a", "b", "c"], "label": pa.array([0, 1, 2], pa.int32()), "logits": logits}
    pq.write_table(pa.table(table), fold / "predictions.parquet")


@pytest.mark.parametrize(
    ("damage", "file", "text"),
    [
        (_truncate, "predictions.parquet", "damaged"),
        (lambda f: (f / "predictions.parquet").unlink(), "predictions.parquet", "missing"),
        (
            lambda f: pq.write_table(pa.table({"key": ["a"]}), f / "predictions.parquet"),
            "predictions.parquet",
            "label",
        ),
        (_rows(slice(0, 0)), "predictions.parquet", "damaged"),
        (
            _rows(slice(None), lambda k: [k[0], *k[:-1]]),
            "predictions.parquet",
            "a key occurs twice",
        ),
        (_ragged, "predictions.parquet", "7 logits"),
        (_rows(slice(0, -1)), "result.json", "n is not that"),
        (_flip, "result.json", "support|confusion"),
        (lambda f: change(f, war=99.0), "result.json", r"war is not .*it has 99\.0"),
        (lambda f: change(f, uar=None), "result.json", "uar"),
        (lambda f: change(f, version=2), "result.json", "version"),
        (lambda f: change(f, selection="best"), "result.json", "best_test"),
        (
            lambda f: change(f, shuffled={"uar": 1.0, "war": 1.0}),
            "predictions_shuffled.parquet",
            "missing",
        ),
        (lambda f: (f / "result.json").write_text("{"), "result.json", "read"),
        (
            lambda f: (f / "result.json").write_text('{"version": 1}'),
            "result.json",
            "lacks dataset",
        ),
    ],
)
def test_load_fold_names_damaged_file(
    tmp_path: Path, damage: Callable[[Path], object], file: str, text: str
) -> None:
    fold = make_fold(tmp_path, 1)
    assert load_fold(FoldDir(fold)).result.n == 200
    damage(fold)
    with pytest.raises(UserError, match=text) as e:
        load_fold(FoldDir(fold))
    assert str(fold / file) in str(e.value)


@pytest.mark.parametrize(
    "fields",
    [{"config_hash": "cc"}, {"index_hash": "cc"}, {"dataset": "MAFW"}, {"selection": "best_val"}],
    ids=lambda f: next(iter(f)),
)
def test_load_run_rejects_folds_of_different_runs(tmp_path: Path, fields: dict[str, Any]) -> None:
    for k in (1, 2, 3):
        make_fold(tmp_path, k, **(fields if k == 3 else {}))
    with pytest.raises(UserError, match=f"folds 1 and 3 differ in {next(iter(fields))}"):
        load_made(tmp_path, [1, 2, 3])


def test_load_run_rejects_renamed_classes_and_folders(tmp_path: Path) -> None:
    make_fold(tmp_path, 1)
    other = make_fold(tmp_path, 2)
    result = json.loads((other / "result.json").read_text())
    names = ["joy", *CLASSES[1:]]
    support = dict(zip(names, result["support"].values(), strict=True))
    change(other, classes=names, support=support)
    with pytest.raises(UserError, match="folds 1 and 2 differ in classes"):
        load_made(tmp_path, [1, 2])
    other.rename(tmp_path / "fold-3")
    with pytest.raises(UserError, match="is of fold 2"):
        load_made(tmp_path, [1, 3])
