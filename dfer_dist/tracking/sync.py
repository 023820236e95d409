"""The tracking server brought to what stands in a run's folder: figures, files, summary, and how each run ended. What is there already is left alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.tracking.metrics_log import FAILED, FINISHED, KILLED, whole_lines
from dfer_dist.tracking.mlflow_runs import (
    client,
    complete,
    is_tracked,
    job_tags,
    make_runs,
    tracking_of,
)
from dfer_dist.tracking.uploader import UploadQueue
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, sha256_file, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_ENDED = {
    "DONE": FINISHED,
    "FAILED": FAILED,
    "PREEMPTED": KILLED,
    "RUNNING": KILLED,
    "STARTING": KILLED,
}  # our states when nobody works on them
_LATER = (
    "summary.json",
    "summary.md",
    "summary.png",
    "summary.tex",
    "report.html",
)  # of a run, in its folder


@dataclass
class Sent:
    """What the server lacked."""

    lines: int = 0
    files: int = 0
    changes: int = 0  # runs made, and tags, statuses and figures of runs
    busy: list[int] = field(default_factory=list)  # folds whose own job sends what it has

    def words(self, uri: str) -> str:
        """For a person."""
        parts = [
            f"{n} {word}{'s' * (n != 1)}"
            for n, word in ((self.lines, "line"), (self.files, "file"))
            if n
        ]
        parts += ["what was told of its runs"] if self.changes else []
        said = f"sent {', '.join(parts)} to {uri}" if parts else f"{uri} has everything"
        return said + (
            f"; fold {', '.join(map(str, self.busy))} is in training and sends by itself"
            if self.busy
            else ""
        )


def sync(run: RunDir) -> Sent:
    """Send all that a run's server lacks; runs that were never made there are made.

    Raises
    ------
    UserError
        If the run has no server.
    Exception
        Whatever MLflow raises, as when it does not answer; what was sent before that is not sent again.
    """
    tracking = tracking_of(run)
    api, sent = client(tracking["uri"]), Sent()
    before = tracking
    tracking = make_runs(run, api, check=True)
    sent.changes += tracking != before
    for fold, child in tracking["folds"].items():
        _send_fold(run, int(fold), api, child, sent)
    parent = api.get_run(tracking["run_id"])
    if run.summary.exists():
        sent.changes += _log_summary(api, parent, read_json(run.summary))
    sent.files += send_files(api, tracking["run_id"], run.files_sent, run_files(run))
    jobs = {"slurm.array": _array(run)} if run.jobs.exists() else {}
    sent.changes += _tag(run, api, parent, {k: v for k, v in jobs.items() if v})
    if tracking["closed"]:
        sent.changes += _end(api, parent, tracking["closed"])
    return sent


def _send_fold(run: RunDir, number: int, api: MlflowClient, child: str, sent: Sent) -> None:
    fold = run.fold(number)
    for path in sorted(fold.root.glob("system-*.jsonl")):
        _send_lines(path, path.with_suffix(".sent"), whole_lines(path), api, child, sent)
    if fold.metrics.exists() and not _send_lines(
        fold.metrics, fold.sent, committed_bytes(fold), api, child, sent
    ):
        sent.busy.append(number)
        return
    at = api.get_run(child)
    sent.changes += _tag(run, api, at, job_tags(fold))
    sent.files += send_files(api, child, fold.files_sent, fold_files(run, number))
    if status := _status(run, number):
        sent.changes += _end(api, at, status)


def _send_lines(
    path: Path, mark: Path, size: int, api: MlflowClient, child: str, sent: Sent
) -> bool:
    """Whether it was not another process's to do."""
    queue = UploadQueue(path, mark)
    if not queue.take(size):
        return False
    try:
        sent.lines += queue.send(api, child, lambda: size)
    finally:
        queue.leave()
    return True


def committed_bytes(fold: FoldDir) -> int:
    """Bytes of a fold's figures that no crash can undo: all of them once it is done, before that those its last checkpoint stands for."""
    if fold.result.exists():
        return whole_lines(fold.metrics)
    latest = fold.checkpoints / "LATEST"
    with suppress(OSError, UserError, KeyError):
        state = read_json(
            fold.checkpoints / latest.read_text(encoding="utf-8").strip() / "state.json"
        )
        return min(int(state["metrics_bytes"]), whole_lines(fold.metrics))
    return 0


def _status(run: RunDir, fold: int) -> str | None:
    """How a fold ended on which nobody works, or None if it was not begun."""
    path = run.fold(fold).status
    state = read_json(path)["state"] if path.exists() else None
    if state not in ("DONE", "FAILED") and fold in tracking_of(run)["given_up"]:
        return FAILED
    return _ENDED[state] if state else None


def run_files(run: RunDir) -> dict[str, Path | str]:
    """Files of a cross-validation that belong into its parent run, by their names there."""
    there = [run.config, run.provenance, run.environment, *(run.root / name for name in _LATER)]
    return {path.name: path for path in there if path.exists()}


def fold_files(run: RunDir, number: int) -> dict[str, Path | str]:
    """Files of a fold that belong into its run, by their names there; a text instead of a path is the content."""
    fold = run.fold(number)
    files: dict[str, Path | str] = {
        path.name: path for path in (run.config, run.provenance, run.environment)
    }
    if fold.result.exists():
        result = read_json(fold.result)
        files |= {
            p.name: p
            for p in (fold.result, fold.predictions, fold.confusion, fold.curves)
            if p.exists()
        }
        files["recall.csv"] = recall_table(result)
    return files


def recall_table(result: Mapping[str, Any]) -> str:
    """Recall of each class in percent, as CSV, which MLflow shows as a table; an absent class has no recall."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    write.writerow(("class", "clips", "recall"))
    for name, recall in result["recall"].items():
        write.writerow((name, result["support"][name], "" if recall is None else f"{recall:.2f}"))
    return text.getvalue()


def send_files(api: MlflowClient, run_id: str, mark: Path, files: Mapping[str, Path | str]) -> int:
    """Send those files that the server lacks or has otherwise; ``mark`` keeps the sha256 of what it has. Returns how many."""
    have = read_json(mark)["files"] if mark.exists() else {}
    there = {f.path: f.file_size for f in api.list_artifacts(run_id)}
    count = 0
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            path = content if isinstance(content, Path) else Path(folder) / name
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            digest = sha256_file(path)
            if have.get(name) == digest and there.get(name) == path.stat().st_size:
                continue
            api.log_artifact(run_id, str(path))
            have[name] = digest
            write_json(mark, {"files": have})
            count += 1
    return count


def finalize_run(run: RunDir, fold: int, status: str) -> Callable[[MlflowClient, str], None]:
    """What a job does at the server when all figures are there: the files, then how it ended."""

    def do(api: MlflowClient, child: str) -> None:
        send_files(api, child, run.fold(fold).files_sent, fold_files(run, fold))
        api.set_terminated(child, status)

    return do


def _log_summary(api: MlflowClient, parent: Run, summary: Mapping[str, Any]) -> bool:
    """Mean, deviation, best and worst fold as figures of the parent run, so that the server's own tables compare runs; size, speed and memory as tags."""
    import time

    from mlflow.entities import Metric, RunTag

    figures: dict[str, float | None] = {}
    tags = {"folds_missing": ",".join(map(str, summary["missing"])) or "none"}
    for metric in ("uar", "war"):
        values = {r["fold"]: r[metric] for r in summary["folds"]}
        best, worst = max(values, key=lambda k: values[k]), min(values, key=lambda k: values[k])
        figures |= {
            f"{metric}_mean": summary[metric]["mean"],
            f"{metric}_std": summary[metric]["std"],
        }
        figures |= {f"{metric}_best": values[best], f"{metric}_worst": values[worst]}
        tags |= {f"{metric}_best_fold": str(best), f"{metric}_worst_fold": str(worst)}
    # Tags, not metrics: MLflow's page that compares runs has no room for more metrics.
    # Summaries of older runs have no cost.
    cost = summary.get("cost", {})
    tags |= {name: str(value) for name, value in cost.items() if value is not None}
    now, have = int(time.time() * 1000), parent.data.metrics
    new = [Metric(k, v, now, 0) for k, v in figures.items() if v is not None and have.get(k) != v]
    words = [RunTag(k, v) for k, v in tags.items() if parent.data.tags.get(k) != v]
    if new or words:
        api.log_batch(parent.info.run_id, metrics=new, tags=words)
    return bool(new or words)


def _tag(run: RunDir, api: MlflowClient, at: Run, tags: dict[str, str]) -> bool:
    if all(at.data.tags.get(k) == v for k, v in tags.items()):
        return False
    complete(run, api, at, tags)
    return True


def _end(api: MlflowClient, at: Run, status: str) -> bool:
    if at.info.status == status:
        return False
    api.set_terminated(at.info.run_id, status)
    return True


def _array(run: RunDir) -> str | None:
    """The id of the Slurm array that was submitted last."""
    last = read_json(run.jobs)["submissions"][-1]
    jobs = list(last["folds"].values())
    return jobs[0].partition("_")[0] if jobs else None


def end_run(run: RunDir, status: str | None, given_up: list[int] | None = None) -> Sent | None:
    """Write down how a run ended, then :func:`sync`; None where it has no server.

    Parameters
    ----------
    status : str, optional
        Of the parent run; None leaves it open.
    given_up : list of int, optional
        Folds that will not come.

    Raises
    ------
    Exception
        Whatever MLflow raises.
    """
    if not is_tracked(run):
        return None
    tracking = tracking_of(run)
    ended = {
        "closed": status or tracking["closed"],
        "given_up": sorted({*tracking["given_up"], *(given_up or ())}),
    }
    if ended != {k: tracking[k] for k in ended}:
        run.change(tracking={**tracking, **ended})
    return sync(run)
