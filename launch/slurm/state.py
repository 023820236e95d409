"""The state of each fold of a run, from the files in its folder and Slurm's queue.

No large file is read as a whole.
"""

from __future__ import annotations

import textwrap
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dfer_dist.distributed.preemption import TIME_IS_UP
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import AttemptRecord, FoldStatus
from dfer_dist.runs.sweep import is_pruned
from dfer_dist.utils.errors import UserError
from launch.locks import is_gone, is_held
from launch.progress import FoldProgress, LoggedMetrics, last_error, unix_time
from launch.slurm.failures import FailedStart, failed_starts
from launch.slurm.jobs import (
    JobEnd,
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
    device: str = ""  # of the newest attempt: CPU, or the GPU's name
    phase: str = ""  # of a running fold, as in status.json
    epoch: int = 0  # epochs done
    loss: float | None = None  # of the newest step while it trains
    seconds_left: float | None = None  # of its training
    seconds_silent: float | None = None  # since the running attempt wrote its last line
    mfu: float | None = None  # model FLOPs utilization, between 0 and 1


def _describe_end(attempt: AttemptRecord) -> str:
    """Return a short text on how an attempt ended."""
    why = attempt.why or ""
    if not attempt.ended or why.startswith("it said nothing"):
        return "killed, or its machine was lost"
    if why.startswith("SIG") or why in _PREEMPTED:
        return f"{why}, saved"
    return textwrap.shorten(why, _REASON_WIDTH, placeholder=" …")


def _join(*parts: str) -> str:
    return "; ".join(filter(None, parts))


class _Verdict(NamedTuple):
    """The first columns of a :class:`FoldState` after its fold."""

    state: str
    why: str = ""
    error: str = ""


@dataclass(frozen=True)
class _Files:
    """What the files of a fold say; a damaged file counts as empty."""

    fold: FoldDir
    status: FoldStatus
    result: dict[str, Any]
    metrics: LoggedMetrics
    failures: list[FailedStart]
    is_damaged: bool  # status.json exists and cannot be read

    @classmethod
    def read(cls, fold: FoldDir) -> _Files:
        try:
            status, is_damaged = FoldStatus.read(fold.status), False
        except UserError:
            status, is_damaged = FoldStatus(), fold.status.exists()
        result, metrics = read_if_valid(fold.result) or {}, _read_metrics(fold)
        return cls(fold, status, result, metrics, failed_starts(fold), is_damaged)

    @property
    def is_open(self) -> bool:
        """Whether the newest attempt has not recorded its end."""
        return self.status.last is not None and not self.status.last.ended

    def began_since(self, since: str) -> bool:
        """Return whether the newest attempt runs and began at a time in ISO 8601 or later."""
        last = self.status.last
        return last is not None and self.is_open and unix_time(last.started) >= unix_time(since)

    @property
    def is_of_job(self) -> bool:
        """Whether the newest attempt was one of a Slurm job."""
        return self.status.last is not None and bool(self.status.last.job)

    @property
    def last_end(self) -> str:
        """A short text on how the newest attempt ended; empty without one."""
        return _describe_end(self.status.last) if self.status.last else ""

    def has_metrics(self, since: str) -> bool:
        """Return whether metrics were logged since a time in ISO 8601."""
        return self.metrics.is_since(unix_time(since))

    def before(self, is_running: bool = False) -> str:
        """Return how the newest attempt ended, but for one that runs, as a part of a reason.

        A failed start may have ended before its ranks recorded it.
        """
        attempts, limit = self.status.attempts, float("inf")
        if is_running:
            *attempts, own = attempts
            limit = unix_time(own.started or "")
        failures = [f for f in self.failures if unix_time(f.time) <= limit]
        newest = unix_time(attempts[-1].started or "") if attempts else 0.0
        if failures and unix_time(failures[-1].time) >= newest:
            nodes, reason = ", ".join(failures[-1].nodes), failures[-1].reason
            if nodes and nodes not in reason:
                reason = f"on {nodes}: {reason}"
            return f"before: {textwrap.shorten(reason, _REASON_WIDTH, placeholder=' …')}"
        return f"before: {_describe_end(attempts[-1])}" if attempts else ""


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
    if files.status.state == DONE and files.result:
        verdict = _Verdict(DONE)
    elif job:
        verdict = _judge_in_queue(files, job, parse_job_end(job_output(run, fold, job.id)))
    elif is_held(files.fold):
        verdict = _judge_locked(files)
    else:
        verdict = _judge_outside_queue(run, fold, files, ids, is_unsure=queue is None)
    if verdict.state in (STOPPED, CANCELLED) and is_pruned(run):
        verdict = _Verdict(verdict.state, "pruned by its search, for low scores")
    state = FoldState(fold, *verdict, len(files.status.attempts), device=_device(files.status.last))
    since = job.started if job else files.status.last and files.status.last.started
    return _add_job(_add_progress(state, files, since or ""), files, job)


def _judge_in_queue(files: _Files, job: QueuedJob, end: JobEnd) -> _Verdict:
    status, last = files.status, files.status.last
    is_requeued = job.is_requeued or (job.is_completing and end.state == REQUEUED)
    if job.waits or is_requeued:
        why = _join(reason_text(job.reason) if job.waits else "", files.before())
        started_before = status.attempts or (job.reason == "BeginTime" and has_log(files.fold))
        is_requeued |= bool(started_before) or end.state == REQUEUED
        return _Verdict(REQUEUED if is_requeued else PENDING, why)
    # its script has decided that the job is not requeued
    if end.state == FAILED:
        return _Verdict(FAILED, error=end.detail)
    is_of_this_start = last is not None and unix_time(
        last.ended or last.started or ""
    ) >= unix_time(job.started)
    if last and last.ended and (is_of_this_start or job.is_completing):
        return _Verdict(LEAVING, files.last_end)
    if job.is_completing:
        return _Verdict(LEAVING, "Slurm ends it")
    if job.state != RUNNING:
        return _Verdict(RUNNING, f"Slurm says {job.state}")
    return _Verdict(RUNNING, _describe_start(files, not is_of_this_start, job.started))


def _judge_locked(files: _Files) -> _Verdict:
    """Judge a fold that a command or a job holds locked."""
    if not files.is_of_job and is_gone(lock_owner(files.fold)):
        return _Verdict(LEAVING, "its command has ended, its ranks save and exit")
    started = files.status.last and files.status.last.started
    return _Verdict(RUNNING, _describe_start(files, not files.is_open, started or ""))


def _judge_outside_queue(
    run: RunDir, fold: int, files: _Files, ids: list[str], is_unsure: bool
) -> _Verdict:
    """Judge a fold that has no job in the queue, or whose queue is not known (``is_unsure``)."""
    if files.is_damaged:
        return _Verdict(LOST, "status.json cannot be read")
    output = job_output(run, fold)
    end, detail = parse_job_end(output)
    if end == FAILED:
        return _Verdict(FAILED, error=detail)
    if files.status.state == FAILED and end != REQUEUED:
        return _failed(files)
    # a requeued job was cancelled while it waited in the queue
    if end in (CANCELLED, REQUEUED):
        return _Verdict(CANCELLED, files.last_end)
    if is_unsure and (ids or files.is_of_job):
        return _Verdict(_likely_state(files), "by its files alone")
    ended_by_slurm = end and detail
    if files.is_open:
        return _Verdict(LOST, ended_by_slurm or "it ended without recording why")
    died = ended_by_slurm or "its job ended without a word"
    if files.status.attempts and output:
        return _Verdict(LOST, _join(died, files.last_end))
    if files.status.attempts:
        return _Verdict(CANCELLED if files.is_of_job else STOPPED, files.last_end)
    if has_log(files.fold):
        return _Verdict(FAILED, error=last_error(files.fold, {}))
    if detail:
        return _Verdict(FAILED, error=detail)
    if output:
        return _Verdict(LOST, died)
    if ids and run.jobs.exists():
        return _Verdict(CANCELLED, "before it began")
    return _Verdict(NOT_STARTED)


def _likely_state(files: _Files) -> str:
    """Return the state that the files suggest, if Slurm does not answer."""
    if files.is_open:
        return RUNNING
    return REQUEUED if files.status.attempts else PENDING


def _describe_start(files: _Files, is_new: bool, since: str) -> str:
    """Return how a running attempt began.

    ``is_new`` says that its ranks have not recorded it, which they cannot where the disk is full.
    It began at ``since``.
    """
    before = files.before(is_running=not is_new)
    if (is_new or files.status.state == "STARTING") and not files.has_metrics(since):
        return _join("starting", before)
    if before and not is_new and files.status.last:
        return f"resumed at step {files.status.last.from_step}; {before}"
    return before


def _failed(files: _Files) -> _Verdict:
    why = files.status.last and files.status.last.why
    return _Verdict(FAILED, error=why or "no reason was recorded")


def lock_owner(fold: FoldDir) -> str:
    """Return ``HOST PID`` of the command that locked a fold last."""
    return read_tail(fold.root / ".lock", 1000).decode(errors="replace")


def _device(attempt: AttemptRecord | None) -> str:
    """Return a short name of the device; empty for attempts of earlier versions."""
    if attempt is None or attempt.device_type is None:
        return ""
    if attempt.device_type == "cpu":
        return "CPU"
    return (attempt.device or attempt.device_type).removeprefix("NVIDIA ")


def _add_progress(row: FoldState, files: _Files, since: str) -> FoldState:
    """Fill in steps, speed and the newest scores: the result's, otherwise an epoch's.

    An attempt that runs since ``since`` has the loss and the speed of its own steps only.
    """
    latest, status = files.metrics.latest, files.status
    scored, prefix, scores = "result", "", files.result
    if not scores:
        scored = "val" if "val_war" in latest else "test"
        prefix, scores = f"{scored}_", latest
    uar, war = scores.get(f"{prefix}uar"), scores.get(f"{prefix}war")
    if war is None:
        scored = ""
    progress = FoldProgress.of(status, files.metrics, unix_time(since))
    row = replace(row, step=progress.step, steps=progress.steps, epoch=progress.epoch)
    row = replace(row, uar=uar, war=war, scored=scored)
    if row.state == DONE:
        speed, mfu = latest.get("clips_per_second"), latest.get("mfu")
        return replace(row, clips_per_second=speed, mfu=mfu)
    # what an earlier attempt did says nothing of the one that begins
    if row.state != RUNNING or not files.began_since(since):
        return row
    return replace(
        row,
        phase=progress.phase,
        loss=progress.loss,
        clips_per_second=progress.clips_per_second,
        mfu=latest.get("mfu") if progress.clips_per_second else None,
        seconds_left=progress.seconds_left,
        seconds_silent=_seconds_silent(files.fold, unix_time(since)),
    )


def _seconds_silent(fold: FoldDir, since: float) -> float | None:
    """Return the age of the newest line of log and metrics; None if none is of this attempt."""
    times = [0.0]
    for file in (fold.log, fold.metrics):
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    if max(times) < since:
        return None
    return max(0.0, time.time() - max(times))


def _read_metrics(fold: FoldDir) -> LoggedMetrics:
    """Return what the last whole lines of ``metrics.jsonl`` say."""
    metrics = LoggedMetrics()
    for line in read_tail(fold.metrics, _TAIL_BYTES).splitlines():
        # the first line may lack its beginning, the last one its end
        with suppress(ValueError):
            metrics.add(line)
    return metrics


def _add_job(row: FoldState, files: _Files, job: QueuedJob | None) -> FoldState:
    """Fill in the job in the queue, and the nodes, its own or those of the last attempt."""
    if job:
        row = replace(row, job=job.id, nodes=job.nodes)
    if job and row.state == RUNNING:
        # squeue says INVALID once a job is over its limit
        return replace(row, left=_TIMES_LEFT.get(job.time_left, job.time_left))
    if files.status.last and not row.nodes and row.state not in (PENDING, REQUEUED):
        return replace(row, nodes=files.status.last.nodes)
    return row
