"""``dfer logs``: what a rank of a fold wrote, or, where it wrote nothing, what the job did."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from launch.slurm.jobs import folds_of, output_of
from launch.slurm.state import LIVE, NOT_STARTED, RUNNING, get_state
from launch.slurm.status import query_squeue

_POLL = 0.5  # seconds between two looks at the file
_LOOKS = 4  # of these before the fold's state is looked at again
_ENOUGH = 2  # looks in a row that find nothing more to come


def logs(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    fold: Annotated[int, typer.Option(help="The fold, counted from 1.")],
    rank: Annotated[int, typer.Option(min=0, help="Whose log; rank 0 is the readable one.")] = 0,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on as it grows, until the fold is over.")
    ] = False,
) -> None:
    """Print the log of a rank of a fold, over all its attempts. Where it is empty, the job's own output, and which file that is.

    Example: [bold]dfer logs runs/dfew_vitb32 --fold 1 -f[/bold]
    """
    where = RunDir(run.resolve())
    if fold not in folds_of(where):
        raise UserError(
            f"{where.root} has no fold {fold}: it has {', '.join(map(str, folds_of(where)))}"
        )
    log = where.fold(fold).log_of(rank)
    shown = _follow(where, fold, log) if follow else _copy(log, 0)
    if not shown:
        _show_output(where, fold, log)


def _copy(path: Path, offset: int) -> int:
    """Print a file from ``offset`` on, or anew if it is shorter now; returns where it ended. One that is not there is empty."""
    try:
        with path.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            f.seek(offset if offset <= size else 0)
            while block := f.read(1 << 20):
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
            return f.tell()
    except FileNotFoundError:
        return 0


def _follow(run: RunDir, fold: int, log: Path) -> int:
    """Print a log as it grows until nothing works on the fold and nothing will; returns its size."""
    offset, looks, idle = 0, 0, 0
    while True:
        is_over = False
        if looks % _LOOKS == 0:
            idle = idle + 1 if _is_over(run, fold) else 0
            is_over = idle >= _ENOUGH
        offset = _copy(log, offset)  # after the look: what was written last is there
        if is_over:
            return offset
        looks += 1
        time.sleep(_POLL)


def _is_over(run: RunDir, fold: int) -> bool:
    jobs = query_squeue([run])
    states = {k: get_state(run, k, jobs).state for k in folds_of(run)}
    if states[fold] == NOT_STARTED:  # one fold after the other on this machine: its turn may come
        return RUNNING not in states.values()
    return states[fold] not in LIVE


def _show_output(run: RunDir, fold: int, log: Path) -> None:
    output = output_of(run, fold)
    if output is None:
        raise UserError(
            f"{log} is {'empty' if log.exists() else 'not there yet'}: dfer status {run.root} tells what fold {fold} does"
        )
    print(
        f"{log} is {'empty' if log.exists() else 'not there'}; this is {output}:",
        file=sys.stderr,
        flush=True,
    )
    _copy(output, 0)
