"""The state of each fold of a run, from the files in its folder and Slurm's queue.

No large file is read as a whole.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dfer_dist.distributed.preemption import TIME_IS_UP
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import AttemptRecord, FoldStatus
from dfer_dist.utils.errors import UserError
from launch.locks import is_gone, is_held
from launch.progress import last_error
from launch.slurm.jobs import (
    has_log,
    job_output,
    jobs_of_fold,
    parse_job_end,
    read_if_valid,
    read_tail,
)
from launch.slurm.squeue import Queue, QueuedJob, reason_text

DONE = "DONE"
RUNNING = "RUNNING"
PENDING = "PENDING"
REQUEUED = "REQUEUED"
LEAVING = "LEAVING"
FAILED = "FAILED"
CANCELLED = "CANCELLED"
STOPPED = "STOPPED"
LOST = "LOST"
NOT_STARTED = "NOT STARTED"
LIVE = frozenset({RUNNING, PENDING, REQUEUED, LEAVING})  # states that will change

_TAIL_BYTES = 1 << 20  # of metrics.jsonl: some 3,000 steps
# reasons of attempts that saved; the last one is that of older versions
_PREEMPTED = (TIME_IS_UP, "preempted", "told to leave")
_TIMES_LEFT = {"INVALID": "0:00", "NOT_SET": ""}  # by what squeue says
_REASON_WIDTH = 70  # characters of an earlier attempt's end


@dataclass(frozen=True)
class FoldState:
    """A row of ``dfer status``."""

    fold: int
    state: str  # one of the constants above
    why: str = ""  # why it waits, where it resumed, how it ended
    error: str = ""  # of a failed fold
    attempts: int = 0
    step: int | None = None
    steps: int | None = None
    clips_per_second: float | None = None
    uar: float | None = None  # percent, as is war
    war: float | None = None
    scored: str = ""  # what the scores are of: "result", or "val" or "test" of an epoch
    nodes: str = ""
    left: str = ""  # of the job's time limit, as Slurm writes it
    job: str = ""  # its id in the queue


def _describe_end(attempt: AttemptRecord) -> str:
    """Return a short text on how an attempt ended."""
    why = attempt.why or ""
    if not attempt.ended or why.startswith("it said nothing"):
        return "killed, or its machine was lost"
    if why.startswith("SIG") or why in _PREEMPTED:
        return f"{why}, saved"
    return textwrap.shorten(why, _REASON_WIDTH, placeholder=" …")


def _before(attempts: Sequence[AttemptRecord]) -> str:
    """Return how the last of some attempts ended, as a part of a reason; empty without one."""
    if not attempts:
        return ""
    return f"before: {_describe_end(attempts[-1])}"


@dataclass(frozen=True)
class _Files:
    """What the files of a fold say; a damaged file counts as empty."""

    fold: FoldDir
    status: FoldStatus
    result: dict[str, Any]
    is_damaged: bool  # status.json exists and cannot be read

    @classmethod
    def read(cls, fold: FoldDir) -> _Files:
        status, is_damaged = FoldStatus(), False
        if fold.status.exists():
            try:
                status = FoldStatus.read(fold.status)
            except UserError:
                is_damaged = True
        return cls(fold, status, read_if_valid(fold.result) or {}, is_damaged)

    @property
    def last(self) -> AttemptRecord | None:
        """The newest attempt."""
        return self.status.last

    @property
    def is_open(self) -> bool:
        """Whether the newest attempt has not recorded its end."""
        return self.last is not None and not self.last.ended

    @property
    def is_of_job(self) -> bool:
        """Whether the newest attempt was one of a Slurm job."""
        return self.last is not None and bool(self.last.job)

    @property
    def last_end(self) -> str:
        """A short text on how the newest attempt ended; empty without one."""
        return _describe_end(self.last) if self.last else ""


def get_state(run: RunDir, fold: int, queue: Queue | None) -> FoldState:
    """Return the state of a fold.

    Parameters
    ----------
    run : RunDir
        The run.
    fold : int
        The fold, counted from 1.
    queue : mapping or None
        From :func:`launch.slurm.squeue.query_squeue`; None if Slurm did not answer.
    """
    files = _Files.read(run.fold(fold))
    ids = jobs_of_fold(run, fold)
    job = next((queue[i] for i in ids if queue and i in queue), None)
    row = FoldState(fold, NOT_STARTED, attempts=len(files.status.attempts))
    if job:
        row = replace(row, job=job.id)
    row = _add_progress(row, files)
    if files.status.state == DONE and files.result:
        row = replace(row, state=DONE)
    elif job:
        row = _state_in_queue(row, files, job)
    else:
        row = _state_outside_queue(run, row, files, ids, is_unsure=queue is None)
    if row.state not in (RUNNING, DONE):
        row = replace(row, clips_per_second=None)
    return _add_nodes(row, files, job)


def _add_nodes(row: FoldState, files: _Files, job: QueuedJob | None) -> FoldState:
    if job and not job.waits:
        row = replace(row, nodes=job.nodes)
        if row.state != RUNNING:
            return row
        # squeue says INVALID once a job is over its limit
        return replace(row, left=_TIMES_LEFT.get(job.time_left, job.time_left))
    if row.state in (PENDING, REQUEUED) or not files.last:
        return row
    return replace(row, nodes=files.last.nodes)


def _state_in_queue(row: FoldState, files: _Files, job: QueuedJob) -> FoldState:
    if job.waits:
        return _waiting(row, files, job)
    last, is_completing = files.last, job.state == "COMPLETING"
    is_of_this_start = last is not None and _unix_time(
        last.ended or last.started or ""
    ) >= _unix_time(job.started)
    if last and last.ended and (is_of_this_start or is_completing):
        if files.status.state == FAILED:
            return _failed(row, files)
        return replace(row, state=LEAVING, why=files.last_end)
    if is_completing:
        return replace(row, state=LEAVING, why="Slurm ends it")
    if job.state != RUNNING:
        return replace(row, state=RUNNING, why=f"Slurm says {job.state}")
    return replace(row, state=RUNNING, why=_describe_start(files, is_new=not is_of_this_start))


def _waiting(row: FoldState, files: _Files, job: QueuedJob) -> FoldState:
    started_before = files.status.attempts or (job.reason == "BeginTime" and has_log(files.fold))
    why = "; ".join(filter(None, [reason_text(job.reason), _before(files.status.attempts)]))
    return replace(row, state=REQUEUED if started_before else PENDING, why=why)


def _state_outside_queue(
    run: RunDir, row: FoldState, files: _Files, ids: list[str], is_unsure: bool
) -> FoldState:
    """Judge a fold that has no job in the queue, or whose queue is not known (``is_unsure``)."""
    if is_held(files.fold):
        return _state_of_command(row, files)
    if files.is_damaged:
        return replace(row, state=LOST, why="status.json cannot be read")
    if files.status.state == FAILED:
        return _failed(row, files)
    end, detail = parse_job_end(job_output(run, row.fold))
    if end == FAILED:
        return replace(row, state=FAILED, error=detail)
    if end == CANCELLED:
        return replace(row, state=CANCELLED, why=files.last_end)
    if is_unsure and (ids or files.is_of_job):
        return replace(row, state=_likely_state(files), why="by its files alone")
    ended_by_slurm = end and detail
    if files.is_open:
        return replace(row, state=LOST, why=ended_by_slurm or "it ended without recording why")
    if files.status.attempts:
        why = "; ".join(filter(None, [ended_by_slurm, files.last_end]))
        return replace(row, state=CANCELLED if files.is_of_job else STOPPED, why=why)
    if has_log(files.fold):
        return replace(row, state=FAILED, error=last_error(files.fold, {}))
    if detail:
        return replace(row, state=FAILED, error=detail)
    if ids and run.jobs.exists():
        return replace(row, state=CANCELLED, why="before it began")
    return row


def _state_of_command(row: FoldState, files: _Files) -> FoldState:
    """Judge a fold that a command or a job holds locked."""
    if not files.is_of_job and is_gone(lock_owner(files.fold)):
        return replace(row, state=LEAVING, why="its command has ended, its ranks save and exit")
    return replace(row, state=RUNNING, why=_describe_start(files, is_new=not files.is_open))


def _likely_state(files: _Files) -> str:
    """Return the state that the files suggest, if Slurm does not answer."""
    if files.is_open:
        return RUNNING
    return REQUEUED if files.status.attempts else PENDING


def _describe_start(files: _Files, is_new: bool) -> str:
    """Return how a running attempt began; ``is_new`` if its ranks have not recorded it yet."""
    earlier = files.status.attempts
    if not is_new:
        earlier = earlier[:-1]
    before = _before(earlier)
    if is_new or files.status.state == "STARTING":
        return "; ".join(filter(None, ["starting", before]))
    if before and files.last:
        return f"resumed at step {files.last.from_step}; {before}"
    return ""


def _failed(row: FoldState, files: _Files) -> FoldState:
    why = files.last and files.last.why
    return replace(row, state=FAILED, error=why or "no reason was recorded")


def lock_owner(fold: FoldDir) -> str:
    """Return ``HOST PID`` of the command that locked a fold last."""
    return read_tail(fold.root / ".lock", 1000).decode(errors="replace")


def _add_progress(row: FoldState, files: _Files) -> FoldState:
    """Fill in steps, speed and the newest scores: the result's, otherwise an epoch's."""
    lines = read_tail(files.fold.metrics, _TAIL_BYTES).splitlines()
    step = _int(_last_with("step", lines).get("step"))
    if step is None and files.last:
        step = files.last.from_step
    speed = _number(_last_with("clips_per_second", lines).get("clips_per_second"))
    row = replace(row, step=step, steps=files.status.steps, clips_per_second=speed)
    if files.result:
        return _add_scores(row, "result", files.result.get("uar"), files.result.get("war"))
    split = "val" if _last_with("val_war", lines) else "test"
    line = _last_with(f"{split}_war", lines)
    return _add_scores(row, split, line.get(f"{split}_uar"), line.get(f"{split}_war"))


def _add_scores(row: FoldState, scored: str, uar: object, war: object) -> FoldState:
    row = replace(row, uar=_number(uar), war=_number(war))
    if row.war is None:
        return row
    return replace(row, scored=scored)


def _last_with(key: str, lines: Iterable[bytes]) -> dict[str, Any]:
    """Return the last whole line of ``metrics.jsonl`` that has ``key``."""
    quoted = f'"{key}"'.encode()
    for line in reversed(list(lines)):
        if quoted not in line:
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            return values
    return {}


def _unix_time(text: str) -> float:
    """Return the time of ISO 8601, by default in this machine's zone; 0 for anything else."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None
