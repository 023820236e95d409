"""Requeue a Slurm job, or leave it: ``python -m launch.slurm.requeue STATUS [FOLD_FOLDER]``.

The batch script calls it in its EXIT trap; nothing else in this program requeues. STATUS is the
exit status of the ranks. After 75 (preempted, and saved) the job is requeued. After a failure it is
requeued if another start may help (:mod:`launch.slurm.failures`), as long as each start leaves a
newer checkpoint, and then three times more, as on one machine; nodes on which starts failed twice
are excluded. An error of the fold's own would come again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dfer_dist.distributed.preemption import EXIT_PREEMPTED
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.hosts import expand_host_list
from launch.slurm.clients import SlurmError, parse_pairs, run_client
from launch.slurm.failures import (
    MAX_RESTARTS,
    Failure,
    find_failure,
    is_stuck,
    nodes_to_avoid,
    record_failure,
)

_SCONTROL_TRIES = 30  # a controller that is restarted answers after a while
_SCONTROL_PAUSE = 10.0  # seconds between them
_IN_SERVICE = (" idle", " alloc", " mix", " comp")  # states of nodes that take jobs
_WAIT_FOR_END = 600  # seconds that Slurm may take to end a requeued job


class Decision(NamedTuple):
    """What becomes of a job whose ranks have ended."""

    requeue: bool
    failure: Failure | None = None  # of the ranks, unless they saved or Slurm ended them
    error: str = ""  # why the fold failed, if it did


def decide(status: int, fold: FoldDir, most: int) -> Decision:
    """Decide whether this job is requeued.

    Parameters
    ----------
    status : int
        The exit status of the ranks.
    fold : FoldDir
        The fold that they trained.
    most : int
        Restarts of the job, of any kind.
    """
    if status == 0 or is_being_ended(job_name()):
        return Decision(False)
    failure = None
    if status != EXIT_PREEMPTED:
        failure = find_failure(fold, status)
        if not failure.may_help:
            return Decision(False, failure, failure.reason)
        if is_stuck(fold, job_name()):
            error = f"{failure.reason} (no newer checkpoint after {MAX_RESTARTS} restarts)"
            return Decision(False, failure, error)
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0) >= most:
        reason = failure.reason if failure else "preempted, saved"
        return Decision(False, failure, f"{reason} (not requeued after {most} restarts)")
    return Decision(True, failure)


def job_name() -> str:
    """Return the job's id for ``scontrol``.

    An array task is named ``ARRAY_TASK``: its plain id may be that of the whole array.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def is_being_ended(job: str) -> bool:
    """Return whether the job is ended from outside, by cancelling, requeueing or preemption.

    Then it should end, or is requeued by others. A job at its time limit is not ended from outside.
    """
    try:
        shown = run_client("squeue", "--noheader", "--jobs", job, "--format", "%T %r", timeout=None)
    except SlurmError:
        return False
    state, _, reason = shown.strip().partition(" ")
    return state != "RUNNING" and reason != "TimeLimit"


def requeue(job: str, excluded: list[str]) -> None:
    """Requeue the job and wait until Slurm ends it: a script that returns counts as done.

    Parameters
    ----------
    job : str
        From :func:`job_name`.
    excluded : list of str
        Nodes on which it is not started again.

    Raises
    ------
    SystemExit
        If Slurm refuses.
    """
    for _ in range(_SCONTROL_TRIES):
        try:
            run_client("scontrol", "requeue", job, timeout=None)
        except SlurmError as e:
            print(f"requeueing {job}: {e}", file=sys.stderr, flush=True)
            time.sleep(_SCONTROL_PAUSE)
            continue
        # launch.slurm.jobs finds this line in the job's output
        print(f"requeued {job}", file=sys.stderr, flush=True)
        with suppress(SlurmError):
            exclude_nodes(job, excluded)
        time.sleep(_WAIT_FOR_END)
        return
    sys.exit(f"error: {job} could not be requeued; submit the same command again to resume")


def exclude_nodes(job: str, nodes: list[str]) -> None:
    """Exclude nodes from a job that waits, unless too few would be left.

    Raises
    ------
    SlurmError
        If Slurm does not answer, or refuses.
    """
    if not nodes:
        return
    shown = parse_pairs(run_client("scontrol", "--oneliner", "show", "job", job))
    before = shown.get("ExcNodeList", "").replace("(null)", "")
    excluded = set(nodes).union(expand_host_list(before))
    states = run_client("sinfo", "-h", "-N", "-p", shown["Partition"], "-o", "%N %t").splitlines()
    in_service = {line.split()[0] for line in states if line.endswith(_IN_SERVICE)}
    if len(in_service - excluded) >= int(os.environ["SLURM_JOB_NUM_NODES"]):
        names = ",".join(sorted(excluded))
        run_client("scontrol", "update", f"JobId={job}", f"ExcNodeList={names}")


def main() -> None:
    """Requeue the job if another start may help."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("status", type=int, help="exit status of the ranks")
    parser.add_argument("fold", type=Path, help="the fold's folder")
    parser.add_argument(
        "--most", type=int, default=30, help="restarts of a job, of any kind (%(default)s)"
    )
    args = parser.parse_args()
    # requeueing makes Slurm send SIGTERM to all of the job, also to scontrol before its request
    # is sent
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    fold, job = FoldDir(args.fold), job_name()
    decision = decide(args.status, fold, args.most)
    if not decision.requeue:
        return
    if decision.failure:
        # a full disk must not keep the job from being requeued
        with suppress(OSError):
            record_failure(fold, job, decision.failure)
    requeue(job, nodes_to_avoid(RunDir(args.fold.parent), decision.failure))


if __name__ == "__main__":
    main()
