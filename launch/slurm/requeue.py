"""Requeue a Slurm job, or leave it: ``python -m launch.slurm.requeue STATUS [FOLD_FOLDER]``.

The batch script calls it in its EXIT trap; nothing else in this program requeues. STATUS is the
exit status of the ranks. After 75 (preempted, and saved) and after death by a signal (128 + its
number) another start may get further, so the job is requeued. An error with a traceback (1) and a
mistake of the user (2) would come again. After deaths by a signal the job is requeued as long as
each attempt leaves a newer checkpoint, and then three times more, as on one machine: ``srun`` also
kills ranks that are slow to notice another's traceback, and then reports their deaths alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from dfer_dist.distributed.preemption import EXIT_PREEMPTED
from dfer_dist.runs.layout import FoldDir
from dfer_dist.runs.records import FoldStatus
from launch.slurm.clients import SlurmError, run_client

_SCONTROL_TRIES = 30  # a controller that is restarted answers after a while
_SCONTROL_PAUSE = 10.0  # seconds between them
_STUCK_RESTARTS = 3  # of a fold whose ranks die without a newer checkpoint
_SIGNAL_STATUSES = range(129, 193)  # what a shell and srun make of signals 1 to 64
_WAIT_FOR_END = 600  # seconds that Slurm may take to end a requeued job


def should_requeue(status: int) -> bool:
    """Return whether another start may get further after ranks ended with ``status``."""
    return status == EXIT_PREEMPTED or status in _SIGNAL_STATUSES


def is_stuck(fold: FoldDir) -> bool:
    """Return whether the last attempts all resumed from the same step."""
    if not fold.status.exists():
        return False
    attempts = FoldStatus.read(fold.status).attempts[-1 - _STUCK_RESTARTS :]
    steps = {attempt.from_step for attempt in attempts}
    return len(attempts) > _STUCK_RESTARTS and len(steps) == 1


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


def requeue(job: str) -> None:
    """Requeue the job and wait until Slurm ends it: a script that returns counts as done.

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
        time.sleep(_WAIT_FOR_END)
        return
    sys.exit(f"error: {job} could not be requeued; submit the same command again to resume")


def main() -> None:
    """Requeue the job if another start may help; exit with 1 if it is given up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("status", type=int, help="exit status of the ranks")
    parser.add_argument("fold", type=Path, nargs="?", help="the fold's folder, if it exists")
    parser.add_argument(
        "--most", type=int, default=30, help="restarts of a job, of any kind (%(default)s)"
    )
    args = parser.parse_args()
    if not should_requeue(args.status):
        return
    # requeueing makes Slurm send SIGTERM to all of the job, also to scontrol before its request
    # is sent
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    job = job_name()
    ended = f"error: {job} ended with {args.status}"
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0) >= args.most:
        sys.exit(f"{ended} after {args.most} restarts: it is not requeued")
    if args.status != EXIT_PREEMPTED and args.fold and is_stuck(FoldDir(args.fold)):
        sys.exit(f"{ended} and got no further in {_STUCK_RESTARTS} restarts: it is not requeued")
    if not is_being_ended(job):
        requeue(job)


if __name__ == "__main__":
    main()
