"""Following runs on a cluster until they are over: what ``--wait`` shows."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from dfer_dist.runs.layout import RunDir
from launch.slurm.jobs import all_jobs, submissions
from launch.slurm.squeue import queue
from launch.slurm.state import DONE, Jobs
from launch.slurm.status import RunState, look_at, render, widen

_PAUSE = 2.0  # seconds between two looks
_ENOUGH = 2  # answers in a row without any of the jobs: then they are over
_UNSEEN = 5  # the same where none was seen yet: what was just submitted may take a moment


def wait(runs: Sequence[RunDir], console: Console) -> int:
    """Show the runs until none of their jobs is in the queue, summaries included. A controller that is away is waited for.

    A live table on a terminal, elsewhere a line for each change of a fold. Ctrl-C ends the watching and leaves the jobs alone.

    Returns
    -------
    int
        0 if all folds that were submitted are done, 130 after Ctrl-C, else 1.
    """
    widen(console)
    try:
        states = (
            _follow_live(runs, console) if console.is_terminal else _follow_lines(runs, console)
        )
    except KeyboardInterrupt:
        names = " ".join(str(run.root) for run in runs)
        console.print(
            f"the jobs go on: dfer status shows them, dfer cancel ends them ({names})",
            markup=False,
            soft_wrap=True,
        )
        return 130
    console.print(render(states))
    return 0 if all(_is_done(state) for state in states) else 1


def _is_done(state: RunState) -> bool:
    submitted = {int(k) for s in submissions(state.run) for k in s.get("folds") or {}}
    return all(f.state == DONE for f in state.folds if f.fold in submitted or not submitted)


def _follow_live(runs: Sequence[RunDir], console: Console) -> list[RunState]:
    over = _Over(runs)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            jobs = queue()
            states = look_at(runs, jobs)
            live.update(render(states), refresh=True)
            if over(jobs):
                return states
            time.sleep(_PAUSE)


def _follow_lines(runs: Sequence[RunDir], console: Console) -> list[RunState]:
    over, told, answers = _Over(runs), dict[tuple[str, int], str](), True
    while True:
        jobs = queue()
        states = look_at(runs, jobs)
        if answers != (jobs is not None):
            answers = jobs is not None
            _tell(console, "Slurm answers again" if answers else "Slurm does not answer: waiting")
        for state in states if answers else ():
            for fold in state.folds:
                if told.get((state.name, fold.fold)) != fold.state:
                    told[state.name, fold.fold] = fold.state
                    where = f" on {fold.nodes}" if fold.nodes else ""
                    why = f": {fold.error or fold.why}" if fold.error or fold.why else ""
                    _tell(console, f"{state.name} fold {fold.fold} {fold.state}{where}{why}")
        if over(jobs):
            return states
        time.sleep(_PAUSE)


def _tell(console: Console, line: str) -> None:
    console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, soft_wrap=True)


class _Over:
    """Whether the jobs of some runs are over, asked with each answer of Slurm's."""

    def __init__(self, runs: Sequence[RunDir]) -> None:
        self.runs = runs
        self.seen = False
        self.without = 0  # answers in a row that had none of the jobs

    def __call__(self, jobs: Jobs | None) -> bool:
        if jobs is None:
            return False
        there = any(not all_jobs(run).isdisjoint(jobs) for run in self.runs)
        self.seen |= there
        self.without = 0 if there else self.without + 1
        return self.without >= (_ENOUGH if self.seen else _UNSEEN)
