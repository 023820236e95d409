"""What every fold of a run is doing, put together from the files of the run folder and Slurm's queue. Reads no large file whole."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dfer_dist.distributed.preemption import TIME_IS_UP
from dfer_dist.runs.layout import FoldDir, RunDir
from launch.locks import is_gone, is_held
from launch.progress import last_error
from launch.slurm.jobs import end_of_job, has_output, jobs_of_fold, output_of, read_object, tail
from launch.slurm.squeue import Queued, reason_text

Jobs = Mapping[str, Queued]

DONE, RUNNING, PENDING, REQUEUED, LEAVING = "DONE", "RUNNING", "PENDING", "REQUEUED", "LEAVING"
FAILED, CANCELLED, STOPPED, LOST, NOT_STARTED = (
    "FAILED",
    "CANCELLED",
    "STOPPED",
    "LOST",
    "NOT STARTED",
)
LIVE = frozenset({RUNNING, PENDING, REQUEUED, LEAVING})  # of these more is to come

_TAIL = 1 << 20  # bytes of metrics.jsonl that are looked at: some 3,000 steps
_SHORT = 70  # characters of a reason that is no error of now


@dataclass(frozen=True)
class FoldState:
    """A row of ``dfer status``."""

    fold: int
    state: str  # one of the words above
    why: str = ""  # in a few words: why it waits, where it went on, how it ended
    error: str = ""  # the line that a failed fold ended with
    attempts: int = 0
    step: int | None = None
    steps: int | None = None
    clips_per_second: float | None = None
    uar: float | None = None  # percent, as is war
    war: float | None = None
    scored: str = ""  # on what: "result", or "val" or "test" of an epoch while it trains
    nodes: str = ""
    left: str = ""  # of the job's time limit, as Slurm writes it
    job: str = ""  # its id in the queue


@dataclass(frozen=True)
class _Files:
    """What the files of a fold say; whatever is damaged counts as not there."""

    fold: FoldDir
    state: str
    steps: int | None
    attempts: list[dict[str, Any]]
    result: dict[str, Any]
    damaged: bool  # status.json is there and cannot be read

    @property
    def last(self) -> dict[str, Any]:
        return self.attempts[-1] if self.attempts else {}

    @property
    def is_open(self) -> bool:
        """Whether the last attempt has not said that it ended."""
        return bool(self.attempts) and not self.last.get("ended")


def get_state(run: RunDir, fold: int, jobs: Jobs | None) -> FoldState:
    """What a fold is doing; ``jobs`` is :func:`launch.slurm.squeue.queue`'s."""
    files = _read(run.fold(fold))
    ids = jobs_of_fold(run, fold)
    job = next((jobs[i] for i in ids if i in jobs), None) if jobs else None
    row = _judge(run, FoldState(fold, NOT_STARTED), files, ids, jobs, job)
    row = replace(row, attempts=len(files.attempts), job=job.id if job else "", **_progress(files))
    if row.state not in (RUNNING, DONE):
        row = replace(row, clips_per_second=None)
    if job and not job.waits:
        left = {"INVALID": "0:00", "NOT_SET": ""}.get(
            job.left, job.left
        )  # the first once it is over the limit
        return replace(row, nodes=job.nodes, left=left if row.state == RUNNING else "")
    return (
        row
        if row.state in (PENDING, REQUEUED)
        else replace(row, nodes=str(files.last.get("nodes") or ""))
    )


def _read(fold: FoldDir) -> _Files:
    status = read_object(fold.status)
    found = (status or {}).get("attempts")
    attempts = [a for a in found if isinstance(a, dict)] if isinstance(found, list) else []
    state, steps = (status or {}).get("state"), (status or {}).get("steps")
    damaged = status is None and fold.status.exists()
    return _Files(
        fold, str(state or ""), _int(steps), attempts, read_object(fold.result) or {}, damaged
    )


def _judge(
    run: RunDir,
    row: FoldState,
    files: _Files,
    ids: list[str],
    jobs: Jobs | None,
    job: Queued | None,
) -> FoldState:
    """Fill in state, why and error."""
    if files.state == DONE and files.result:
        return replace(row, state=DONE)
    if job:
        return _in_queue(row, files, job)
    if is_held(files.fold):
        return _held(row, files)
    if files.damaged:
        return replace(row, state=LOST, why="status.json cannot be read")
    if files.state == FAILED:
        return _failed(row, str(files.last.get("why") or "it does not say why"))
    return _gone(run, row, files, ids, jobs is None)


def _in_queue(row: FoldState, files: _Files, job: Queued) -> FoldState:
    before = _end(files.last)
    if job.waits:
        again = files.attempts or (job.reason == "BeginTime" and has_output(files.fold))
        why = "; ".join(filter(None, [reason_text(job.reason), before and f"before: {before}"]))
        return replace(row, state=REQUEUED if again else PENDING, why=why)
    began = _time(job.started)
    of_this_job = (
        bool(files.attempts)
        and not _time(files.last.get("ended") or files.last.get("started")) < began
    )
    leaving = job.state == "COMPLETING"
    if files.last.get("ended") and (of_this_job or leaving):
        if files.state == FAILED:
            return _failed(row, str(files.last.get("why") or "it does not say why"))
        return replace(row, state=LEAVING, why=before)
    if leaving:
        return replace(row, state=LEAVING, why="Slurm ends it")
    if job.state != RUNNING:
        return replace(row, state=RUNNING, why=f"Slurm says {job.state}")
    return replace(row, state=RUNNING, why=_started(files, fresh=not of_this_job))


def _held(row: FoldState, files: _Files) -> FoldState:
    """A command on some machine is at it."""
    if not files.last.get("job") and is_gone(holder(files.fold)):
        return replace(row, state=LEAVING, why="its command is gone, its ranks leave")
    return replace(row, state=RUNNING, why=_started(files, fresh=not files.is_open))


def _started(files: _Files, fresh: bool) -> str:
    """How a running attempt began; ``fresh`` where its ranks have not written so yet."""
    earlier = files.attempts if fresh else files.attempts[:-1]
    before = f"before: {_end(earlier[-1])}" if earlier else ""
    if fresh or files.state == "STARTING":
        return "; ".join(filter(None, ["starting", before]))
    return f"went on at step {files.last.get('from_step')}; {before}" if before else ""


def _gone(run: RunDir, row: FoldState, files: _Files, ids: list[str], unsure: bool) -> FoldState:
    """Nobody holds it and it is not in the queue, or, ``unsure``, that cannot be told."""
    output = output_of(run, row.fold)
    how, line = end_of_job(output) if output else ("", "")
    if how == FAILED:
        return _failed(row, line)
    if how == CANCELLED:
        return replace(row, state=CANCELLED, why=_end(files.last))
    if unsure and (ids or files.last.get("job")):
        state = RUNNING if files.is_open else REQUEUED if files.attempts else PENDING
        return replace(row, state=state, why="by its files alone")
    if files.is_open:
        return replace(row, state=LOST, why=line if how else "it ended without a word")
    if files.attempts:
        why = "; ".join(filter(None, [line if how else "", _end(files.last)]))
        return replace(row, state=CANCELLED if files.last.get("job") else STOPPED, why=why)
    if has_output(files.fold):
        return _failed(row, last_error(files.fold, {}))
    if line:
        return _failed(row, line)
    return (
        replace(row, state=CANCELLED, why="before it began") if ids and run.jobs.exists() else row
    )


def _failed(row: FoldState, error: str) -> FoldState:
    return replace(row, state=FAILED, error=error)


def _end(attempt: dict[str, Any]) -> str:
    """How an attempt ended, in a few words; empty for none."""
    why = str(attempt.get("why") or "")
    if not attempt:
        return ""
    if not attempt.get("ended") or why.startswith("it said nothing"):
        return "killed, or its machine was lost"
    if why.startswith("SIG") or why in (TIME_IS_UP, "told to leave"):
        return f"{why}, saved"
    return textwrap.shorten(why, _SHORT, placeholder=" …")


def holder(fold: FoldDir) -> str:
    """The words ``HOST PID`` of the command that held a fold last."""
    return tail(fold.root / ".lock", 1000).decode(errors="replace")


def _progress(files: _Files) -> dict[str, Any]:
    """Steps, speed and the newest scores: the result's, else an epoch's."""
    lines = tail(files.fold.metrics, _TAIL).splitlines()
    step = _last(lines, b'"step"').get("step")
    speed = _last(lines, b'"clips_per_second"').get("clips_per_second")
    if files.result:
        scored, scores = "result", files.result
    else:
        scored = "val" if any(b'"val_war"' in line for line in lines) else "test"
        found = _last(lines, f'"{scored}_war"'.encode())
        scores = {name: found.get(f"{scored}_{name}") for name in ("uar", "war")}
    uar, war = (_number(scores.get(name)) for name in ("uar", "war"))
    steps = files.steps
    return {
        "step": _int(step) if _int(step) is not None else _int(files.last.get("from_step")),
        "steps": steps,
        "clips_per_second": _number(speed),
        "uar": uar,
        "war": war,
        "scored": scored if war is not None else "",
    }


def _last(lines: list[bytes], word: bytes) -> dict[str, Any]:
    """The last line with ``word`` in it that is whole."""
    for line in reversed(lines):
        if word in line:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                return found
    return {}


def _time(text: object) -> float:
    """Unix time of ISO 8601, without a zone that of this machine; 0 for anything else."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
