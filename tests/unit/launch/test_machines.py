"""What trains the trials of a search: shares of this machine, and what Slurm says of a job."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from launch.fold_table import FoldTable
from launch.processes import FoldJob, Interrupted
from launch.slurm.state import CANCELLED, DONE, FAILED, LOST, PENDING, RUNNING, STOPPED, FoldState
from launch.sweeps import machines
from launch.sweeps.machines import ClusterMachine, LocalMachine, TrialEnd

OMP, GPUS = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("ranks", "parallel", "gpus", "visible", "shares"),
    [
        (1, 2, 0, "", [None, None]),
        (2, 2, 4, "", ["0,1", "2,3"]),
        (2, 2, 4, "7,5,3,1", ["7,5", "3,1"]),
        (1, 3, 2, "", ["0", "1", "0"]),
        (2, 2, 1, "", ["0", "0"]),
    ],
)
def test_trials_share_the_machine(
    ranks: int,
    parallel: int,
    gpus: int,
    visible: str,
    shares: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machines, "count_gpus", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv(GPUS, visible)
    monkeypatch.delenv(OMP)
    machine = LocalMachine(ranks, parallel, True, FoldTable(1, 1))
    found = [machine._variables(slot) for slot in range(parallel)]
    machine.close()
    assert [own.get(GPUS) for own in found] == shares
    assert {own[OMP] for own in found} == {str(16 // (ranks * parallel))}


def test_number_of_threads_of_the_user_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OMP, "3")
    machine = LocalMachine(2, 2, False, FoldTable(1, 1))
    assert machine._variables(0) == {OMP: "3"}
    machine.close()


@pytest.mark.parametrize(
    ("outcome", "held", "end"),
    [
        (True, False, TrialEnd(DONE)),
        (False, False, TrialEnd(FAILED, "see ")),
        (Interrupted("saved"), False, TrialEnd(STOPPED)),
        (UserError("bad"), False, TrialEnd(FAILED, "bad")),
        (UserError("another command is working on it"), True, TrialEnd(STOPPED)),
    ],
)
def test_end_of_a_local_trial_says_whether_it_is_resumed(
    outcome: Any, held: bool, end: TrialEnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_fold(job: FoldJob, table: FoldTable) -> bool:
        assert (job.fold, job.row, job.num_ranks, job.signals.count) == (1, 7, 2, 0)
        if isinstance(outcome, Exception):
            raise outcome
        return bool(outcome)

    run = RunDir(tmp_path)
    run.fold(1).root.mkdir()
    monkeypatch.setattr(machines, "run_fold", run_fold)
    monkeypatch.setattr(machines, "is_held", lambda _: held)
    monkeypatch.setattr(machines, "opening_mlflow_runs", lambda _: nullcontext())
    machine = LocalMachine(2, 1, False, FoldTable(1, 1, "trial"))
    machine.start(7, run)
    found = None
    while found is None:
        found = machine.end(7)
    machine.close()
    assert found.state == end.state and found.reason.startswith(end.reason)


class Slurm:
    """What Slurm and the files of a run say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: RunDir) -> None:
        self.run, self.submitted, self.cancelled = run, 0, list[str]()
        self.state = FoldState(1, PENDING, job="5")
        self.queue: dict[str, object] | None = {"5": None}
        monkeypatch.setattr("launch.slurm.submit.submit_run", self.submit)
        monkeypatch.setattr(machines, "get_state", lambda *_: self.state)
        monkeypatch.setattr(machines, "query_squeue", lambda: self.queue)
        monkeypatch.setattr(machines, "all_jobs", lambda _: {"5"})
        monkeypatch.setattr(machines, "run_client", lambda *a, **_: self.cancelled.extend(a))
        monkeypatch.setattr(machines, "describe_result", lambda _: "UAR 1.00 WAR 1.00")
        monkeypatch.setattr(machines, "_CLUSTER_POLL", 0.0)

    def submit(self, run: RunDir, folds: list[int], target: object, has_summary: bool) -> None:
        assert (run, folds, has_summary) == (self.run, [1], False)
        self.submitted += 1

    def answers(self, machine: ClusterMachine, count: int) -> TrialEnd | None:
        """Return what becomes of the trial after so many answers."""
        for _ in range(count):
            machine.poll()
            if end := machine.end(0):
                return end
        return None


def test_trial_on_a_cluster_ends_as_its_job_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(monkeypatch, RunDir(tmp_path))
    target: Any = SimpleNamespace(cluster=SimpleNamespace(ranks=4))

    def begin() -> ClusterMachine:
        machine = ClusterMachine(target, FoldTable(1, 1, "trial"))
        machine.start(0, slurm.run)
        machine.close()
        return machine

    machine = begin()
    assert slurm.submitted == 1 and slurm.answers(machine, 20) is None
    slurm.state = FoldState(1, RUNNING, job="5", step=2, steps=9)
    assert slurm.answers(machine, 20) is None
    # its job writes the report
    slurm.state = FoldState(1, DONE, job="5")
    assert slurm.answers(machine, 20) is None
    slurm.queue = {}
    assert slurm.answers(machine, 1) == TrialEnd(DONE)
    for state, end in ((FAILED, FAILED), (CANCELLED, STOPPED), (LOST, STOPPED)):
        machine, slurm.state = begin(), FoldState(1, state, error="why")
        # a new job may take a moment to appear
        assert slurm.answers(machine, 4) is None
        assert slurm.answers(machine, 1) == TrialEnd(end, "why")
    machine, slurm.queue = begin(), None
    assert slurm.answers(machine, 20) is None, "Slurm does not answer"
    machine.stop(0, slurm.run)
    assert slurm.cancelled == ["scancel", "5"]
    machine.signals.count = 1
    assert machine.end(0) == TrialEnd(STOPPED)
