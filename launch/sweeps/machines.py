"""What trains the trials of a search: this machine, or a Slurm cluster."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from launch.console import print_line
from launch.fold_table import FoldTable
from launch.local import count_gpus, describe_result, run_fold
from launch.locks import is_held
from launch.processes import FoldJob, Interrupted, SignalCounter
from launch.progress import FoldProgress, full_disk, read_status
from launch.report import opening_mlflow_runs
from launch.slurm.clients import run_client
from launch.slurm.jobs import all_jobs
from launch.slurm.squeue import Queue, query_squeue
from launch.slurm.state import DONE, FAILED, LIVE, STOPPED, get_state

if TYPE_CHECKING:
    from launch.slurm.batch import ClusterTarget

FOLD = 1  # of the validation part, and the only one
_POLL = 0.5  # seconds
_CLUSTER_POLL = 5.0
_MAX_ABSENT = 5  # answers of Slurm without a job, which may take a moment to appear


class TrialEnd(NamedTuple):
    """How a trial ended: DONE, FAILED, or STOPPED, which the same command resumes."""

    state: str
    reason: str = ""


@dataclass
class _LocalTrial:
    """A trial on this machine: its place among those at the same time, and its signals."""

    slot: int
    command: SignalCounter
    stops: int = 0

    @property
    def count(self) -> int:
        return self.command.count + self.stops


class LocalMachine:
    """Trains trials on this machine, each in a thread that waits for its ranks.

    Parameters
    ----------
    ranks, parallel : int
        Of a trial, and trials at the same time.
    uses_gpus : bool
    table : FoldTable
    """

    def __init__(self, ranks: int, parallel: int, uses_gpus: bool, table: FoldTable) -> None:
        self.ranks, self.parallel, self.table = ranks, parallel, table
        self.signals = SignalCounter()
        self._num_gpus = uses_gpus and count_gpus()
        self._threads = ThreadPoolExecutor(parallel)
        self._trials: dict[int, tuple[_LocalTrial, Future[TrialEnd]]] = {}

    def start(self, number: int, run: RunDir) -> None:
        """Train a trial, or resume it."""
        slot = min({*range(self.parallel)} - {own.slot for own, _ in self._trials.values()})
        own = _LocalTrial(slot, self.signals)
        job = FoldJob(run, FOLD, self.ranks, None, own, number, self._variables(slot))
        self._trials[number] = own, self._threads.submit(_train, job, self.table)

    def _variables(self, slot: int) -> dict[str, str]:
        """Return variables of the ranks of a trial: its share of the processors and the GPUs."""
        share = len(os.sched_getaffinity(0)) // (self.ranks * self.parallel)
        variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, share)))}
        if self._num_gpus:
            every = ",".join(map(str, range(self._num_gpus)))
            names = (os.environ.get("CUDA_VISIBLE_DEVICES") or every).split(",")
            first = slot * self.ranks
            own = [names[i % self._num_gpus] for i in range(first, first + self.ranks)]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(own))
        return variables

    def stop(self, number: int, run: RunDir) -> None:
        """Let a trial save and end, if it is trained."""
        if number in self._trials:
            self._trials[number][0].stops += 1

    def poll(self) -> None:
        """Wait a moment."""
        time.sleep(_POLL)

    def end(self, number: int) -> TrialEnd | None:
        """Return how a trial ended; None while it is trained."""
        _, thread = self._trials[number]
        if not thread.done():
            return None
        del self._trials[number]
        return thread.result()

    def close(self) -> None:
        """Let all trials that are still trained save and end."""
        for own, _ in self._trials.values():
            own.stops += 1
        self._threads.shutdown()
        self.signals.restore()


def _train(job: FoldJob, table: FoldTable) -> TrialEnd:
    try:
        with opening_mlflow_runs(job.run):
            if run_fold(job, table):
                return TrialEnd(DONE)
        last = read_status(job.folder).last
        reason = (last and last.why) or f"see {job.folder.log}"
    except Interrupted:
        return TrialEnd(STOPPED)
    except UserError as error:
        reason = str(error)
    # no fault of its settings
    if is_held(job.folder) or full_disk(job.folder):
        print_line(f"trial {job.row}: {reason}", style="red")
        return TrialEnd(STOPPED)
    return TrialEnd(FAILED, reason)


class ClusterMachine:
    """Submits each trial as a job, and follows it by its files and Slurm's queue."""

    def __init__(self, target: ClusterTarget, table: FoldTable) -> None:
        self.target, self.table, self.ranks = target, table, target.cluster.ranks
        self.signals = SignalCounter()
        self._runs: dict[int, RunDir] = {}
        self._absent: dict[int, int] = {}  # answers in a row without the job of a trial
        self._queue: Queue | None = None

    def start(self, number: int, run: RunDir) -> None:
        """Submit a trial, unless it is in the queue or done."""
        from launch.slurm.submit import submit_run

        self.table.start(number)
        self._runs[number], self._absent[number] = run, 0
        submit_run(run, [FOLD], self.target, has_summary=False)

    def stop(self, number: int, run: RunDir) -> None:
        """Cancel the job of a trial, if it has one; its ranks save first."""
        if jobs := all_jobs(run):
            run_client("scancel", *jobs, timeout=None)

    def poll(self) -> None:
        """Wait a moment, and ask Slurm for its queue."""
        deadline = time.monotonic() + _CLUSTER_POLL
        while time.monotonic() < deadline and not self.signals.count:
            time.sleep(_POLL)
        self._queue = query_squeue()

    def end(self, number: int) -> TrialEnd | None:
        """Return how a trial ended; None while its job waits or runs."""
        if self.signals.count:
            return TrialEnd(STOPPED)
        if self._queue is None:
            return None
        run = self._runs[number]
        own = get_state(run, FOLD, self._queue)
        # its job writes the report
        if own.state == DONE and own.job not in self._queue:
            self.table.finish(number, describe_result(run.fold(FOLD)))
            return TrialEnd(DONE)
        phase = own.phase or own.state.lower()
        progress = FoldProgress(phase, own.step, own.steps, own.epoch, loss=own.loss)
        self.table.update(number, progress)
        self._absent[number] += 1
        if own.state in {DONE, *LIVE}:
            self._absent[number] = 0
        if self._absent[number] < _MAX_ABSENT:
            return None
        return TrialEnd(FAILED if own.state == FAILED else STOPPED, own.error or own.why)

    def close(self) -> None:
        """Leave the jobs in the queue."""
        self.signals.restore()
