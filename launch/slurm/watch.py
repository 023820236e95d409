"""Follow runs on a cluster until they are over: ``dfer crossval --wait``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.live import Live

from dfer_dist.runs.layout import RunDir
from launch.console import console, print_line
from launch.fold_table import progress_text
from launch.progress import LineTimer
from launch.slurm.jobs import all_jobs, newest_jobs
from launch.slurm.squeue import Queue, query_squeue
from launch.slurm.state import DONE, RUNNING
from launch.slurm.status import RunState, get_run_state, render, widen

_ANSWERS = {True: "Slurm answers again", False: "Slurm does not answer: waiting"}
_PAUSE_SECONDS = 2.0
_ABSENT_IN_A_ROW = 2  # answers without any of the jobs after which they are over
_NEVER_SEEN_IN_A_ROW = 5  # the same for new jobs, which may take a moment to appear


def wait(runs: Sequence[RunDir]) -> int:
    """Show the runs until none of their jobs, the summaries' included, is in the queue.

    On a terminal this is a live table, elsewhere a line for each change of a fold, once a minute
    and at each epoch. If the controller does not answer, wait until it does. Ctrl-C leaves the jobs
    alone.

    Returns
    -------
    int
        0 if all submitted folds are done, 130 after Ctrl-C, otherwise 1.
    """
    widen()
    follow = _follow_table if console.is_terminal else _follow_lines
    try:
        states = follow(runs)
    except KeyboardInterrupt:
        folders = " ".join(str(run.root) for run in runs)
        print_line(f"the jobs continue: dfer status shows them, dfer cancel ends them ({folders})")
        return 130
    console.print(render(states))
    return int(not all(_is_done(state) for state in states))


def _is_done(state: RunState) -> bool:
    submitted = newest_jobs(state.run)
    return all(f.state == DONE for f in state.folds if f.fold in submitted or not submitted)


def _poll(runs: Sequence[RunDir]) -> Iterator[tuple[Queue | None, list[RunState]]]:
    """Yield one answer of ``squeue`` after another, with the runs' state, until the jobs are over.

    An answer of None does not count.
    """
    absent, limit = 0, _NEVER_SEEN_IN_A_ROW  # answers in a row that had none of the jobs
    while True:
        queue = query_squeue()
        yield queue, [get_run_state(run, queue) for run in runs]
        if queue is not None:
            absent += 1
        if queue and any(not all_jobs(run).isdisjoint(queue) for run in runs):
            absent, limit = 0, _ABSENT_IN_A_ROW
        if absent >= limit:
            return
        time.sleep(_PAUSE_SECONDS)


def _follow_table(runs: Sequence[RunDir]) -> list[RunState]:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for _, states in _poll(runs):
            live.update(render(states), refresh=True)
        return states


def _follow_lines(runs: Sequence[RunDir]) -> list[RunState]:
    printed: dict[tuple[str, int], str] = {}  # the state of each run's folds
    answers, timer = True, LineTimer()
    for queue, states in _poll(runs):
        if answers != (queue is not None):
            answers = queue is not None
            _print(_ANSWERS[answers])
        if answers:
            _print_changes(states, printed)
            _print_progress(states, timer)
    return states


def _print_changes(states: Sequence[RunState], printed: dict[tuple[str, int], str]) -> None:
    """Print the folds whose state differs from the one in ``printed``, and update that."""
    for state in states:
        for fold in state.folds:
            if printed.get((state.name, fold.fold)) == fold.state:
                continue
            printed[state.name, fold.fold] = fold.state
            line = f"{state.name} fold {fold.fold} {fold.state}"
            if fold.nodes:
                line += f" on {fold.nodes}"
            _print(": ".join(filter(None, [line, fold.error or fold.why])))


def _print_progress(states: Sequence[RunState], timer: LineTimer) -> None:
    """Print how far the running folds are, those of which a line is due."""
    for state in states:
        for fold in state.folds:
            key = (state.name, fold.fold)
            if fold.state == RUNNING and fold.step and timer.is_due(key, fold.epoch):
                epoch = f"epoch {fold.epoch} done" * bool(fold.epoch)
                _print(f"{state.name} fold {fold.fold}: {progress_text(fold, epoch)}")


def _print(line: str) -> None:
    print_line(f"{time.strftime('%H:%M:%S')} {line}")
