"""What Slurm has in its queue of this person's jobs, by one ``squeue``. Accounting (``sacct``) is never asked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_PATIENCE = 5.0  # seconds for the controller to answer
_FORMAT = "%i|%T|%N|%L|%S|%r"  # the reason last: of all these it alone may hold a bar

WAITING = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)

_REASONS = {
    "None": "not looked at yet",
    "Resources": "nodes are busy",
    "Priority": "other jobs go first",
    "BeginTime": "held for a moment",
    "JobArrayTaskLimit": "enough folds run",
    "Dependency": "waits for other jobs",
    "DependencyNeverSatisfied": "waits for a job that failed, for ever",
    "JobHeldUser": "held: scontrol release",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "requeued too often, held: scontrol release",
    "launch failed requeued held": "could not be started, held: scontrol release",
    "ReqNodeNotAvail": "nodes are down or reserved",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for a licence",
    "NodeDown": "a node is down",
    "BadConstraints": "no node is as asked for",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is closed",
    "PartitionNodeLimit": "more nodes than the partition has or allows",
    "PartitionTimeLimit": "more time than the partition allows",
    "InvalidAccount": "no such account",
    "InvalidQOS": "no such QOS",
    "Cleaning": "its last attempt is cleaned up",
}


@dataclass(frozen=True)
class Queued:
    """A job in the queue, in the words of ``squeue``."""

    id: str  # 120, or 120_0 for an element of an array
    state: str  # such as RUNNING
    nodes: str  # such as n[1-2]; empty while it waits
    left: str  # of its time limit, such as 1-02:03:04
    reason: str  # why it waits, such as Resources
    started: str = ""  # local time in ISO 8601; N/A while it waits

    @property
    def waits(self) -> bool:
        return self.state in WAITING


def queue() -> dict[str, Queued] | None:
    """This person's jobs by id, each element of an array by itself.

    Returns
    -------
    dict or None
        None where there is no Slurm, or its controller does not answer within a few seconds.
    """
    # a person's own settings of squeue may filter jobs, or write times in another way
    env = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")} | {
        "SLURM_TIME_FORMAT": "standard"
    }
    try:
        asked = subprocess.run(
            ["squeue", "--me", "-h", "-r", "-o", _FORMAT],
            env=env,
            capture_output=True,
            errors="replace",
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode:
        return None
    jobs = {}
    for row in (line.split("|", 5) for line in asked.stdout.splitlines()):
        if len(row) == 6:
            i, state, nodes, left, started, reason = row
            jobs[i] = Queued(i, state, nodes, left, reason, started)
    return jobs


def cancel(ids: Sequence[str]) -> str:
    """Take jobs out of the queue, those that run too; returns what Slurm said against it. Jobs that are gone already are no fault."""
    if not ids:
        return ""
    done = subprocess.run(["scancel", *ids], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def reason_text(reason: str) -> str:
    """Why a job waits, for people, with Slurm's own word behind it."""
    word = reason.strip("()").partition(",")[0]  # ReqNodeNotAvail, UnavailableNodes:n3
    if word.startswith(("QOS", "Assoc")):
        return f"a limit of the account or QOS ({word})"
    return f"{_REASONS[word]} ({word})" if word in _REASONS else word
