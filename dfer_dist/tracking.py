"""The file first, MLflow second.

Every figure is a line of ``metrics.jsonl`` before anything else happens to it; a background thread sends it to MLflow once a
checkpoint stands for it. A server that is down, slow or full costs training nothing: it gets what is missing when it answers.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer_dist.config import Config, flatten
from dfer_dist.rundir import FoldDir, RunDir, read_json, write_json
from dfer_dist.status import tell

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH = 1000  # metrics that MLflow takes in one request
_CHUNK = 100_000  # bytes of the file sent at a time
_PAUSE = 30.0  # seconds before a server that did not answer is asked again
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

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
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
    for file in (run.config, run.provenance, run.environment):
        api.log_artifact(parent, str(file))
    return {"uri": uri, "experiment_id": experiment_id, "run_id": parent, "folds": children}


def delete_runs(tracking: dict[str, Any]) -> None:
    """Take a run in which nothing was trained out of the server's lists (MLflow keeps deleted runs for its own `gc`)."""
    try:
        api = client(tracking["uri"])
        for run_id in (*tracking["folds"].values(), tracking["run_id"]):
            api.delete_run(run_id)
    except Exception as e:  # whatever MLflow raises, the folder is free
        tell(f"tracking: {e}")


def close_fold(tracking: dict[str, Any] | None, fold: int, status: str) -> None:
    """Close the run of a fold that ended before it had a tracker."""
    if tracking:
        try:
            client(tracking["uri"]).set_terminated(tracking["folds"][str(fold)], status)
        except Exception as e:
            tell(f"tracking: {e}")


def close_unfinished(tracking: dict[str, Any] | None, folds: Sequence[int], parent: bool) -> None:
    """Close the runs of folds that will not come, and the parent's where no fold came, as FAILED; what is closed stays as it is."""
    if tracking:
        try:
            api = client(tracking["uri"])
            ids = [tracking["folds"][str(fold)] for fold in folds] + [tracking["run_id"]] * parent
            for run_id in ids:
                if api.get_run(run_id).info.status in ("SCHEDULED", "RUNNING"):
                    api.set_terminated(run_id, FAILED)
        except Exception as e:
            tell(f"tracking: {e}")


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
    """Figures of one fold: the file, and the thread that sends what a checkpoint stands for. Only rank 0 has one.

    A line goes to MLflow once the checkpoint after it stands, so that no step which a crash undoes is there twice;
    ``metrics.sent`` keeps how far that has come, over restarts. A line that is sent again, since a crash came between
    sending and noting, has its own time and value, which MLflow keeps once.
    """

    def __init__(self, fold: FoldDir, uri: str | None, run_id: str | None, keep_bytes: int = 0) -> None:
        """Open the metrics file; what stands after its first ``keep_bytes`` bytes goes, since it is trained again."""
        fold.root.mkdir(parents=True, exist_ok=True)
        self.path = fold.metrics
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        have = os.fstat(self._file).st_size
        if have < keep_bytes:
            tell(f"warning: {self.path} has lost at least {keep_bytes - have} bytes of figures")
        self.size = keep_bytes if have >= keep_bytes else _whole_lines(self.path)  # bytes of all lines so far
        self._last_undone = _last_step_after(self.path, self.size)
        os.ftruncate(self._file, self.size)
        self._waiting = b""  # lines that the disk did not take yet
        self._lock = threading.Lock()
        self._sender = _Sender(self.path, fold.sent, uri, run_id, self.size) if uri and run_id else None

    def undone(self, step: int) -> int:
        """How many steps after ``step``, where training goes on, the lines spoke of that went."""
        return max(0, self._last_undone - step)

    def log(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Append one line; ``step`` and ``epoch`` are those done. Never waits for the server.

        Values that are not finite are left out: JSON has no word for them.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = json.dumps({"step": step, "epoch": epoch, "time": round(time.time(), 3), **finite}, allow_nan=False) + "\n"
        with self._lock:
            first = not self._waiting
            self._waiting += line.encode()
            self.size += len(line.encode())
            try:
                self._flush()
            except OSError as e:
                if first:
                    tell(f"warning: {self.path} takes no more lines for now: {e}")

    def _flush(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[os.write(self._file, self._waiting) :]

    def sync(self) -> None:
        """Make all lines so far durable.

        Raises
        ------
        OSError
            If the disk does not take them.
        """
        with self._lock:
            self._flush()
        os.fsync(self._file)

    def release(self, size: int) -> None:
        """The first ``size`` bytes will not be undone: they may be sent."""
        if self._sender:
            self._sender.release(size)

    def close(self, status: str, artifacts: tuple[Path, ...] = (), timeout: float = 20.0) -> None:
        """Close the run as ``status`` once what was released is sent, with ``timeout`` seconds to do so at most."""
        with suppress(OSError):
            self.sync()
        os.close(self._file)
        if self._sender:
            self._sender.close(status, artifacts, timeout)


def _whole_lines(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


def _last_step_after(path: Path, size: int) -> int:
    """The last step that the lines after the first ``size`` bytes speak of, or 0; one that a crash cut short does not count."""
    steps = [0]
    for line in path.read_bytes()[size:].splitlines():
        with suppress(ValueError):
            steps.append(json.loads(line)["step"])
    return max(steps)


class _Sender:
    """The thread that sends lines of a metrics file to a run."""

    def __init__(self, path: Path, mark: Path, uri: str, run_id: str, size: int) -> None:
        self.path, self.mark, self.uri, self.run_id = path, mark, uri, run_id
        before = read_json(mark) if mark.exists() else {"bytes": 0, "step": 0, "known_steps": -1}
        self.sent = min(before["bytes"], size)
        # of steps that were sent and then undone, as when the last checkpoint is damaged: what was sent stands
        self.known_steps = max(before["known_steps"], before["step"] if before["bytes"] > size else -1)
        self._limit, self._over, self._done = size, False, False
        self._changed = threading.Condition()
        self._api: MlflowClient | None = None
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def release(self, size: int) -> None:
        with self._changed:
            self._limit = max(self._limit, size)
            self._changed.notify()

    def close(self, status: str, artifacts: tuple[Path, ...], timeout: float) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join(timeout)
        if not self._done or self._api is None:
            tell(f"tracking: {self.uri} does not answer; the figures are in {self.path}")
            return
        try:
            for file in artifacts:
                self._api.log_artifact(self.run_id, str(file))
            self._api.set_terminated(self.run_id, status)
        except Exception as e:  # whatever MLflow raises, training's result stands
            tell(f"tracking: {e}; the files are in {self.path.parent}")

    def _run(self) -> None:
        silent = False
        while True:
            try:
                if self._api is None:
                    api = client(self.uri)
                    api.update_run(self.run_id, status="RUNNING")
                    self._api = api
                self._send_released()
                silent = False
            except Exception as e:
                if not silent:
                    tell(f"tracking: {e}; what is missing at {self.uri} is sent when it answers again")
                silent = True
            with self._changed:
                idle = self.sent >= self._limit
                if self._over and (silent or idle):
                    self._done = not silent
                    return
                if silent or idle:
                    self._changed.wait(_PAUSE if silent else None)

    def _send_released(self) -> None:
        while self.sent < (limit := self._limit):
            with self.path.open("rb") as f:
                f.seek(self.sent)
                data = f.read(min(limit - self.sent, _CHUNK))
            data = data[: data.rfind(b"\n") + 1]
            if not data:
                raise EOFError(f"{self.path} was cut")
            lines = [json.loads(line) for line in data.splitlines()]
            self._send([line for line in lines if line["step"] > self.known_steps])
            self.sent += len(data)
            with suppress(OSError):  # what is not noted is sent again, which does no harm
                write_json(self.mark, {"bytes": self.sent, "step": lines[-1]["step"], "known_steps": self.known_steps})

    def _send(self, lines: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(line["time"] * 1000), line["step"])
            for line in lines
            for name, value in line.items()
            if name not in _LINE_KEYS
        ]
        metrics += [Metric("epoch", line["epoch"], int(line["time"] * 1000), line["step"]) for line in lines]
        for i in range(0, len(metrics), _BATCH):
            assert self._api
            self._api.log_batch(self.run_id, metrics=metrics[i : i + _BATCH])
