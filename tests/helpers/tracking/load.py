"""Send five folds at once to a tracking server, and compare it with their files."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dfer_dist.data.shards.index import Index
from dfer_dist.evaluation.metrics import score
from dfer_dist.reporting.plots.page import curves_png
from dfer_dist.reporting.plots.scores import confusion_png
from dfer_dist.reporting.results import load_run
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import FoldResult
from dfer_dist.tracking.metric_names import CURRENT
from dfer_dist.tracking.mlflow_runs import begin, tracking_of
from dfer_dist.tracking.sync import SyncReport, end_run, sync
from dfer_dist.utils.files import write_json
from launch.runs import open_run
from tests.helpers.forked import Forked
from tests.helpers.made_runs import write_summary
from tests.helpers.paths import HELPERS
from tests.helpers.tracking.servers import Site

FILES = {
    "config.yaml",
    "provenance.json",
    "result.json",
    "predictions.parquet",
    "confusion.png",
    "curves.png",
    "recall.csv",
}
# Metrics that are sent once they are not zero.
RARE = ("loss_spike", "skipped_steps", "lost_clips")


@dataclass
class Trial:
    """A run of five folds whose metrics are sent to ``uri``."""

    site: Site
    shards: Index
    root: Path
    uri: str
    name: str
    # Seconds of the slowest line, and of all lines of each fold.
    longest: float = 0.0
    seconds: dict[int, float] = field(default_factory=dict)

    @property
    def run(self) -> RunDir:
        return RunDir(self.root / self.name)

    def open(self, *settings: str) -> float:
        """Create the run as ``dfer crossval`` does, and return the seconds."""
        times = time.perf_counter()
        overrides = [
            f"data.shards={self.shards.root}",
            f"tracking.uri={self.uri}",
            "train.global_batch=8",
            *settings,
        ]
        open_run(self.root, self.name, "demo", overrides, (), None, 1)
        begin(self.run)
        return time.perf_counter() - times

    def start(self, lines: int, pause: float) -> list[Forked]:
        script = str(HELPERS / "tracking" / "fold.py")
        arguments = [str(lines), str(pause)]
        return [
            Forked([script, str(self.run.root), str(k), *arguments], os.environ)
            for k in self.run.info().folds
        ]

    def finish(self, folds: list[Forked], end: bool = True) -> str:
        """Wait for all folds, end the run as the command does, and return their messages."""
        said = ""
        for k, process in enumerate(folds, 1):
            done = process.wait(timeout=240)
            assert done.returncode == 0, done.stderr
            longest, self.seconds[k] = map(float, done.stdout.split())
            self.longest, said = max(self.longest, longest), said + done.stderr
        for k in self.run.info().folds:
            write_result(self.run, k)
        write_summary(load_run(self.run))
        if end:
            self.end()
        return said

    def end(self) -> None:
        """End the run, as the command does when all folds are done."""
        end_run(self.run, "FINISHED")

    def nobody_waited(self) -> None:
        """Assert that no line waited for the server.

        The shortest timeout is much longer; less is other work on the cores.
        """
        assert self.longest < 4

    def sync(self) -> SyncReport:
        return sync(self.run)

    def check(self) -> None:
        """Assert that the server has each metric once, nothing else, all files and the status."""
        tracking, rows = tracking_of(self.run), self.site.postgres.rows
        query = (
            "select r.run_uuid, r.status from runs r join tags t using (run_uuid) "
            "where t.key = 'dfer.run' and t.value = %s and r.lifecycle_stage = 'active'"
        )
        runs = rows(query, tracking.key)
        assert dict(runs) == dict.fromkeys([tracking.run_id, *tracking.folds.values()], "FINISHED")
        for k, child in tracking.folds.items():
            fold = self.run.fold(int(k))
            there = self.site.postgres.metrics(child)
            assert there == expected([fold.metrics, *fold.root.glob("system-*.jsonl")])
            names = {name for name, *_ in there}
            assert any(name.startswith("system/") for name in names)
            assert "4_training/lost_clips" in names and "4_training/loss_spike" not in names
            assert self.files(child) >= FILES
        parent = {name: value for name, _, _, value in self.site.postgres.metrics(tracking.run_id)}
        summary = json.loads(self.run.summary.read_text())
        for metric in ("uar", "war"):
            values = [r[metric] for r in summary["folds"]]
            wanted = {
                "": summary[metric]["mean"],
                "_std": summary[metric]["std"],
                "_best": max(values),
                "_worst": min(values),
            }
            assert {k: parent[f"1_scores/{metric}{k}"] for k in wanted} == wanted
        assert {
            "config.yaml",
            "provenance.json",
            "summary.json",
            "summary.md",
            "summary.png",
        } <= self.files(tracking.run_id)

    def files(self, run_id: str) -> set[str]:
        return {Path(name).name for name in self.site.mlflow.files() if f"/{run_id}/" in f"/{name}"}


def write_result(run: RunDir, fold: int, seed: int = 0) -> None:
    """Write the files of an evaluation of 140 clips."""
    info, where, rng = run.info(), run.fold(fold), np.random.default_rng(fold + seed)
    labels = np.arange(140) % len(info.classes)
    logits = rng.normal(size=(140, len(info.classes))).astype(np.float32)
    logits[np.arange(140), labels] += 1.5
    keys = [f"clip-{fold}-{i}" for i in range(140)]
    table = {
        "key": keys,
        "label": pa.array(labels, pa.int32()),
        "logits": pa.array(list(logits), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(table), where.predictions)
    result = {
        "dataset": info.dataset,
        "fold": fold,
        **asdict(score(labels, logits, tuple(info.classes))),
    }
    result |= {"selection": "last", "epoch": 1, "step": 9, "checkpoint": "none", "shuffled": None}
    result |= {"config_hash": info.config_hash, "index_hash": info.index_hash}
    write_json(where.result, result)
    made = FoldResult.read(where.result)
    confusion_png("load", made, where.confusion)
    curves_png("load", made, where)


def expected(paths: list[Path]) -> Counter[tuple[str, int, int, float]]:
    """Return the rows that the lines should become."""
    rows: Counter[tuple[str, int, int, float]] = Counter()
    for path in paths:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        zero = {name for name in RARE if not any(line.get(name) for line in lines)}
        for line in lines:
            step, when = line.pop("step"), int(line.pop("time") * 1000)
            sent = {CURRENT.of(name): value for name, value in line.items() if name not in zero}
            rows.update((name, step, when, float(value)) for name, value in sent.items())
    return rows
