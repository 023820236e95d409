"""The state of folds, from run folders as training writes them and a queue in memory."""

from __future__ import annotations

import fcntl
import io
import json
import os
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.status import Phase
from dfer_dist.runs.sweep import SweepDir, SweepMember
from dfer_dist.tracking.metrics_log import MetricsLog
from dfer_dist.utils.files import read_json, write_json
from launch.locks import fold_lock
from launch.slurm.squeue import QueuedJob
from launch.slurm.state import FoldState, get_state
from launch.slurm.status import _format_age, get_run_state, render
from tests.helpers.slurm.fake_clients import fold_row, parse_rows
from tests.helpers.slurm.run_folders import (
    HOUR_AGO,
    SOON,
    fill_run,
    write_attempt,
    write_output,
    write_result,
)


class FakeQueue:
    """Slurm's queue; ``jobs`` is None where Slurm does not answer."""

    def __init__(self) -> None:
        self.jobs: dict[str, QueuedJob] | None = {}

    def set_rows(self, *rows: str) -> None:
        self.jobs = parse_rows(*rows)

    def set_job(self, fold: int, reason: str = "", started: str = HOUR_AGO) -> None:
        self.set_rows(fold_row(fold, reason, started))

    def state(self, run: RunDir, fold: int = 1) -> FoldState:
        return get_state(run, fold, self.jobs)


@pytest.fixture
def queue() -> FakeQueue:
    return FakeQueue()


def test_new_job_is_pending_and_a_vanished_one_cancelled(
    queue: FakeQueue, submitted: RunDir
) -> None:
    queue.set_job(1, "Resources")
    assert queue.state(submitted) == FoldState(
        1, "PENDING", "nodes are busy (Resources)", job="120_0"
    )
    assert (
        queue.state(submitted, 2).state == "CANCELLED"
    )  # submitted, and in the queue no more without a word
    queue.set_rows("120_0 PENDING - 10:00 N/A JobHeldUser")
    assert queue.state(submitted).why == "held: scontrol release (JobHeldUser)"


def test_running_fold_shows_its_newest_whole_lines(queue: FakeQueue, submitted: RunDir) -> None:
    queue.set_job(1)
    assert queue.state(submitted) == FoldState(
        1, "RUNNING", "starting", nodes="n[1-2]", left="9:59", job="120_0"
    )
    fold = submitted.fold(1)
    line = write_attempt(fold, begin=False)
    assert (queue.state(submitted).why, queue.state(submitted).attempts) == ("starting", 1)
    line.begin(0, 36, 0)
    metrics_log = MetricsLog(fold.metrics, fold.sent, None)
    metrics_log.log(9, 1, {"val_uar": 30.0, "val_war": 31.0})
    metrics_log.log(10, 1, {"loss": 1.0, "clips_per_second": 12.5, "mfu": 0.4})
    there = FoldState(
        1, "RUNNING", "", "", 1, 10, 36, 12.5, 30.0, 31.0, "val", "n[1-2]", "9:59", "120_0"
    )
    there = replace(there, phase="training", epoch=1, loss=1.0, mfu=0.4)
    assert replace(queue.state(submitted), seconds_silent=None) == there
    with fold.metrics.open("a") as f:
        f.write('{"step": 11, "val_war": 99')  # half a line
    assert replace(queue.state(submitted), seconds_silent=None) == there


def test_running_fold_shows_loss_time_left_and_the_age_of_its_last_line(
    queue: FakeQueue, submitted: RunDir
) -> None:
    queue.set_job(1)
    fold = submitted.fold(1)
    line = write_attempt(fold)
    assert queue.state(submitted).phase == "first batch"
    now = time.time() + 1
    lines = [{"step": k, "epoch": 0, "time": now + 3 * k, "loss": 9 / k} for k in (6, 7, 8)]
    fold.metrics.write_text("".join(json.dumps(values) + "\n" for values in lines))
    line.enter(Phase.TRAINING)
    row = queue.state(submitted)
    assert (row.phase, row.loss) == ("training", 9 / 8)
    assert row.seconds_left == pytest.approx(3 * (36 - 8))
    for file, age in ((fold.metrics, 100), (fold.log, 40)):
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    silent = queue.state(submitted).seconds_silent
    assert silent is not None and 40 <= silent < 60
    line.enter(Phase.TESTING)
    row = queue.state(submitted)
    assert (row.phase, row.step) == ("testing", 8)
    assert {row.loss, row.seconds_left, row.clips_per_second} == {None}
    # the lines are of an attempt before
    queue.set_job(1, started=SOON)
    row = queue.state(submitted)
    assert (row.why[:8], row.phase, row.step) == ("starting", "", 8)
    assert {row.loss, row.seconds_left, row.seconds_silent} == {None}


def test_ages_are_short() -> None:
    ages = [_format_age(age) for age in (None, 0.4, 99.4, 600, 3599, 3600, 400_000)]
    assert ages == ["", "0 s", "99 s", "10 min", "60 min", "1:00:00", "4 d 15 h"]


def test_requeued_fold_goes_through_its_states(queue: FakeQueue, submitted: RunDir) -> None:
    write_attempt(submitted.fold(1), "PREEMPTED", "SIGTERM")
    queue.set_job(1, "BeginTime")
    row = queue.state(submitted)
    assert (row.state, row.nodes, row.left) == ("REQUEUED", "", "")
    assert row.why == "held for a moment (BeginTime); before: SIGTERM, saved"
    queue.set_job(1)  # its ranks ended in this very job
    assert (queue.state(submitted).state, queue.state(submitted).why) == (
        "LEAVING",
        "SIGTERM, saved",
    )
    queue.set_job(1, started=SOON)  # in the one before
    assert (queue.state(submitted).state, queue.state(submitted).why) == (
        "RUNNING",
        "starting; before: SIGTERM, saved",
    )
    write_attempt(submitted.fold(1))
    queue.set_job(1)
    assert (queue.state(submitted).why, queue.state(submitted).attempts) == (
        "resumed at step 5; before: SIGTERM, saved",
        2,
    )
    queue.set_job(1, started=SOON)  # the second was killed, and a third begins
    assert queue.state(submitted).why == "starting; before: killed, or its machine was lost"
    queue.set_rows(f"120_0 COMPLETING n[1-2] 0:10 {HOUR_AGO} None")
    assert (queue.state(submitted).state, queue.state(submitted).why) == (
        "LEAVING",
        "Slurm ends it",
    )


def test_job_with_a_log_but_no_status_is_requeued(queue: FakeQueue, submitted: RunDir) -> None:
    submitted.fold(1).root.mkdir()
    queue.set_job(1, "BeginTime")
    assert queue.state(submitted).state == "PENDING"
    submitted.fold(1).log.write_text("killed\n")
    assert queue.state(submitted).state == "REQUEUED"


def test_failed_fold_shows_its_error_until_submitted_again(
    queue: FakeQueue, submitted: RunDir
) -> None:
    write_attempt(submitted.fold(1), "FAILED", "RuntimeError: boom [1]")
    assert (queue.state(submitted).state, queue.state(submitted).error) == (
        "FAILED",
        "RuntimeError: boom [1]",
    )
    queue.set_job(1)  # the batch script still decides whether it is requeued
    assert queue.state(submitted).state == "LEAVING"
    write_output(
        submitted, 1, "requeued 120_0\nfold 1 failed (status 1): RuntimeError: the cause\n"
    )
    assert (queue.state(submitted).state, queue.state(submitted).error) == (
        "FAILED",
        "RuntimeError: the cause",
    )
    queue.set_rows()
    assert queue.state(submitted).error == "RuntimeError: the cause"
    queue.set_job(1, "Priority")  # it was submitted again
    assert (queue.state(submitted).state, queue.state(submitted).error) == ("REQUEUED", "")


def test_failure_without_status_shows_the_last_output(queue: FakeQueue, submitted: RunDir) -> None:
    fold = submitted.fold(1)
    fold.root.mkdir()
    fold.log.write_text("Traceback (most recent call last):\n  …\nImportError: no torch\n")
    assert (queue.state(submitted).state, queue.state(submitted).error) == (
        "FAILED",
        "ImportError: no torch",
    )
    fold.log.write_text("")
    write_output(
        submitted,
        1,
        "starting\n/bin/python: No such file\n"
        "srun: error: n1: task 0: Exited with exit code 127\n\n",
    )
    assert (queue.state(submitted).state, queue.state(submitted).error) == (
        "FAILED",
        "/bin/python: No such file",
    )
    text = (
        "ImportError: typer\nsrun: error: n1: task 0\nfold 1 failed (status 1): it wrote nothing\n"
    )
    write_output(submitted, 1, text)
    assert queue.state(submitted).error == "ImportError: typer"


def test_failure_after_requeue_shows_the_newest_error(queue: FakeQueue, submitted: RunDir) -> None:
    write_attempt(submitted.fold(1), "PREEMPTED", "SIGTERM")
    write_output(
        submitted,
        1,
        "fold 1 left with status 75\nrequeued 120_0\nfold 1 failed (status 2): no weights\n",
    )
    assert (queue.state(submitted).state, queue.state(submitted).error) == ("FAILED", "no weights")
    write_output(
        submitted,
        1,
        "requeued 120_0\nerror: 120_0 was started again 30 times and ended with 75: not again\n",
    )
    assert (
        queue.state(submitted).error
        == "120_0 was started again 30 times and ended with 75: not again"
    )


def test_cancelled_and_lost_folds_are_distinguished(queue: FakeQueue, submitted: RunDir) -> None:
    write_attempt(submitted.fold(1))
    assert (queue.state(submitted).state, queue.state(submitted).why) == (
        "LOST",
        "it ended without recording why",
    )
    assert queue.state(submitted).nodes == "n[3-4]"
    head = "slurmstepd-n1: error: *** JOB 122 ON n1 CANCELLED AT 2026-11-24T15:26:29"
    write_output(
        submitted,
        1,
        "slurmstepd-n1: error: *** STEP 122.0 ON n1 CANCELLED AT 2026-11-24T15:26:29 ***\n"
        f"{head} ***\nfold 1 ended\n",
    )
    assert queue.state(submitted).state == "CANCELLED"
    write_output(submitted, 1, f"{head} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***\n")
    assert queue.state(submitted).state == "LOST"
    assert (
        queue.state(submitted).why
        == "ended by Slurm due to node failure, see slurmctld log for details"
    )
    write_output(
        submitted, 1, f"{head} DUE TO JOB REQUEUE ***\n"
    )  # and then cancelled as it waited
    assert queue.state(submitted).state == "CANCELLED"
    write_attempt(submitted.fold(2), "PREEMPTED", "time is up")
    assert (queue.state(submitted, 2).state, queue.state(submitted, 2).why) == (
        "CANCELLED",
        "time is up, saved",
    )


def test_run_on_this_machine_is_judged_by_its_lock(queue: FakeQueue, run: RunDir) -> None:
    assert queue.state(run) == FoldState(1, "NOT STARTED")
    fold = run.fold(1)
    with fold_lock(fold):
        assert (queue.state(run).state, queue.state(run).why) == ("RUNNING", "starting")
        line = write_attempt(fold, job=None)
        assert (
            queue.state(run).state,
            queue.state(run).why,
            queue.state(run).step,
            queue.state(run).steps,
        ) == (
            "RUNNING",
            "",
            5,
            36,
        )
        (fold.root / ".lock").write_text(
            f"{os.uname().nodename} {2**22 + 1}"
        )  # above the highest process id
        assert (queue.state(run).state, queue.state(run).why) == (
            "LEAVING",
            "its command has ended, its ranks save and exit",
        )
    assert (queue.state(run).state, queue.state(run).why) == (
        "LOST",
        "it ended without recording why",
    )
    line.end("PREEMPTED", "SIGTERM")
    assert (queue.state(run).state, queue.state(run).why) == ("STOPPED", "SIGTERM, saved")
    SweepDir.of(run.root.parent, "s").add(run, SweepMember(run.root.name, pruned=True))
    assert queue.state(run).why == "pruned by its search, for low scores"


def test_checking_the_lock_keeps_no_command_out(queue: FakeQueue, run: RunDir) -> None:
    fold = run.fold(1)
    fold.root.mkdir()
    with (fold.root / ".lock").open("w") as f:
        f.write("elsewhere 17")
        f.flush()
        fcntl.flock(f, fcntl.LOCK_SH)  # as is_held does
        threading.Timer(0.1, lambda: fcntl.flock(f, fcntl.LOCK_UN)).start()
        with fold_lock(fold):
            assert queue.state(run).state == "RUNNING"


def test_done_needs_a_result(queue: FakeQueue, submitted: RunDir) -> None:
    fold = submitted.fold(1)
    write_attempt(fold, "DONE", "all steps done")
    assert queue.state(submitted).state == "CANCELLED"  # DONE without a result is no such thing
    write_result(fold, 50.0, 60.0)
    queue.set_job(1)  # it still writes the summary
    row = queue.state(submitted)
    assert (row.state, row.uar, row.war, row.scored, row.left) == ("DONE", 50.0, 60.0, "result", "")


def test_array_tasks_of_the_plain_script_are_found(queue: FakeQueue, run: RunDir) -> None:
    run.array.write_text("77")
    queue.set_rows(
        f"77_1 RUNNING n1 1:00 {HOUR_AGO} None",
        "77_[3] PENDING - 1:00 N/A Priority",
        "77_2 PENDING - 1:00 N/A JobArrayTaskLimit",
    )
    assert (queue.state(run, 1).state, queue.state(run, 1).nodes) == ("RUNNING", "n1")
    assert (queue.state(run, 2).state, queue.state(run, 2).why) == (
        "PENDING",
        "enough folds run (JobArrayTaskLimit)",
    )
    assert queue.state(run, 3).state == "NOT STARTED"


def test_newest_submission_counts(queue: FakeQueue, submitted: RunDir) -> None:
    first = read_json(submitted.jobs)["submissions"][0]
    write_json(
        submitted.jobs,
        {
            "submissions": [
                first,
                {**first, "folds": {"2": "130"}, "summary": "131", "folder": "slurm/2"},
            ]
        },
    )
    queue.set_rows(
        "130 PENDING - 1:00 N/A Resources",
        "120_1 PENDING - 1:00 N/A Priority",
        f"120_0 RUNNING n1 1:00 {HOUR_AGO} None",
        "131 PENDING - 1:00 N/A Dependency",
    )
    assert [queue.state(submitted, k).job for k in (1, 2, 3)] == ["120_0", "130", ""]
    assert (
        get_run_state(submitted, queue.jobs).summary == "job 131 waits for other jobs (Dependency)"
    )


def test_without_an_answer_the_files_decide(queue: FakeQueue, submitted: RunDir) -> None:
    write_attempt(submitted.fold(1))
    write_attempt(submitted.fold(2), "PREEMPTED", "SIGUSR2")
    queue.jobs = None
    assert [queue.state(submitted, k).state for k in (1, 2, 3)] == [
        "RUNNING",
        "REQUEUED",
        "PENDING",
    ]
    assert get_run_state(submitted, None).unsure
    write_output(submitted, 3, "error: no weights\n")
    assert (queue.state(submitted, 3).state, queue.state(submitted, 3).error) == (
        "FAILED",
        "no weights",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"version": 1, "state": "RUNNING", "attempts": [3], "steps": "x"}',
        '{"version": 2}',
        "\x00",
    ],
)
def test_damaged_files_are_reported(queue: FakeQueue, submitted: RunDir, text: str) -> None:
    fold = submitted.fold(1)
    fold.root.mkdir()
    for path in (fold.status, fold.result, fold.metrics):
        path.write_text(text)
    queue.set_job(1)
    assert queue.state(submitted).state == "RUNNING"
    queue.set_rows()
    state = queue.state(submitted)
    assert (state.state, state.why) == ("LOST", "status.json cannot be read")
    submitted.jobs.write_text(text)
    assert get_run_state(submitted, queue.jobs)


def test_only_the_tail_of_metrics_is_read(queue: FakeQueue, run: RunDir) -> None:
    fold = run.fold(1)
    fold.root.mkdir()
    line = json.dumps(
        {"step": 1, "epoch": 0, "time": 1.5, "loss": 1.0, "clips_per_second": 3.0, "pad": "x" * 200}
    )
    with fold.metrics.open("w") as f:
        f.write(
            json.dumps({"step": 0, "val_uar": 9.0, "val_war": 9.0}) + "\n" + f"{line}\n" * 100_000
        )
        f.write(json.dumps({"step": 100_001, "test_uar": 1.0, "test_war": 2.0}) + "\n")
    row = queue.state(run)  # the first line is out of its sight
    assert (row.step, row.uar, row.war, row.scored) == (100_001, 1.0, 2.0, "test")


def test_table_fits_a_terminal_of_100_columns(queue: FakeQueue, submitted: RunDir) -> None:
    fill_run(submitted)
    write_attempt(submitted.fold(2))
    queue.set_rows("120_1 PENDING - 5:00 N/A launch failed requeued held")
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=True, highlight=False, color_system=None).print(
        render([get_run_state(submitted, queue.jobs)])
    )
    assert max(map(len, out.getvalue().splitlines())) <= 100
    assert "    2  REQUEUED  12 of 36  41.00  42.00  test      2" in out.getvalue()
    assert (
        "fold 2: could not be started, held: scontrol release (launch failed requeued held)"
        in out.getvalue()
    )
