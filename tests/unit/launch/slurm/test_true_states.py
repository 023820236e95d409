"""States that ``dfer status`` must not confuse: each was seen to be shown wrongly."""

from __future__ import annotations

import pytest

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.status import Attempt
from dfer_dist.tracking.metrics_log import MetricsLog
from launch.slurm.failures import Failure, record_failure
from launch.slurm.state import FoldState, get_state
from launch.slurm.status import get_run_state
from tests.helpers.slurm.fake_clients import fold_row, parse_rows
from tests.helpers.slurm.run_folders import HOUR_AGO, SOON, write_attempt, write_output


def state(run: RunDir, *rows: str) -> FoldState:
    """Return the state of fold 1 where the queue has these rows."""
    return get_state(run, 1, parse_rows(*rows))


def fail_start(run: RunDir, fold: int, *nodes: str, reason: str = "no launch on n2") -> None:
    run.fold(fold).root.mkdir(exist_ok=True)
    record_failure(run.fold(fold), "120_0", Failure(reason, True, list(nodes)))


def test_start_that_left_no_attempt_is_shown(submitted: RunDir) -> None:
    """It crashes again and again before rank 0 has recorded it."""
    fail_start(submitted, 1, "n2")
    write_output(submitted, 1, "srun: error: n2\nrequeued 120_0\n")
    job = f"120_0 COMPLETING n[1-2] 0:10 {HOUR_AGO} None"
    assert (state(submitted, job).state, state(submitted, job).why) == (
        "REQUEUED",
        "before: no launch on n2",
    )
    job = fold_row(1, "BeginTime")
    assert state(submitted, job).state == "REQUEUED"
    job = fold_row(1, started=SOON)
    assert state(submitted, job).why == "starting; before: no launch on n2"
    write_attempt(submitted.fold(1))
    job = fold_row(1)
    assert state(submitted, job).why == "resumed at step 5; before: no launch on n2"


def test_start_that_slurm_takes_back_is_not_the_end(submitted: RunDir) -> None:
    """Slurm could not start the batch script on a dead node and requeues the job."""
    queue = parse_rows(f"120_0 COMPLETING n[1-2] 9:59 {HOUR_AGO} None")
    assert get_state(submitted, 1, queue).state == "LEAVING"
    queue["120_0"] = queue["120_0"]._replace(time_used="0:00")
    assert get_state(submitted, 1, queue).state == "REQUEUED"


def test_node_at_fault_is_named(submitted: RunDir) -> None:
    fail_start(submitted, 1, "n2", reason="ImportError: x")
    assert state(submitted, fold_row(1, "BeginTime")).why.endswith("before: on n2: ImportError: x")


def test_running_fold_has_the_speed_of_its_own_steps(submitted: RunDir) -> None:
    fold = submitted.fold(1)
    write_attempt(fold, "PREEMPTED", "SIGTERM")
    MetricsLog(fold.metrics, fold.sent, None).log(10, 1, {"clips_per_second": 12.5})
    job = fold_row(1, started=SOON)
    assert (state(submitted, job).step, state(submitted, job).clips_per_second) == (10, None)


def test_fold_with_steps_is_not_starting(submitted: RunDir) -> None:
    """Its disk is full, so that rank 0 could not record that it has begun."""
    fold = submitted.fold(1)
    fold.root.mkdir()
    MetricsLog(fold.metrics, fold.sent, None).log(51, 1, {"clips_per_second": 12.5})
    job = fold_row(1)
    assert (state(submitted, job).state, state(submitted, job).why) == ("RUNNING", "")
    write_attempt(fold, begin=False)
    MetricsLog(fold.metrics, fold.sent, None).log(52, 1, {"loss": 1.0})
    assert state(submitted, job).why == ""


@pytest.mark.parametrize(
    ("output", "expected", "why"),
    [
        ("slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED ***\n", "LOST", "without a word"),
        ("submitit INFO (now) - Loading pickle: x\n", "LOST", "without a word"),
        ("fold 1 ended with status 75\nrequeued 120_0\n", "CANCELLED", "time is up, saved"),
    ],
)
def test_job_that_died_was_not_cancelled(
    submitted: RunDir, output: str, expected: str, why: str
) -> None:
    """As when the batch script was killed after its ranks had saved."""
    write_attempt(submitted.fold(1), "PREEMPTED", "time is up")
    write_output(submitted, 1, output)
    row = state(submitted)
    assert row.state == expected and why in row.why and "time is up, saved" in row.why


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("submitit INFO (now) - Loading pickle: x\nsrun: error: n2: task 0: Killed\n", "srun: "),
        ("Traceback (most recent call last):\n  x\nKeyError: 1\nwarning: y\n", "KeyError: 1"),
    ],
)
def test_reason_is_no_chatter(submitted: RunDir, output: str, error: str) -> None:
    write_output(submitted, 1, output)
    assert state(submitted).state == "FAILED"
    assert state(submitted).error.startswith(error)


def test_job_that_died_before_its_ranks_began_was_not_cancelled(submitted: RunDir) -> None:
    assert (state(submitted).state, state(submitted).why) == ("CANCELLED", "before it began")
    write_output(submitted, 1, "submitit INFO (now) - Loading pickle: x\n")
    assert (state(submitted).state, state(submitted).why) == (
        "LOST",
        "its job ended without a word",
    )


def test_nodes_that_are_excluded_are_named(submitted: RunDir) -> None:
    for fold in (1, 2):
        assert get_run_state(submitted, {}).bad_nodes == []
        fail_start(submitted, fold, "n2")
    assert get_run_state(submitted, {}).bad_nodes == ["n2"]


@pytest.mark.parametrize(
    ("device", "kind", "shown"),
    [
        ("AMD EPYC", "cpu", "CPU"),
        ("NVIDIA H200", "cuda", "H200"),
        ("AMD EPYC", None, ""),
    ],
)
def test_device_of_the_newest_attempt_is_shown(
    submitted: RunDir, device: str, kind: str | None, shown: str
) -> None:
    submitted.fold(1).root.mkdir()
    Attempt(submitted.fold(1), 2, True, device, kind)
    assert state(submitted).device == shown
