"""Runs as training leaves them, made of random predictions, for tests of reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfer_dist.config.load import dump_config, read_config
from dfer_dist.config.schema import Config
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.reader import ClipReader
from dfer_dist.evaluation.features import ClipFeatures, FeatureInfo
from dfer_dist.evaluation.metrics import score
from dfer_dist.evaluation.votes import score_votes
from dfer_dist.reporting import files
from dfer_dist.reporting.results import LoadedRun, load_run
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import VoteScores
from dfer_dist.utils.files import read_json, write_json

CLASSES = ["happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"]
# Names that need escaping in Markdown, LaTeX or HTML.
SPECIAL_NAMES = ["a_b", "c&d", "<i>e</i>", "100%", "x|y", "#$~^\\$", "{fear}"]
SHARES = np.array([0.2, 0.16, 0.24, 0.18, 0.12, 0.02, 0.08, 0.1, 0.1, 0.1, 0.1])
# Of the folds of make_fold.
FEATURES = FeatureInfo(
    model="tiny (none)",
    layer="class token after the temporal transformer",
    normalization="unit length (L2)",
    views=1,
    checkpoint="c",
    checkpoint_sha256="aa",
    dataset="DFEW",
    index_hash="bb",
    fold=1,
    classes=CLASSES,
    texts={},
)


def made_features(labels: Sequence[int], info: FeatureInfo = FEATURES) -> ClipFeatures:
    """Return features around a direction for each class, and texts apart from all clips."""
    rng = np.random.default_rng(len(labels))
    directions = rng.normal(size=(len(CLASSES), 16))
    clips = directions[np.array(labels)] + 0.5 * rng.normal(size=(len(labels), 16)) + 2

    def unit(rows: np.ndarray) -> np.ndarray:
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    keys = [f"clip-{i}" for i in range(len(labels))]
    texts = {"positive": unit(directions - 2).tolist()}
    return ClipFeatures(replace(info, texts=texts), keys, np.array(labels, np.int32), unit(clips))


def write_table(
    path: Path,
    labels: np.ndarray,
    logits: np.ndarray,
    keys: list[str] | None = None,
    votes: np.ndarray | None = None,
) -> None:
    columns = {
        "key": keys or [f"clip-{i}" for i in range(len(labels))],
        "label": pa.array(labels, pa.int32()),
        "logits": pa.array(list(logits), pa.list_(pa.float32())),
    }
    if votes is not None:
        columns["votes"] = pa.array(list(votes), pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), path)


def made_scores(votes: np.ndarray, logits: np.ndarray) -> VoteScores:
    """Return the scores against votes of which some are given."""
    scores = score_votes(votes, logits)
    assert scores is not None
    return scores


def make_fold(
    run: Path,
    k: int,
    n: int = 200,
    shuffled: bool = False,
    without: int | None = None,
    sure: float = 2.0,
    classes: list[str] = CLASSES,
    voted: bool = False,
    **fields: Any,
) -> Path:
    """Write a fold as an evaluation leaves it.

    ``sure`` is added to the logit of the true class; ``fields`` replace those of result.json. With
    ``voted`` all clips but the first have ten votes.
    """
    rng = np.random.default_rng(k)
    count = len(classes)
    labels = rng.choice(count, size=n, p=SHARES[:count] / SHARES[:count].sum())
    labels = labels[labels != without]
    logits = rng.normal(size=(len(labels), count)).astype(np.float32)
    noise, logits = logits.copy(), logits + sure * np.eye(count, dtype=np.float32)[labels]
    fold = run / f"fold-{k}"
    fold.mkdir(parents=True)
    votes = None
    if voted:
        shares = 0.7 * np.eye(count)[labels] + 0.3 / count
        votes = np.random.default_rng([k, 1]).multinomial(10, shares).astype(np.float32)
        votes[0] = 0
        fields = {"votes": asdict(made_scores(votes, logits)), **fields}
    write_table(fold / "predictions.parquet", labels, logits, votes=votes)
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
    """Write a run with settings, provenance, curves and attempts; ``how`` is for make_fold."""
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
            "time": "2026-02-03T10:00:00+00:00",
            "data": data,
            "git": {"sha": "abc123", "diff": "x"},
            "versions": {"torch": "2.9"},
        },
    )
    write_json(
        run.run, {"name": root.name, "folds": list(range(1, all_folds + 1)), "tracking": None}
    )
    return run


def make_run_with_gaps(runs: Path) -> RunDir:
    """Write a run without folds 2 and 4 of 5, with an absent class and special names."""
    return make_run(runs / "a_b & <c>", (1, 3, 5), 5, classes=SPECIAL_NAMES, without=5)


def make_misclassified_run(root: Path, shards: Index) -> RunDir:
    """Write a run on ``shards`` whose folds 1 and 2 predict the next class for every clip.

    The later the clip, the more confident the prediction.
    """
    run = make_run(root, (), 5)
    config = read_config(run.config)
    config.data.shards = str(shards.root)
    run.config.write_text(dump_config(config))
    reader = ClipReader(shards)
    for k in (1, 2):
        clips = [(s, row) for s in shards.test_shards(k) for row in range(shards.shards[s].clips)]
        labels = np.array([reader.label(*clip) for clip in clips])
        logits = np.eye(7)[(labels + 1) % 7] * (1 + np.arange(len(labels)) + 0.1 * k)[:, None]
        run.fold(k).root.mkdir()
        keys = [reader.key(*clip) for clip in clips]
        write_table(run.fold(k).predictions, labels, logits, keys)
        result = {
            "dataset": "dfew",
            "fold": k,
            **vars(score(labels, logits, list(shards.classes))),
            "selection": "last",
            "epoch": 1,
            "config_hash": "a",
            "index_hash": shards.hash,
        }
        write_json(run.fold(k).result, result)
    return run


def load_made(root: Path, folds: list[int]) -> LoadedRun:
    """Load the folds that make_fold wrote, as a run whose folds are ``folds``."""
    write_json(RunDir(root).run, {"folds": folds})
    return load_run(RunDir(root))


def write_summary(loaded: LoadedRun) -> dict[str, Any]:
    """Write the summary of a run without its page, which takes seconds; return ``summary.json``."""
    files.write_summary(loaded, files.run_report(loaded))
    return read_json(loaded.run.summary)
