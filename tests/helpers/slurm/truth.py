"""Hold ``dfer status`` to what Slurm and the files of a fold say, again and again."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from launch.progress import is_done
from launch.slurm.state import (
    CANCELLED,
    DONE,
    FAILED,
    LEAVING,
    LOST,
    PENDING,
    REQUEUED,
    RUNNING,
    FoldState,
)
from launch.slurm.status import get_run_state, query_squeue_for
from tests.helpers.slurm.submitted import Submitted
from tests.helpers.training.trials import FOLD

PAUSE = 0.5  # seconds between polls
FINAL = {DONE, FAILED, LOST, CANCELLED}
# what may be said of a fold whose job is in a state of Slurm
ALLOWED = {
    "PENDING": {PENDING, REQUEUED},
    "RUNNING": {RUNNING, LEAVING, FAILED, DONE},
    "SUSPENDED": {RUNNING},
    "COMPLETING": {LEAVING, REQUEUED, CANCELLED, FAILED, LOST, DONE},
    "COMPLETED": {DONE},
    "CANCELLED": {CANCELLED},
    "FAILED": {FAILED, LOST},
}


class Facts(NamedTuple):
    """What is true of the fold."""

    id: str  # of its newest job
    job: str  # the job's state; empty if Slurm does not answer
    restarts: int
    has_begun: bool  # its batch script has
    is_done: bool
    step: int  # the last one that was logged


@dataclass(frozen=True)
class Poll:
    """A row of ``dfer status``, and what was true before and after it was made."""

    before: Facts
    shown: FoldState
    after: Facts

    def falsehood(self) -> str:
        """Return what is false in the row; empty if nothing is."""
        before, shown, after = self.before, self.shown, self.after
        if before.is_done and shown.state != DONE:
            return "it is done"
        if shown.state == DONE and not after.is_done:
            return "it is not done"
        if before.job != after.job or before.restarts != after.restarts or not before.job:
            return ""
        if not after.is_done and shown.state not in ALLOWED.get(before.job, {shown.state}):
            return f"its job is {before.job}"
        if shown.state == PENDING and before.has_begun:
            return f"its job has begun, and was restarted {before.restarts} times"
        if before.step <= after.step and not before.step <= (shown.step or 0) <= after.step:
            return f"steps {before.step} to {after.step} were logged"
        if shown.device not in ("CPU", ""):
            return "it trains on the CPU"
        return ""


@dataclass
class Watcher:
    """Asks for the state of a fold until it is stopped."""

    trial: Submitted
    polls: list[Poll] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Poll in a thread of its own; raise AssertionError if a row was false."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
        if found := self.falsehoods():
            raise AssertionError("\n".join(found))

    def _watch(self) -> None:
        while not self._stop.wait(PAUSE):
            if self.trial.run.jobs.exists():
                self.polls.append(self.poll())

    def poll(self) -> Poll:
        """Return what ``dfer status`` says now."""
        run, before = self.trial.run, self.facts()
        shown = get_run_state(run, query_squeue_for(run)).folds[FOLD - 1]
        return Poll(before, shown, self.facts())

    def facts(self) -> Facts:
        """Return what is true now."""
        try:
            job = self.trial.state()
        except subprocess.SubprocessError:
            job = {}
        steps = []
        if self.trial.fold.metrics.exists():
            steps = re.findall(r'"step": (\d+),.*\n', self.trial.fold.metrics.read_text())
        state, restarts = job.get("JobState", ""), int(job.get("Restarts", 0))
        step = int(steps[-1]) if steps else 0
        begun, done = bool(self.trial.said()), is_done(self.trial.fold)
        return Facts(self.trial.job(), state, restarts, begun, done, step)

    def falsehoods(self) -> list[str]:
        """Return what was false in single rows, and what a later row took back."""
        found = [f"{why}: {poll}" for poll in self.polls if (why := poll.falsehood())]
        for one, two in pairwise(self.polls):
            states = (one.shown.state, two.shown.state)
            ids = {facts.id for facts in (one.before, one.after, two.before, two.after)}
            if len(ids) > 1 or states[0] == states[1]:
                continue
            is_one_start = one.before.restarts == two.after.restarts and two.after.job
            if states[0] in FINAL or (states == (LEAVING, RUNNING) and is_one_start):
                found.append(f"{states[0]}, then {states[1]}: {one} {two}")
        return found
