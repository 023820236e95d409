"""Send what the tracking server lacks of a run: metrics, files, summary, final statuses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import FoldStatus
from dfer_dist.runs.summary import Summary
from dfer_dist.tracking.identity import own_tracking
from dfer_dist.tracking.metrics_log import FAILED, FINISHED, KILLED, whole_lines
from dfer_dist.tracking.mlflow_runs import (
    complete,
    job_tags,
    make_runs,
    metric_names,
    tracking_of,
)
from dfer_dist.tracking.notes import describe_run
from dfer_dist.tracking.server import client
from dfer_dist.tracking.summary import log_summary
from dfer_dist.tracking.uploader import UploadQueue
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import csv_text, read_json, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_MAX_LOG = 2_000_000  # bytes of a log that are sent
# MLflow's status for a fold in one of our states on which no job works; KILLED for the others.
_FINAL_STATUS = {"DONE": FINISHED, "FAILED": FAILED, "": None}


@dataclass
class SyncReport:
    """What was sent to the server.

    Attributes
    ----------
    lines, files : int
    changes : int
        Created runs, and changed tags, statuses and metrics of runs.
    busy : list of int
        Folds whose own job uploads their metrics.
    """

    lines: int = 0
    files: int = 0
    changes: int = 0
    busy: list[int] = field(default_factory=list)

    def describe(self, uri: str) -> str:
        """Return a message for the user."""
        counts = {"line": self.lines, "file": self.files}
        parts = [f"{n} {kind}{'s' * (n != 1)}" for kind, n in counts.items() if n]
        if self.changes:
            parts.append("changes of its runs")
        message = f"sent {', '.join(parts)} to {uri}" if parts else f"{uri} has everything"
        if self.busy:
            folds = ", ".join(map(str, self.busy))
            message += f"; fold {folds} is in training and uploads its own metrics"
        return message


def sync(run: RunDir) -> SyncReport:
    """Send all that a run's server lacks; create runs that do not exist there.

    Raises
    ------
    UserError
        If the run has no server.
    Exception
        Whatever MLflow raises, for example without an answer. What was sent before is not sent
        again.
    """
    before = tracking_of(run)
    api, sent = client(before.uri), SyncReport()
    tracking = make_runs(run, api, check=True)
    sent.changes += tracking != before
    for fold, child in tracking.folds.items():
        _send_fold(run, int(fold), api, child, sent)
    parent = api.get_run(tracking.run_id)
    if run.summary.exists():
        summary = Summary.read(run.summary)
        sent.changes += log_summary(api, parent, summary, metric_names(run))
        sent.changes += describe_run(run, api, parent, summary)
    sent.files += send_files(api, parent.info.run_id, run.files_sent, run_files(run))
    sent.changes += _set_tags(run, api, parent, _array_tags(run))
    sent.changes += _set_status(api, parent, tracking.closed)
    return sent


def _send_fold(run: RunDir, number: int, api: MlflowClient, child: str, sent: SyncReport) -> None:
    fold = run.fold(number)
    for path in sorted(fold.root.glob("system-*.jsonl")):
        queue = UploadQueue(path, path.with_suffix(".sent"))
        _send_lines(queue, whole_lines(path), api, child, sent)
    queue = UploadQueue(fold.metrics, fold.sent, metric_names(run))
    if fold.metrics.exists() and not _send_lines(queue, committed_bytes(fold), api, child, sent):
        sent.busy.append(number)
        return
    at = api.get_run(child)
    sent.changes += _set_tags(run, api, at, job_tags(fold))
    sent.files += send_files(api, child, fold.files_sent, fold_files(run, number))
    sent.changes += _set_status(api, at, _status(run, number))


def _send_lines(
    queue: UploadQueue, size: int, api: MlflowClient, child: str, sent: SyncReport
) -> bool:
    """Send the lines of a file; return False if another process does."""
    if not queue.acquire(size):
        return False
    try:
        sent.lines += queue.send(api, child, lambda: size)
    finally:
        queue.release()
    return True


def committed_bytes(fold: FoldDir) -> int:
    """Return the bytes of a fold's metrics that no crash can roll back.

    Those are all bytes of a finished fold, else those that its last checkpoint includes.
    """
    if fold.result.exists():
        return whole_lines(fold.metrics)
    with suppress(OSError, UserError, KeyError):
        latest = (fold.checkpoints / "LATEST").read_text(encoding="utf-8").strip()
        state = read_json(fold.checkpoints / latest / "state.json")
        return min(int(state["metrics_bytes"]), whole_lines(fold.metrics))
    return 0


def _status(run: RunDir, fold: int) -> str | None:
    """Return how a fold without a job ended, or None if it was not started."""
    path = run.fold(fold).status
    state = FoldStatus.read(path).state if path.exists() else ""
    if state not in ("DONE", "FAILED") and fold in tracking_of(run).given_up:
        return FAILED
    return _FINAL_STATUS.get(state, KILLED)


def run_files(run: RunDir) -> dict[str, Path | str]:
    """Return the files of a cross-validation for its parent run, by name."""
    reports = [run.summary, run.report, run.picture, run.latex, run.page, run.confusion]
    return _existing(run.config, run.provenance, run.environment, *reports)


def fold_files(run: RunDir, number: int) -> dict[str, Path | str]:
    """Return the files of a fold for its run, by name: a path, or the content as text."""
    fold = run.fold(number)
    files = _existing(run.config, run.provenance, run.environment)
    if fold.log.exists():
        files[fold.log.name] = log_end(fold.log)
    if fold.result.exists():
        others = sorted(fold.root.glob("predictions-*.parquet"))
        files |= _existing(fold.result, fold.predictions, *others, fold.confusion, fold.curves)
        files["recall.csv"] = recall_table(read_json(fold.result))
    return files


def _existing(*paths: Path) -> dict[str, Path | str]:
    return {path.name: path for path in paths if path.exists()}


def log_end(path: Path, limit: int = _MAX_LOG) -> str:
    """Return a log, or the whole lines of its last ``limit`` bytes."""
    with path.open("rb") as f:
        num_left_out = max(0, path.stat().st_size - limit)
        f.seek(num_left_out)
        text = f.read(limit).decode(errors="replace")
    if num_left_out:
        text = f"(the first {num_left_out} bytes are left out)\n" + text.partition("\n")[2]
    return text


def recall_table(result: Mapping[str, Any]) -> str:
    """Return the recall of each class as CSV; MLflow shows it as a table.

    An absent class has no recall.
    """
    rows = [("class", "clips", "recall")]
    for name, recall in result["recall"].items():
        rows.append((name, result["support"][name], "" if recall is None else f"{recall:.2f}"))
    return csv_text(rows)


def send_files(
    api: MlflowClient, run_id: str, hash_file: Path, files: Mapping[str, Path | str]
) -> int:
    """Send the files that are missing or different at the server; return their number.

    ``hash_file`` records the sha256 of the files that were sent.
    """
    hashes = read_json(hash_file)["files"] if hash_file.exists() else {}
    sizes = {f.path: f.file_size for f in api.list_artifacts(run_id)}
    count = 0
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if hashes.get(name) == digest and sizes.get(name) == len(data):
            continue
        if isinstance(content, str):
            api.log_text(run_id, content, name)
        else:
            api.log_artifact(run_id, str(content))
        hashes[name] = digest
        write_json(hash_file, {"files": hashes})
        count += 1
    return count


def finalize_run(run: RunDir, fold: int, status: str, api: MlflowClient, child: str) -> None:
    """End a fold's MLflow run after its metrics: send the files, set the status."""
    send_files(api, child, run.fold(fold).files_sent, fold_files(run, fold))
    api.set_terminated(child, status)


def _set_tags(run: RunDir, api: MlflowClient, at: Run, tags: dict[str, str]) -> bool:
    if all(at.data.tags.get(k) == v for k, v in tags.items()):
        return False
    complete(run, api, at, tags)
    return True


def _set_status(api: MlflowClient, at: Run, status: str | None) -> bool:
    if status in (None, at.info.status):
        return False
    api.set_terminated(at.info.run_id, status)
    return True


def _array_tags(run: RunDir) -> dict[str, str]:
    """Return a tag with the id of the Slurm array that was submitted last."""
    submissions = read_json(run.jobs)["submissions"] if run.jobs.exists() else [{"folds": {}}]
    jobs = list(submissions[-1]["folds"].values())
    return {"slurm.array": jobs[0].partition("_")[0]} if jobs else {}


def end_run(
    run: RunDir, status: str | None, given_up: list[int] | None = None
) -> SyncReport | None:
    """Record how a run ended, then :func:`sync`; return None without a server.

    Parameters
    ----------
    status : str, optional
        Final status of the parent run; None leaves it open.
    given_up : list of int, optional
        Folds that will not be trained.

    Raises
    ------
    Exception
        Whatever MLflow raises.
    """
    tracking = own_tracking(run)
    if tracking is None:
        return None
    all_given_up = sorted({*tracking.given_up, *(given_up or ())})
    ended = replace(tracking, closed=status or tracking.closed, given_up=all_given_up)
    if ended != tracking:
        run.update_info(tracking=ended)
    return sync(run)
