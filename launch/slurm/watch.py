"""Follow runs on a cluster until they are over: ``dfer crossval --wait``."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from dfer_dist.runs.layout import RunDir
from launch.slurm.jobs import all_jobs, submissions
from launch.slurm.squeue import Queue, query_squeue
from launch.slurm.state import DONE
from launch.slurm.status import RunState, get_run_states, render, widen

_PAUSE_SECONDS = 2.0
_ABSENT_IN_A_ROW = 2  # answers without any of the jobs after which they are over
_NEVER_SEEN_IN_A_ROW = 5  # the same for new jobs, which may take a moment to appear


def wait(runs: Sequence[RunDir], console: Console) -> int:
    """Show the runs until none of their jobs, the summaries' included, is in the queue.

    On a terminal this is a live table, elsewhere a line for each change of a fold. If the
    controller does not answer, wait until it does. Ctrl-C leaves the jobs alone.

    Returns
    -------
    int
        0 if all submitted folds are done, 130 after Ctrl-C, otherwise 1.
    """
    widen(console)
    follow = _follow_table if console.is_terminal else _follow_lines
    try:
        states = follow(runs, console)
    except KeyboardInterrupt:
        folders = " ".join(str(run.root) for run in runs)
        console.print(
            f"the jobs continue: dfer status shows them, dfer cancel ends them ({folders})",
            markup=False,
            soft_wrap=True,
        )
        return 130
    console.print(render(states))
    return 0 if all(_is_done(state) for state in states) else 1


def _is_done(state: RunState) -> bool:
    submitted = {fold for entry in submissions(state.run) for fold in entry.folds}
    return all(f.state == DONE for f in state.folds if f.fold in submitted or not submitted)


def _follow_table(runs: Sequence[RunDir], console: Console) -> list[RunState]:
    is_over = _IsOver(runs)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            queue = query_squeue()
            states = get_run_states(runs, queue)
            live.update(render(states), refresh=True)
            if is_over(queue):
                return states
            time.sleep(_PAUSE_SECONDS)


def _follow_lines(runs: Sequence[RunDir], console: Console) -> list[RunState]:
    is_over = _IsOver(runs)
    printed: dict[tuple[str, int], str] = {}  # the state of each run's folds
    answers = True
    while True:
        queue = query_squeue()
        states = get_run_states(runs, queue)
        if answers != (queue is not None):
            answers = queue is not None
            _print(console, "Slurm answers again" if answers else "Slurm does not answer: waiting")
        if answers:
            _print_changes(states, printed, console)
        if is_over(queue):
            return states
        time.sleep(_PAUSE_SECONDS)


def _print_changes(
    states: Sequence[RunState], printed: dict[tuple[str, int], str], console: Console
) -> None:
    """Print the folds whose state differs from the one in ``printed``, and update that."""
    for state in states:
        for fold in state.folds:
            if printed.get((state.name, fold.fold)) == fold.state:
                continue
            printed[state.name, fold.fold] = fold.state
            nodes = f" on {fold.nodes}" if fold.nodes else ""
            detail = fold.error or fold.why
            why = f": {detail}" if detail else ""
            _print(console, f"{state.name} fold {fold.fold} {fold.state}{nodes}{why}")


def _print(console: Console, line: str) -> None:
    console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, soft_wrap=True)


class _IsOver:
    """Whether the jobs of some runs are over, judged by one answer of ``squeue`` after another."""

    def __init__(self, runs: Sequence[RunDir]) -> None:
        self.runs = runs
        self.seen = False
        self.absent = 0  # answers in a row that had none of the jobs

    def __call__(self, queue: Queue | None) -> bool:
        if queue is None:
            return False
        present = any(not all_jobs(run).isdisjoint(queue) for run in self.runs)
        self.seen |= present
        self.absent = 0 if present else self.absent + 1
        return self.absent >= (_ABSENT_IN_A_ROW if self.seen else _NEVER_SEEN_IN_A_ROW)
