"""``dfer cancel``: end what works on a run, here or in Slurm's queue. Ranks save before they leave."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hardware import has_open
from launch.locks import is_held
from launch.slurm.jobs import all_jobs, folds_of, submissions
from launch.slurm.squeue import cancel as cancel_jobs
from launch.slurm.squeue import queue
from launch.slurm.state import LIVE, get_state, holder


def cancel(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """End all folds of a run that wait or run; those that train save first. The summary job stays, and writes what is there.

    Ends with status 1 if there is nothing to cancel.

    Example: [bold]dfer cancel runs/dfew_vitb32[/bold]
    """
    where = RunDir(run.resolve())
    folds = folds_of(where)
    ended = _cancel_jobs(where, folds)
    ended += _cancel_here(where, [k for k in folds if k not in ended])
    if not ended:
        print(f"nothing to cancel: no fold of {where.root} waits or runs", file=sys.stderr)
        sys.exit(1)


def _cancel_jobs(run: RunDir, folds: list[int]) -> list[int]:
    if not all_jobs(run):
        return []
    jobs = queue()
    if jobs is None:
        raise UserError("Slurm does not answer: nothing was cancelled; try again")
    found = [state for k in folds if (state := get_state(run, k, jobs)).job and state.state in LIVE]
    if not found:
        return []
    said = cancel_jobs([state.job for state in found])
    if said:
        raise UserError(said)
    for state in found:
        print(f"fold {state.fold}: cancelled job {state.job} ({state.state})")
    summary = next(
        (str(s["summary"]) for s in reversed(submissions(run)) if str(s.get("summary")) in jobs),
        None,
    )
    if summary:
        print(f"job {summary} stays: it writes the summary of what is there")
    return [state.fold for state in found]


def _cancel_here(run: RunDir, folds: list[int]) -> list[int]:
    """Tell the commands that hold folds to leave, each once; returns the folds.

    Raises
    ------
    UserError
        If such a command runs on another machine, or is somebody else's.
    """
    held = {k: holder(run.fold(k)) for k in folds if is_held(run.fold(k))}
    for words in set(held.values()):
        numbers = ", ".join(str(k) for k, w in held.items() if w == words)
        host, _, pid = words.partition(" ")
        if host != socket.gethostname() or not pid.isdigit():
            raise UserError(
                f"fold {numbers} is worked on from {host or 'another machine'}: stop it there{pid and f', kill {pid}'}"
            )
        if not _holds(int(pid), run.fold(next(k for k, w in held.items() if w == words))):
            print(f"fold {numbers}: its command has ended already, its ranks save and leave")
            continue
        os.kill(int(pid), signal.SIGTERM)
        print(f"fold {numbers}: told the command to leave (process {pid}); it saves first")
    return list(held)


def _holds(pid: int, fold: FoldDir) -> bool:
    """Whether a process has the fold's lock open: its number may be another's by now."""
    try:
        return has_open(pid, fold.root / ".lock")
    except PermissionError as e:
        raise UserError(f"{fold.root} is worked on by process {pid} of another user") from e
