"""Put a Slurm job back into the queue, or leave it: ``python -m launch.slurm.requeue STATUS FOLD``, in the EXIT trap of its batch script.

Nothing else in this program requeues. STATUS is how the ranks ended: 75 (saved and told to leave) and death by a signal (128 + its
number) are worth another start; an error with a traceback (1), or one that a person has to mend (2), would come again. After deaths
it is done as long as each attempt leaves a newer checkpoint, then three times more, as on one machine: ``srun`` also kills ranks
that take long to notice another's traceback, and tells of their deaths alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dfer_dist.distributed.preemption import EXIT_PREEMPTED
from dfer_dist.runs.layout import FoldDir
from dfer_dist.utils.files import read_json

_TRIES = 30  # of scontrol: a controller that is started again answers after a while
_PAUSE = 10.0  # seconds between them
_RESTARTS = 3  # of a fold whose ranks die without a newer checkpoint
_SIGNALS = range(129, 193)  # what a shell and srun make of a death by signal 1 to 64


def should_requeue(status: int) -> bool:
    """Whether a start after an end with this status may come further."""
    return status == EXIT_PREEMPTED or status in _SIGNALS


def is_stuck(fold: FoldDir) -> bool:
    """Whether the last attempts all began at one step, which is that of the checkpoint they went on from."""
    if not fold.status.exists():
        return False
    begun = [attempt["from_step"] for attempt in read_json(fold.status)["attempts"]][
        -1 - _RESTARTS :
    ]
    return len(begun) > _RESTARTS and len(set(begun)) == 1


def job_name() -> str:
    """The job's id as ``scontrol`` takes it. One element of an array goes by ``ARRAY_ELEMENT``: its plain id may be that of the whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def is_being_ended(job: str) -> bool:
    """Whether somebody else is ending the job: who cancelled it wants it gone, who requeued it or needs its nodes does the rest.

    A job whose time is up is ended by nobody's wish.
    """
    asked = subprocess.run(
        ["squeue", "--noheader", "--jobs", job, "--format", "%T %r"], capture_output=True, text=True
    )
    state, _, reason = asked.stdout.strip().partition(" ")
    return asked.returncode == 0 and state != "RUNNING" and reason != "TimeLimit"


def requeue(job: str) -> int:
    """Requeue the job, and stay until Slurm ends it: a batch script that returns counts as done.

    Returns 1 if Slurm will not have it.
    """
    for _ in range(_TRIES):
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if done.returncode == 0:
            print(f"requeued {job}", file=sys.stderr, flush=True)
            time.sleep(600)
            return 0
        print(f"requeueing {job}: {done.stderr.strip()}", file=sys.stderr, flush=True)
        time.sleep(_PAUSE)
    print(
        f"error: {job} could not be requeued; submit the same command again to go on",
        file=sys.stderr,
    )
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("status", type=int, help="with which the ranks ended")
    parser.add_argument("fold", type=Path, nargs="?", help="the fold's folder, once there is one")
    parser.add_argument(
        "--most", type=int, default=30, help="restarts of a job, of any kind (%(default)s)"
    )
    args = parser.parse_args()
    if not should_requeue(args.status):
        return 0
    # requeueing makes Slurm send SIGTERM to all of the job, scontrol included, which must live to send its request
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    job = job_name()
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    if restarts >= args.most:
        print(
            f"error: {job} was started again {restarts} times and ended with {args.status}: not again",
            file=sys.stderr,
        )
        return 1
    if args.status != EXIT_PREEMPTED and args.fold and is_stuck(FoldDir(args.fold)):
        print(
            f"error: {job} ended with {args.status} and came no further in {_RESTARTS} restarts: not again",
            file=sys.stderr,
        )
        return 1
    return 0 if is_being_ended(job) else requeue(job)


if __name__ == "__main__":
    sys.exit(main())
