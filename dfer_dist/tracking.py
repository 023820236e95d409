"""The file first, MLflow second.

Every figure is a line of ``metrics.jsonl`` before anything else happens to it; a background thread then sends it to MLflow. A
server that is down, slow or full costs training nothing: what could not be sent stays in the file.
"""

from __future__ import annotations

import json
import math
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer_dist.config import Config, flatten
from dfer_dist.rundir import FoldDir, RunDir, write_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH = 1000  # metrics that MLflow takes in one request
_QUEUE = 10_000  # lines waiting at most; more stay in the file alone
_LINE_KEYS = ("step", "epoch", "time")

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"  # MLflow's words for how a run ended


def client(uri: str) -> MlflowClient:
    """An MLflow client with short time-outs, which sends no usage statistics."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)  # creating the tables of a sqlite store is many lines
    from mlflow import MlflowClient

    return MlflowClient(uri)


def create_runs(run: RunDir, config: Config, uri: str, folds: list[int], tags: dict[str, str]) -> dict[str, Any]:
    """Make the experiment, the parent run and a child run for each fold, before any job starts.

    Returns
    -------
    dict
        ``uri``, ``experiment_id``, ``run_id`` (the parent's) and ``folds`` (child ids by fold), for ``run.json``.
    """
    from mlflow.entities import Param, RunTag

    api = client(uri)
    name = config.tracking.experiment or tags["dataset"]
    experiment = api.get_experiment_by_name(name)
    place = (run.root.parent / "mlartifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
    experiment_id = experiment.experiment_id if experiment else api.create_experiment(name, place)
    params = [Param(k, str(v)[:6000]) for k, v in flatten(config).items()]
    words = [RunTag(k, v) for k, v in tags.items()]
    parent = api.create_run(experiment_id, run_name=run.root.name).info.run_id
    api.log_batch(parent, params=params, tags=words)
    children: dict[str, str] = {}
    for fold in folds:
        tag = {"mlflow.parentRunId": parent, "fold": str(fold)}
        child = api.create_run(experiment_id, tags=tag, run_name=f"{run.root.name}-fold{fold}").info.run_id
        api.update_run(child, status="SCHEDULED")
        api.log_batch(child, params=params, tags=words)
        children[str(fold)] = child
    for file in (run.config, run.provenance):
        api.log_artifact(parent, str(file))
    return {"uri": uri, "experiment_id": experiment_id, "run_id": parent, "folds": children}


def delete_runs(tracking: dict[str, Any]) -> None:
    """Take a run in which nothing was trained out of the server's lists (MLflow keeps deleted runs for its own `gc`)."""
    try:
        api = client(tracking["uri"])
        for run_id in (*tracking["folds"].values(), tracking["run_id"]):
            api.delete_run(run_id)
    except Exception as e:  # whatever MLflow raises, the folder is free
        print(f"tracking: {e}", file=sys.stderr)


def close_fold(tracking: dict[str, Any] | None, fold: int, status: str) -> None:
    """Close the run of a fold that ended before it had a tracker."""
    if tracking:
        try:
            client(tracking["uri"]).set_terminated(tracking["folds"][str(fold)], status)
        except Exception as e:
            print(f"tracking: {e}", file=sys.stderr)


def finish_parent(run: RunDir, tracking: dict[str, Any], summary: dict[str, Any], status: str | None) -> None:
    """Write a cross-validation's figures into its parent run and close it as ``status``; None leaves its status alone."""
    api = client(tracking["uri"])
    parent = tracking["run_id"]
    for metric in ("uar", "war"):
        values = {r["fold"]: r[metric] for r in summary["folds"]}
        figures = {
            "mean": summary[metric]["mean"],
            "std": summary[metric]["std"],
            "best": max(values.values()),
            "worst": min(values.values()),
        }
        for name, value in figures.items():
            if value is not None:
                api.log_metric(parent, f"{metric}_{name}", value)
    api.set_tag(parent, "folds_missing", ",".join(map(str, summary["missing"])) or "none")
    for file in (run.summary, run.report, run.picture):
        api.log_artifact(parent, str(file))
    if status:
        api.set_terminated(parent, status)


class Tracker:
    """Metrics of one fold. Only rank 0 has one."""

    def __init__(self, fold: FoldDir, uri: str | None, run_id: str | None, first_step: int = 0) -> None:
        """Open the metrics file; ``first_step`` is where training goes on, so lines of later steps are dropped."""
        fold.root.mkdir(parents=True, exist_ok=True)
        self.path = fold.metrics
        _drop_lines_from(self.path, first_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._uri, self._run_id = uri, run_id
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUE)
        self._api: MlflowClient | None = None
        self._thread: threading.Thread | None = None
        if uri and run_id:
            self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
            self._thread.start()

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Append one line; ``step`` and ``epoch`` are those done. Never waits for the server.

        Values that are not finite are left out: JSON has no word for them.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = {"step": step, "epoch": epoch, "time": round(time.time(), 3), **finite}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._thread and not self._queue.full():
            self._queue.put(line)

    def close(self, status: str, artifacts: tuple[Path, ...] = (), timeout: float = 20.0) -> None:
        """Send what is left, for ``timeout`` seconds at most, and close the run as ``status``."""
        self._file.close()
        if not self._thread or not self._run_id:
            return
        self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive() or self._api is None:
            print(f"tracking: {self._uri} does not answer; the figures are in {self.path}", file=sys.stderr)
            return
        try:
            for file in artifacts:
                self._api.log_artifact(self._run_id, str(file))
            self._api.set_terminated(self._run_id, status)
        except Exception as e:  # whatever MLflow raises, training's result stands
            print(f"tracking: {e}; the files are in {self.path.parent}", file=sys.stderr)

    def _send_all(self) -> None:
        try:
            self._api = client(self._uri or "")
            self._api.update_run(self._run_id, status="RUNNING")
        except Exception as e:
            print(f"tracking: {e}; going on without {self._uri}", file=sys.stderr)
            self._api = None
        over = False
        while not over:
            lines = [self._queue.get()]
            while not self._queue.empty() and len(lines) < 100:
                lines.append(self._queue.get())
            over = None in lines
            if self._api:
                self._send([line for line in lines if line])

    def _send(self, lines: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(line["time"] * 1000), line["step"])
            for line in lines
            for name, value in line.items()
            if name not in _LINE_KEYS
        ]
        metrics += [Metric("epoch", line["epoch"], int(line["time"] * 1000), line["step"]) for line in lines]
        try:
            for i in range(0, len(metrics), _BATCH):
                assert self._api and self._run_id
                self._api.log_batch(self._run_id, metrics=metrics[i : i + _BATCH])
        except Exception as e:
            print(f"tracking: {e}; these figures are in {self.path} only", file=sys.stderr)


def _drop_lines_from(path: Path, step: int) -> None:
    """Keep the lines up to ``step``: what is trained again is logged again. A line cut short by a crash goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            continue
    write_text(path, "".join(f"{line}\n" for line in kept))
