"""``dfer cancel``: cancel what trains a run, here or in Slurm's queue. Ranks save first."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import expand
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hardware import has_open
from launch.locks import is_held
from launch.progress import is_done
from launch.slurm.clients import run_client
from launch.slurm.jobs import all_jobs, submissions
from launch.slurm.squeue import query_squeue
from launch.slurm.state import LIVE, get_state, lock_owner


def cancel(run: Annotated[Path, typer.Argument(help="The run's folder, or a sweep's.")]) -> None:
    """Cancel all folds of a run that wait or train.

    Folds that train save a checkpoint first.

    The summary job stays and writes the summary of the folds that are done. The exit status is 1
    if there is nothing to cancel, unless all folds are done.

    Example: [bold]dfer cancel runs/dfew_vitb32[/bold]
    """
    runs = expand(run)
    signalled: set[str] = set()
    cancelled = [_cancel(run_dir, signalled) for run_dir in runs]
    if any(cancelled):
        return
    if all(is_done(one.fold(k)) for one in runs for k in one.info().folds_to_train):
        print(f"nothing to cancel: all folds of {run.resolve()} are done")
    else:
        print(f"nothing to cancel: no fold of {run.resolve()} waits or runs", file=sys.stderr)
        sys.exit(1)


def _cancel(run_dir: RunDir, signalled: set[str]) -> bool:
    """Cancel the folds of a run, and return whether there were any.

    A command in ``signalled``, which trains several runs, gets no second signal: that would end its
    ranks before they have saved.
    """
    folds = run_dir.info().folds
    jobs = _cancel_jobs(run_dir, folds)
    stopped = _stop_commands(run_dir, [k for k in folds if k not in jobs], signalled)
    return bool(stopped) or any(jobs.values())


def _cancel_jobs(run: RunDir, folds: list[int]) -> dict[int, bool]:
    """Cancel folds in Slurm's queue; return for each one there whether it was cancelled.

    The job of a fold that has ended may still write the summary so far.
    """
    if not all_jobs(run):
        return {}
    queue = query_squeue()
    if queue is None:
        raise UserError("Slurm does not answer: nothing was cancelled; try again")
    states = [get_state(run, k, queue) for k in folds]
    jobs = {state.fold: state.state in LIVE for state in states if state.job}
    live = [state for state in states if jobs.get(state.fold)]
    if not live:
        return jobs
    run_client("scancel", *(state.job for state in live), timeout=None)
    for state in live:
        print(f"fold {state.fold}: cancelled job {state.job} ({state.state})")
    summaries = [entry.summary for entry in submissions(run) if entry.summary in queue]
    if summaries:
        print(f"job {summaries[-1]} stays: it writes the summary of the folds that are done")
    return jobs


def _stop_commands(run: RunDir, folds: list[int], signalled: set[str]) -> list[int]:
    """Send SIGTERM to the commands of this machine that train folds, and return these folds.

    Raises
    ------
    UserError
        If such a command runs on another machine.
    PermissionError
        If it is another user's.
    """
    owners = {k: lock_owner(run.fold(k)) for k in folds if is_held(run.fold(k))}
    for owner in set(owners.values()):
        owned = [k for k, other in owners.items() if other == owner]
        numbers = ", ".join(map(str, owned))
        host, _, pid = owner.partition(" ")
        if host != socket.gethostname() or not pid.isdigit():
            remedy = pid and f", kill {pid}"
            raise UserError(
                f"fold {numbers} is trained by {host or 'another machine'}: stop it there{remedy}"
            )
        # the process id may be in use again by another process
        if not has_open(int(pid), run.fold(owned[0]).root / ".lock"):
            print(f"fold {numbers}: its command has ended already, its ranks save and exit")
            continue
        if owner not in signalled:
            os.kill(int(pid), signal.SIGTERM)
        signalled.add(owner)
        print(f"fold {numbers}: sent SIGTERM to its command (process {pid}), which saves first")
    return list(owners)
