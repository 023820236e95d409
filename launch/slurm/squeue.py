"""The user's jobs in Slurm's queue, from one ``squeue``. Accounting (``sacct``) is never asked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TIMEOUT = 5.0  # seconds for the controller to answer
_FORMAT = "%i|%T|%N|%L|%S|%r"  # the reason last: it alone may hold a bar

WAITING = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)

_REASONS = {
    "None": "not scheduled yet",
    "Resources": "nodes are busy",
    "Priority": "other jobs go first",
    "BeginTime": "held for a moment",
    "JobArrayTaskLimit": "enough folds run",
    "Dependency": "waits for other jobs",
    "DependencyNeverSatisfied": "waits forever for a job that failed",
    "JobHeldUser": "held: scontrol release",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "requeued too often, held: scontrol release",
    "launch failed requeued held": "could not be started, held: scontrol release",
    "ReqNodeNotAvail": "nodes are down or reserved",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for a licence",
    "NodeDown": "a node is down",
    "BadConstraints": "no node meets the constraints",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is closed",
    "PartitionNodeLimit": "more nodes than the partition has or allows",
    "PartitionTimeLimit": "more time than the partition allows",
    "InvalidAccount": "no such account",
    "InvalidQOS": "no such QOS",
    "Cleaning": "its last attempt is cleaned up",
}


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue: a line of ``squeue``."""

    id: str  # 120, or 120_0 for an array task
    state: str  # such as RUNNING
    nodes: str  # such as n[1-2]; empty while it waits
    time_left: str  # of its limit, such as 1-02:03:04
    reason: str  # why it waits, such as Resources
    started: str = ""  # local time in ISO 8601; N/A while it waits

    @property
    def waits(self) -> bool:
        """Whether it is not running yet, or not again."""
        return self.state in WAITING

    @classmethod
    def parse(cls, line: str) -> QueuedJob | None:
        """Read a line in ``_FORMAT``; None if it is incomplete."""
        columns = line.split("|", 5)
        if len(columns) < 6:
            return None
        job, state, nodes, time_left, started, reason = columns
        return cls(job, state, nodes, time_left, reason, started)


Queue = Mapping[str, QueuedJob]  # by job id


def query_squeue() -> Queue | None:
    """Return the user's jobs by id, each array task by itself.

    Returns
    -------
    mapping or None
        None if there is no Slurm, or its controller does not answer within a few seconds.
    """
    # the user's own SQUEUE_ variables may filter jobs or change the format of times
    env = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    env["SLURM_TIME_FORMAT"] = "standard"
    try:
        done = subprocess.run(
            ["squeue", "--me", "-h", "-r", "-o", _FORMAT],
            env=env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    jobs = filter(None, map(QueuedJob.parse, done.stdout.splitlines()))
    return {job.id: job for job in jobs}


def cancel_jobs(ids: Sequence[str]) -> str:
    """Cancel jobs and return Slurm's error, if any. Jobs that have ended already are no error."""
    if not ids:
        return ""
    done = subprocess.run(["scancel", *ids], capture_output=True, text=True, check=False)
    if not done.returncode:
        return ""
    return done.stderr.strip()


def reason_text(reason: str) -> str:
    """Return why a job waits in plain English, with Slurm's own term in brackets."""
    term = reason.strip("()").partition(",")[0]  # ReqNodeNotAvail, UnavailableNodes:n3
    if term.startswith(("QOS", "Assoc")):
        return f"a limit of the account or QOS ({term})"
    if term in _REASONS:
        return f"{_REASONS[term]} ({term})"
    return term
