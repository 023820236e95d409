"""Runs as training leaves them, made of random predictions, for tests of reports."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfer_dist.config.load import dump_config
from dfer_dist.config.schema import Config
from dfer_dist.evaluation.metrics import score
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import write_json

CLASSES = ["happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"]
SHARES = np.array([0.2, 0.16, 0.24, 0.18, 0.12, 0.02, 0.08])


def write_table(
    path: Path, labels: np.ndarray, logits: np.ndarray, keys: list[str] | None = None
) -> None:
    columns = {
        "key": keys or [f"clip-{i}" for i in range(len(labels))],
        "label": pa.array(labels, pa.int32()),
        "logits": pa.array(list(logits), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), path)


def make_fold(
    run: Path,
    k: int,
    n: int = 200,
    shuffled: bool = False,
    without: int | None = None,
    sure: float = 2.0,
    classes: list[str] = CLASSES,
    **fields: Any,
) -> Path:
    """A fold as an evaluation leaves it; ``sure`` is how far the true class stands out, ``fields`` replace those of result.json."""
    rng = np.random.default_rng(k)
    count = len(classes)
    labels = rng.choice(count, size=n, p=SHARES[:count] / SHARES[:count].sum())
    labels = labels[labels != without]
    logits = rng.normal(size=(len(labels), count)).astype(np.float32)
    noise, logits = logits.copy(), logits + sure * np.eye(count, dtype=np.float32)[labels]
    fold = run / f"fold-{k}"
    fold.mkdir(parents=True)
    write_table(fold / "predictions.parquet", labels, logits)
    result: dict[str, Any] = {
        "version": 1,
        "dataset": "DFEW",
        "fold": k,
        **asdict(score(labels, logits, classes)),
    }
    result |= {
        "selection": "last",
        "epoch": 10 + k,
        "step": 9,
        "checkpoint": "c",
        "config_hash": "aa",
        "index_hash": "bb",
    }
    result["shuffled"] = None
    if shuffled:
        write_table(fold / "predictions_shuffled.parquet", labels, noise)
        random = score(labels, noise, classes)
        result["shuffled"] = {"uar": random.uar, "war": random.war}
    (fold / "result.json").write_text(json.dumps(result | fields))
    return fold


def make_run(
    root: Path,
    folds: tuple[int, ...] = (1, 2, 3),
    all_folds: int = 3,
    history: bool = True,
    **how: Any,
) -> RunDir:
    """A run with its settings, provenance, curves and attempts; ``how`` is for :func:`make_fold`."""
    run = RunDir(root)
    root.mkdir(parents=True)
    for k in folds:
        make_fold(root, k, **how)
        lines = [
            {
                "step": s,
                "epoch": s // 10,
                "time": 1000.0 + s,
                "loss": 2 / s,
                "clips_per_second": 50.0,
            }
            for s in range(1, 31)
        ]
        if history:
            run.fold(k).metrics.write_text(
                "".join(json.dumps(x) + "\n" for x in lines) + '{"step": 31, "ep'
            )
            attempt = {
                "started": "2026-01-01T10:00:00+00:00",
                "ended": "2026-01-01T10:30:00+00:00",
                "world_size": 4,
            }
            write_json(
                run.fold(k).status,
                {"state": "DONE", "steps": 30, "attempts": [{**attempt, "undone_steps": 3}]},
            )
    config = Config()
    config.data.shards = "/secret/place/shards"
    run.config.write_text(dump_config(config))
    data = {"name": "DFEW", "hash": "bb", "shards": "/secret/place/shards"}
    origin = {
        "command": ["/home/me/bin/dfer", "crossval", "data.shards=/secret/place/shards"],
        "user": "myself",
        "host": "mymachine",
    }
    write_json(
        run.provenance,
        {
            **origin,
            "data": data,
            "git": {"sha": "abc123", "diff": "x"},
            "versions": {"torch": "2.9"},
        },
    )
    write_json(
        run.run, {"name": root.name, "folds": list(range(1, all_folds + 1)), "tracking": None}
    )
    return run
