"""The trials of a search: several at a time, pruned by the scores of their epochs."""

from __future__ import annotations

import shutil
import textwrap
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import FoldResult
from dfer_dist.utils.errors import UserError
from launch.console import print_line
from launch.report import update_mlflow_runs
from launch.runs import open_run
from launch.slurm.state import DONE, FAILED
from launch.sweeps.local import is_reported
from launch.sweeps.machines import FOLD, ClusterMachine, LocalMachine
from launch.sweeps.search import Search

if TYPE_CHECKING:
    from optuna import Trial

_MAX_FAILURES = 3  # in a row
_REASON_WIDTH = 200  # characters of why a trial failed


class TrialLoop:
    """Trains the trials of a search until there are ``total``, ``parallel`` at a time."""

    def __init__(
        self, search: Search, machine: LocalMachine | ClusterMachine, total: int, parallel: int
    ) -> None:
        self.search, self.machine, self.parallel = search, machine, parallel
        known = search.trials
        # those of an earlier command first
        self._waiting = deque(t.number for t in known if not t.state.is_finished())
        self._waiting.extend(range(len(known), total))
        self._active: dict[int, tuple[Trial, RunDir]] = {}
        self._pruned: set[int] = set()  # of these
        self._failures = 0  # in a row
        self._is_stopped = False

    def run(self) -> bool:
        """Train the trials; return False if this command or a trial was stopped.

        Raises
        ------
        UserError
            If several trials in a row have failed.
        """
        while True:
            self._is_stopped |= bool(self.machine.signals.count)
            while self._can_start():
                self._start(self._waiting.popleft())
            if not self._active:
                break
            self.machine.poll()
            for trial, run in list(self._active.values()):
                self._follow(trial, run)
        if self._failures >= _MAX_FAILURES:
            raise UserError(
                f"{self._failures} trials in a row failed: see why above; fix the cause, or the "
                "space in a search with another --name"
            )
        return not self._is_stopped

    def _can_start(self) -> bool:
        is_full = len(self._active) >= self.parallel or not self._waiting
        return not (is_full or self._is_stopped or self._failures >= _MAX_FAILURES)

    def _start(self, number: int) -> None:
        search, trial = self.search, self.search.begin(number)
        member = search.member(trial)
        run = RunDir(search.folder.root.with_name(member.run))
        known = search.folder.member(run)
        if known and known.pruned:
            self.machine.stop(number, run)
            self._close_pruned(trial, run)
            return
        print_line(f"trial {number}: {' '.join(member.setting)}")
        # a command that was killed while it made the folder left a part of it
        if run.root.exists() and not run.run.exists():
            shutil.rmtree(run.root)
        request, settings = search.request, [*search.settings, *member.setting]
        which = request.runs, member.run, request.experiment, settings, request.allow_drift
        try:
            open_run(*which, str(FOLD), self.machine.ranks)
        except UserError as error:
            if run.run.exists():
                raise
            self._fail(trial, str(error))
            return
        search.folder.add(run, member)
        self._active[number] = trial, run
        self.machine.start(number, run)

    def _follow(self, trial: Trial, run: RunDir) -> None:
        """Report new scores of a trial, prune it, or close it."""
        search, number = self.search, trial.number
        end = self.machine.end(number)
        has_new = search.options.prune and search.report(trial, run.fold(FOLD))
        if end is None:
            if has_new and number not in self._pruned and trial.should_prune():
                self._pruned.add(number)
                # from here on it is pruned, whatever is killed
                search.folder.add(run, replace(search.member(trial), pruned=True))
                self.machine.stop(number, run)
            return
        del self._active[number]
        if number in self._pruned:
            self._close_pruned(trial, run)
        elif end.state == DONE:
            self._close_done(trial, run)
        elif end.state == FAILED:
            update_mlflow_runs(run, "FAILED")
            self._fail(trial, end.reason)
        else:
            self._is_stopped = True

    def _close_done(self, trial: Trial, run: RunDir) -> None:
        from dfer_dist.reporting.files import write_report

        if not is_reported(run, [FOLD]):
            write_report(run)
        update_mlflow_runs(run, "FINISHED")
        metric = self.search.options.metric
        self.search.study.tell(trial, getattr(FoldResult.read(run.fold(FOLD).result), metric))
        self._failures = 0
        best = self.search.study.best_trial
        print_line(f"best so far: trial {best.number}, {metric.upper()} {best.value:.2f}")

    def _close_pruned(self, trial: Trial, run: RunDir) -> None:
        from optuna.trial import TrialState

        update_mlflow_runs(run, "KILLED")
        self.search.study.tell(trial, state=TrialState.PRUNED)
        self._failures = 0
        self.machine.table.prune(trial.number)
        print_line(f"trial {trial.number}: pruned, its scores are below the median")

    def _fail(self, trial: Trial, reason: str) -> None:
        from optuna.trial import TrialState

        self.search.study.tell(trial, state=TrialState.FAIL)
        self._failures += 1
        first = textwrap.shorten(reason.partition("\n")[0], _REASON_WIDTH, placeholder=" …")
        print_line(f"trial {trial.number} failed: {first}", style="red")
