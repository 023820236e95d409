"""The user's jobs in Slurm's queue, from one ``squeue``. Accounting (``sacct``) is never asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from launch.slurm.clients import SlurmError, run_client

_TIMEOUT = 5.0  # seconds for the controller to answer
_FORMAT = "%i|%T|%N|%L|%M|%S|%r"  # the reason last: it alone may hold a bar

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
    "job requeued in held state": "requeued, held: scontrol release",
    "job requeued in special exit state": "requeued, held: scontrol release",
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


class QueuedJob(NamedTuple):
    """A job in the queue: a line of ``squeue`` in ``_FORMAT``."""

    id: str  # 120, or 120_0 for an array task
    state: str  # such as RUNNING
    nodes: str  # such as n[1-2]; empty while it waits
    time_left: str  # of its limit, such as 1-02:03:04
    time_used: str  # as time_left; 0:00 while it waits
    started: str  # local time in ISO 8601; N/A while it waits
    reason: str  # why it waits, such as Resources

    @property
    def waits(self) -> bool:
        """Whether it is not running yet, or not again."""
        return self.state in WAITING

    @property
    def is_completing(self) -> bool:
        """Whether Slurm is ending it."""
        return self.state == "COMPLETING"

    @property
    def is_requeued(self) -> bool:
        """Whether Slurm is ending this start of it and will start it again.

        Its state is then COMPLETING over PENDING. ``squeue`` shows only the first, but gives a
        pending job no time used (``job_time_used`` in its print.c).
        """
        return self.is_completing and self.time_used == "0:00"


Queue = Mapping[str, QueuedJob]  # by job id


def query_squeue() -> Queue | None:
    """Return the user's jobs by id, each array task by itself.

    Returns
    -------
    mapping or None
        None if there is no Slurm, or its controller does not answer within a few seconds.
    """
    try:
        text = run_client("squeue", "--me", "-h", "-r", "-o", _FORMAT, timeout=_TIMEOUT)
    except SlurmError:
        return None
    rows = [line.split("|", len(QueuedJob._fields) - 1) for line in text.splitlines()]
    return {row[0]: QueuedJob(*row) for row in rows if len(row) == len(QueuedJob._fields)}


def reason_text(reason: str) -> str:
    """Return why a job waits in plain English, with Slurm's own term in brackets."""
    term = reason.strip("()").partition(",")[0]  # ReqNodeNotAvail, UnavailableNodes:n3
    if term.startswith(("QOS", "Assoc")):
        return f"a limit of the account or QOS ({term})"
    if term in _REASONS:
        return f"{_REASONS[term]} ({term})"
    return term
