"""``dfer logs``: the log of a rank of a fold; if it is empty, the output of the fold's job."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from launch.slurm.jobs import job_output
from launch.slurm.state import LIVE, NOT_STARTED, RUNNING, get_state
from launch.slurm.status import query_squeue_for

_POLL_SECONDS = 0.5
_POLLS_PER_STATE = 4  # reads of the log for each look at the fold's state
_OVER_IN_A_ROW = 2  # states in a row that say the fold is over


def logs(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    fold: Annotated[int, typer.Option(help="The fold, counted from 1.")],
    rank: Annotated[int, typer.Option(min=0, help="The rank whose log is printed.")] = 0,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Print new lines until the fold is over.")
    ] = False,
) -> None:
    """Print the log of a fold.

    It holds all attempts of a rank.

    If the log is empty, print the output of the fold's job, and its path.

    Example: [bold]dfer logs runs/dfew_vitb32 --fold 1 -f[/bold]
    """
    run_dir = RunDir(run.resolve())
    folds = run_dir.info().folds
    if fold not in folds:
        raise UserError(f"{run_dir.root} has no fold {fold}: it has {', '.join(map(str, folds))}")
    log = run_dir.fold(fold).log_of(rank)
    printed = _follow(run_dir, fold, log) if follow else _print_from(log, 0)
    if not printed:
        _print_job_output(run_dir, fold, log)


def _print_from(path: Path, offset: int) -> int:
    """Print a file from ``offset``, or from its beginning if it is shorter; return where it ends.

    A file that does not exist counts as empty.
    """
    with suppress(FileNotFoundError), path.open("rb") as f:
        if f.seek(0, os.SEEK_END) < offset:
            offset = 0
        f.seek(offset)
        shutil.copyfileobj(f, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return f.tell()
    return 0


def _follow(run: RunDir, fold: int, log: Path) -> int:
    """Print a log as it grows until the fold is over, and return its size."""
    offset, over = 0, 0
    while True:
        over += 1
        if not _is_over(run, fold):
            over = 0
        for _ in range(_POLLS_PER_STATE):
            # after the state: the last lines are in the log by now
            offset = _print_from(log, offset)
            if over >= _OVER_IN_A_ROW:
                return offset
            time.sleep(_POLL_SECONDS)


def _is_over(run: RunDir, fold: int) -> bool:
    queue = query_squeue_for(run)
    states = {k: get_state(run, k, queue).state for k in run.info().folds}
    # on this machine folds are trained one after the other, so another's end may start this one
    if states[fold] == NOT_STARTED:
        return RUNNING not in states.values()
    return states[fold] not in LIVE


def _print_job_output(run: RunDir, fold: int, log: Path) -> None:
    state = "empty" if log.exists() else "missing"
    output = job_output(run, fold)
    if output is None:
        raise UserError(f"{log} is {state}: dfer status {run.root} shows the state of fold {fold}")
    print(f"{log} is {state}; this is {output}:", file=sys.stderr, flush=True)
    _print_from(output, 0)
