"""The records of a run folder against files that earlier versions wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dfer_dist.runs.records import AttemptRecord, FoldResult, FoldStatus, RunInfo
from dfer_dist.runs.summary import Summary
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json

RESULT: dict[str, Any] = {
    "dataset": "DFEW",
    "fold": 1,
    "n": 3,
    "uar": 50.0,
    "war": 66.5,
    "recall": {"anger": 100.0, "fear": 0, "sadness": None},
    "support": {"anger": 2, "fear": 1, "sadness": 0},
    "confusion": [[2, 0, 0], [1, 0, 0], [0, 0, 0]],
    "classes": ["anger", "fear", "sadness"],
    "absent": ["sadness"],
    "selection": "last",
    "epoch": 2,
    "step": 12,
    "checkpoint": "checkpoints/step-00000012",
    "config_hash": "aa",
    "index_hash": "bb",
    "levels": ["parsing"],
    "levels_hash": "cc",
}


def test_fold_result_keeps_its_stored_keys(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, RESULT)
    result = FoldResult.read(path)
    assert result.modalities == ["parsing"] and result.modalities_hash == "cc"
    assert result.scores.recall["sadness"] is None and result.scores.n == 3
    assert RESULT.items() <= result.to_json().items()


def test_fold_result_without_a_score_says_to_evaluate(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {k: v for k, v in RESULT.items() if k not in ("uar", "classes")})
    with pytest.raises(UserError, match="lacks uar, classes: evaluate this fold again"):
        FoldResult.read(path)


def test_fold_status_round_trip_keeps_attempts(tmp_path: Path) -> None:
    attempt = AttemptRecord(job="7", world_size=2, started="2026-01-01T10:00:00+00:00")
    status = FoldStatus("RUNNING", 30, [attempt, AttemptRecord(steps_repeated=3)])
    status.write(tmp_path / "status.json")
    assert FoldStatus.read(tmp_path / "status.json") == status
    stored = json.loads((tmp_path / "status.json").read_text())
    assert stored["attempts"][1]["undone_steps"] == 3 and stored["version"] == 1
    assert status.last == AttemptRecord(steps_repeated=3) and FoldStatus().last is None


def test_run_info_of_the_first_version_is_keyed_by_run_id() -> None:
    tracking = {"uri": "http://t", "experiment_id": "1", "run_id": "r", "folds": {"1": "c"}}
    old = RunInfo.from_json({"dataset": "DFEW", "folds": [1], "tracking": tracking}, "run.json")
    assert old.tracking is not None
    assert (old.tracking.key, old.tracking.experiment) == ("r", "DFEW")
    now = RunInfo.from_json(old.to_json(), "run.json")
    assert now == old


def test_run_info_without_folds_is_damaged() -> None:
    with pytest.raises(UserError, match=r"run\.json: lacks folds: it is damaged"):
        RunInfo.from_json({"name": "x"}, "run.json")


def test_summary_survives_a_round_trip() -> None:
    spread = {"mean": 50.0, "std": None, "ci95": [40.0, 60.0]}
    values = {
        "dataset": "DFEW",
        "selection": "last",
        "folds": [RESULT],
        "missing": [2],
        "uar": spread,
        "war": spread,
        "macro_f1": spread,
        "weighted_f1": None,
        "top2": spread,
        "kappa": None,
        "calibration": None,
        "pooled": {k: RESULT[k] for k in ("n", "uar", "war", "recall", "support", "confusion")}
        | {"classes": RESULT["classes"], "absent": RESULT["absent"]}
        | dict.fromkeys(
            ["macro_f1", "weighted_f1", "top2", "kappa", "mean_ap", "auc", "multilabel"]
        ),
        "validation": "validation part of fold 1, seed 0",
        "majority": {"class": "anger", "war": 66.5},
        "shuffled": None,
        "multilabel": {},
        "votes": {"n": 3, "kl": spread, "any_annotator": spread},
        "cost": {
            "trained_parameters": 7,
            "clips_per_second": 1.5,
            "peak_bytes": None,
            "parameters": 9,
            "ranks": [1, 2],
            "device_hours": 0.5,
        },
    }
    summary = Summary.from_json(values, "summary.json")
    assert summary.majority.class_name == "anger" and summary.folds[0].fold == 1
    assert {k: v for k, v in summary.to_json().items() if k != "folds"} == {
        k: v for k, v in values.items() if k != "folds"
    }
