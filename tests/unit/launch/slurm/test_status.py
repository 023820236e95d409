"""``dfer status``, ``logs``, ``cancel`` and ``--wait``, on run folders as training writes them and a ``squeue`` that says what it is told."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.status import Attempt
from dfer_dist.tracking.metrics_log import MetricsLog
from dfer_dist.utils.files import read_json, write_json
from launch.locks import fold_lock
from launch.slurm import watch
from launch.slurm.squeue import Queued, queue, reason_text
from launch.slurm.state import FoldState, get_state
from launch.slurm.status import look_at
from tests.helpers.cli import DFER, Done, check_refusal

HOUR_AGO = (datetime.now() - timedelta(hours=1)).isoformat(timespec="seconds")
SOON = (datetime.now() + timedelta(hours=1)).isoformat(timespec="seconds")


@dataclass
class Slurm:
    """What ``squeue`` and ``scancel`` on PATH do."""

    root: Path

    def say(self, *rows: str, status: int = 0) -> None:
        """Let squeue print ``ID STATE NODES LEFT STARTED REASON`` rows and end with ``status``."""
        new = self.root / "new"
        new.write_text(
            "\n".join([str(status), *(row.replace(" ", "|", 5).replace("-|", "|") for row in rows)])
            + "\n"
        )
        new.replace(self.root / "says")

    def job(self, k: int, reason: str = "", started: str = HOUR_AGO) -> None:
        self.say(
            f"120_{k - 1} PENDING - 10:00 N/A {reason}"
            if reason
            else f"120_{k - 1} RUNNING n[1-2] 9:59 {started} None"
        )

    @property
    def cancelled(self) -> list[str]:
        return (
            (self.root / "cancelled").read_text().split()
            if (self.root / "cancelled").exists()
            else []
        )


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    root = tmp_path / "bin"
    root.mkdir()
    scripts = {
        "squeue": f'echo "$@" > {root}/asked\nexec < {root}/says\nread status\ncat\nexit $status\n',
        "scancel": f'echo "$@" >> {root}/cancelled\n',
    }
    for name, text in scripts.items():
        (root / name).write_text(f"#!/bin/sh\n{text}")
        (root / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DFER_DEBUG", "")
    slurm = Slurm(root)
    slurm.say()
    return slurm


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of three folds, on this machine so far."""
    run = RunDir(tmp_path / "runs" / "demo")
    write_json(run.run, {"dataset": "demo", "folds": [1, 2, 3], "tracking": None})
    return run


@pytest.fixture
def submitted(run: RunDir) -> RunDir:
    """The same as jobs 120_0 to 120_2, with summary 121."""
    folds = {str(k): f"120_{k - 1}" for k in (1, 2, 3)}
    first = {
        "time": HOUR_AGO,
        "cluster": "testbed",
        "settings": {},
        "folds": folds,
        "summary": "121",
        "folder": "slurm/1",
    }
    write_json(run.jobs, {"submissions": [first]})
    return run


def output(run: RunDir, fold: int, text: str) -> Path:
    path = run.root / "slurm" / "1" / f"120_{fold - 1}_0_log.out"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def attempt(fold: FoldDir, *end: str, job: str | None = "120", begin: bool = True) -> Attempt:
    """A job's line in status.json, as rank 0 writes it: begun after 5 steps of 36, and ended as told."""
    slurm = {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "n[3-4]"} if job else {}
    fold.root.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as m:
        for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST"):
            m.delenv(name, raising=False)
        for name, value in slurm.items():
            m.setenv(name, value)
        line = Attempt(fold, 2, True)
    if begin:
        line.begin(5, 36, 0)
    if end:
        line.end(*end)
    return line


def result(fold: FoldDir, uar: float, war: float) -> None:
    write_json(fold.result, {"uar": uar, "war": war, "selection": "last"})


def seen(run: RunDir, fold: int = 1) -> FoldState:
    return get_state(run, fold, queue())


def dfer(*words: object, width: str = "100") -> Done:
    env = os.environ | {"COLUMNS": width}
    return subprocess.run(
        [str(DFER), *map(str, words)], env=env, capture_output=True, text=True, timeout=60
    )


def test_queue_asks_once_and_minds_no_settings_of_a_person(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    (slurm.root / "squeue").write_text(
        f'#!/bin/sh\necho "$@" > {slurm.root}/asked\necho "7|RUNNING|n[1-2]|1:00|$SQUEUE_STATES|a|b"\n'
    )
    assert queue() == {"7": Queued("7", "RUNNING", "n[1-2]", "1:00", "a|b", "")}
    assert (slurm.root / "asked").read_text() == "--me -h -r -o %i|%T|%N|%L|%S|%r\n"


def test_queue_without_slurm_or_an_answer_is_none(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.say("half a line", "")
    assert queue() == {}
    slurm.say(status=1)
    assert queue() is None
    monkeypatch.setattr("launch.slurm.squeue._PATIENCE", 0.3)
    (slurm.root / "squeue").write_text("#!/bin/sh\nexec sleep 20\n")
    begin = time.monotonic()
    assert queue() is None and time.monotonic() - begin < 5
    (slurm.root / "squeue").unlink()
    monkeypatch.setenv("PATH", str(slurm.root))
    assert queue() is None


def test_reasons_are_words_with_slurms_own_behind() -> None:
    assert reason_text("Resources") == "nodes are busy (Resources)"
    assert (
        reason_text("ReqNodeNotAvail, UnavailableNodes:n3")
        == "nodes are down or reserved (ReqNodeNotAvail)"
    )
    assert (
        reason_text("QOSMaxJobsPerUserLimit")
        == "a limit of the account or QOS (QOSMaxJobsPerUserLimit)"
    )
    assert reason_text("SomethingNew") == "SomethingNew"


def test_waiting_for_the_first_time(slurm: Slurm, submitted: RunDir) -> None:
    slurm.job(1, "Resources")
    assert seen(submitted) == FoldState(1, "PENDING", "nodes are busy (Resources)", job="120_0")
    assert (
        seen(submitted, 2).state == "CANCELLED"
    )  # submitted, and in the queue no more without a word
    slurm.say("120_0 PENDING - 10:00 N/A JobHeldUser")
    assert seen(submitted).why == "held: scontrol release (JobHeldUser)"


def test_running(slurm: Slurm, submitted: RunDir) -> None:
    slurm.job(1)
    assert seen(submitted) == FoldState(
        1, "RUNNING", "starting", nodes="n[1-2]", left="9:59", job="120_0"
    )
    fold = submitted.fold(1)
    line = attempt(fold, begin=False)
    assert (seen(submitted).why, seen(submitted).attempts) == ("starting", 1)
    line.begin(0, 36, 0)
    metrics_log = MetricsLog(fold.metrics, fold.sent, None)
    metrics_log.log(9, 1, {"val_uar": 30.0, "val_war": 31.0})
    metrics_log.log(10, 1, {"loss": 1.0, "clips_per_second": 12.5})
    there = FoldState(
        1, "RUNNING", "", "", 1, 10, 36, 12.5, 30.0, 31.0, "val", "n[1-2]", "9:59", "120_0"
    )
    assert seen(submitted) == there
    with fold.metrics.open("a") as f:
        f.write('{"step": 11, "val_war": 99')  # half a line
    assert seen(submitted) == there


def test_requeued_and_started_again(slurm: Slurm, submitted: RunDir) -> None:
    attempt(submitted.fold(1), "PREEMPTED", "SIGTERM")
    slurm.job(1, "BeginTime")
    row = seen(submitted)
    assert (row.state, row.nodes, row.left) == ("REQUEUED", "", "")
    assert row.why == "held for a moment (BeginTime); before: SIGTERM, saved"
    slurm.job(1)  # its ranks ended in this very job
    assert (seen(submitted).state, seen(submitted).why) == ("LEAVING", "SIGTERM, saved")
    slurm.job(1, started=SOON)  # in the one before
    assert (seen(submitted).state, seen(submitted).why) == (
        "RUNNING",
        "starting; before: SIGTERM, saved",
    )
    attempt(submitted.fold(1))
    slurm.job(1)
    assert (seen(submitted).why, seen(submitted).attempts) == (
        "went on at step 5; before: SIGTERM, saved",
        2,
    )
    slurm.job(1, started=SOON)  # the second was killed, and a third begins
    assert seen(submitted).why == "starting; before: killed, or its machine was lost"
    slurm.say(f"120_0 COMPLETING n[1-2] 0:10 {HOUR_AGO} None")
    assert (seen(submitted).state, seen(submitted).why) == ("LEAVING", "Slurm ends it")


def test_a_start_that_left_no_status_is_requeued_too(slurm: Slurm, submitted: RunDir) -> None:
    submitted.fold(1).root.mkdir()
    slurm.job(1, "BeginTime")
    assert seen(submitted).state == "PENDING"
    submitted.fold(1).log.write_text("killed\n")
    assert seen(submitted).state == "REQUEUED"


def test_failed_with_the_line_that_says_why(slurm: Slurm, submitted: RunDir) -> None:
    attempt(submitted.fold(1), "FAILED", "RuntimeError: boom [1]")
    assert (seen(submitted).state, seen(submitted).error) == ("FAILED", "RuntimeError: boom [1]")
    slurm.job(1)  # the batch script is still closing
    assert seen(submitted).state == "FAILED"
    slurm.job(1, "Priority")  # it was submitted again
    assert (seen(submitted).state, seen(submitted).error) == ("REQUEUED", "")


def test_failed_before_there_was_a_status(slurm: Slurm, submitted: RunDir) -> None:
    fold = submitted.fold(1)
    fold.root.mkdir()
    fold.log.write_text("Traceback (most recent call last):\n  …\nImportError: no torch\n")
    assert (seen(submitted).state, seen(submitted).error) == ("FAILED", "ImportError: no torch")
    fold.log.write_text("")
    output(
        submitted,
        1,
        "starting\n/bin/python: No such file\nsrun: error: n1: task 0: Exited with exit code 127\n\n",
    )
    assert (seen(submitted).state, seen(submitted).error) == ("FAILED", "/bin/python: No such file")
    text = (
        "ImportError: typer\nsrun: error: n1: task 0\nfold 1 failed (status 1): it wrote nothing\n"
    )
    output(submitted, 1, text)
    assert seen(submitted).error == "ImportError: typer"


def test_a_later_start_that_failed_before_its_status(slurm: Slurm, submitted: RunDir) -> None:
    attempt(submitted.fold(1), "PREEMPTED", "SIGTERM")
    output(
        submitted,
        1,
        "fold 1 left with status 75\nrequeued 120_0\nfold 1 failed (status 2): no weights\n",
    )
    assert (seen(submitted).state, seen(submitted).error) == ("FAILED", "no weights")
    output(
        submitted,
        1,
        "requeued 120_0\nerror: 120_0 was started again 30 times and ended with 75: not again\n",
    )
    assert seen(submitted).error == "120_0 was started again 30 times and ended with 75: not again"


def test_cancelled_and_lost(slurm: Slurm, submitted: RunDir) -> None:
    attempt(submitted.fold(1))
    assert (seen(submitted).state, seen(submitted).why) == ("LOST", "it ended without a word")
    assert seen(submitted).nodes == "n[3-4]"
    head = "slurmstepd-n1: error: *** JOB 122 ON n1 CANCELLED AT 2026-11-24T15:26:29"
    output(
        submitted,
        1,
        f"slurmstepd-n1: error: *** STEP 122.0 ON n1 CANCELLED AT 2026-11-24T15:26:29 ***\n{head} ***\nfold 1 left\n",
    )
    assert seen(submitted).state == "CANCELLED"
    output(submitted, 1, f"{head} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***\n")
    assert seen(submitted).state == "LOST"
    assert (
        seen(submitted).why == "ended by Slurm due to node failure, see slurmctld log for details"
    )
    output(submitted, 1, f"{head} DUE TO JOB REQUEUE ***\n")  # and then cancelled as it waited
    assert seen(submitted).state == "CANCELLED"
    attempt(submitted.fold(2), "PREEMPTED", "time is up")
    assert (seen(submitted, 2).state, seen(submitted, 2).why) == ("CANCELLED", "time is up, saved")


def test_a_run_on_this_machine(slurm: Slurm, run: RunDir) -> None:
    assert seen(run) == FoldState(1, "NOT STARTED")
    fold = run.fold(1)
    with fold_lock(fold):
        assert (seen(run).state, seen(run).why) == ("RUNNING", "starting")
        line = attempt(fold, job=None)
        assert (seen(run).state, seen(run).why, seen(run).step, seen(run).steps) == (
            "RUNNING",
            "",
            5,
            36,
        )
        (fold.root / ".lock").write_text(
            f"{os.uname().nodename} {2**22 + 1}"
        )  # above the highest process id
        assert (seen(run).state, seen(run).why) == (
            "LEAVING",
            "its command is gone, its ranks leave",
        )
    assert (seen(run).state, seen(run).why) == ("LOST", "it ended without a word")
    line.end("PREEMPTED", "SIGTERM")
    assert (seen(run).state, seen(run).why) == ("STOPPED", "SIGTERM, saved")
    assert not (slurm.root / "asked").exists() or queue() == {}


def test_a_look_at_a_fold_keeps_no_command_out(run: RunDir) -> None:
    fold = run.fold(1)
    fold.root.mkdir()
    with (fold.root / ".lock").open("w") as f:
        f.write("elsewhere 17")
        f.flush()
        fcntl.flock(f, fcntl.LOCK_SH)  # as is_held does
        threading.Timer(0.1, lambda: fcntl.flock(f, fcntl.LOCK_UN)).start()
        with fold_lock(fold):
            assert seen(run).state == "RUNNING"


def test_done(slurm: Slurm, submitted: RunDir) -> None:
    fold = submitted.fold(1)
    attempt(fold, "DONE", "all steps done")
    assert seen(submitted).state == "CANCELLED"  # DONE without a result is no such thing
    result(fold, 50.0, 60.0)
    slurm.job(1)  # it still writes the summary
    row = seen(submitted)
    assert (row.state, row.uar, row.war, row.scored, row.left) == ("DONE", 50.0, 60.0, "result", "")


def test_elements_of_the_plain_batch_script_are_found(slurm: Slurm, run: RunDir) -> None:
    run.array.write_text("77")
    slurm.say(
        f"77_1 RUNNING n1 1:00 {HOUR_AGO} None",
        "77_[3] PENDING - 1:00 N/A Priority",
        "77_2 PENDING - 1:00 N/A JobArrayTaskLimit",
    )
    assert (seen(run, 1).state, seen(run, 1).nodes) == ("RUNNING", "n1")
    assert (seen(run, 2).state, seen(run, 2).why) == (
        "PENDING",
        "enough folds run (JobArrayTaskLimit)",
    )
    assert seen(run, 3).state == "NOT STARTED"


def test_the_newest_submission_counts(slurm: Slurm, submitted: RunDir) -> None:
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
    slurm.say(
        "130 PENDING - 1:00 N/A Resources",
        "120_1 PENDING - 1:00 N/A Priority",
        f"120_0 RUNNING n1 1:00 {HOUR_AGO} None",
        "131 PENDING - 1:00 N/A Dependency",
    )
    assert [seen(submitted, k).job for k in (1, 2, 3)] == ["120_0", "130", ""]
    assert look_at([submitted], queue())[0].summary == "job 131 waits for other jobs (Dependency)"


def test_without_an_answer_the_files_tell(slurm: Slurm, submitted: RunDir) -> None:
    attempt(submitted.fold(1))
    attempt(submitted.fold(2), "PREEMPTED", "SIGUSR2")
    slurm.say(status=1)
    assert [seen(submitted, k).state for k in (1, 2, 3)] == ["RUNNING", "REQUEUED", "PENDING"]
    done = dfer("status", submitted.root)
    assert done.returncode == 0
    assert done.stdout.count("Slurm does not answer") == 1
    output(submitted, 3, "error: no weights\n")
    assert (seen(submitted, 3).state, seen(submitted, 3).error) == ("FAILED", "no weights")


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
def test_damaged_files_are_told_and_end_nothing(slurm: Slurm, submitted: RunDir, text: str) -> None:
    fold = submitted.fold(1)
    fold.root.mkdir()
    for path in (fold.status, fold.result, fold.metrics):
        path.write_text(text)
    slurm.job(1)
    assert seen(submitted).state == "RUNNING"
    slurm.say()
    why = "before it began" if "attempts" in text else "status.json cannot be read"
    assert (seen(submitted).state, seen(submitted).why) == (
        "CANCELLED" if "attempts" in text else "LOST",
        why,
    )
    submitted.jobs.write_text(text)
    assert dfer("status", submitted.root).returncode == 0


def test_only_the_tail_of_many_lines_is_read(slurm: Slurm, run: RunDir) -> None:
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
    row = seen(run)  # the first line is out of its sight
    assert (row.step, row.uar, row.war, row.scored) == (100_001, 1.0, 2.0, "test")


def whole(run: RunDir, slurm: Slurm) -> None:
    """One fold done, one in training, one failed."""
    attempt(run.fold(1), "DONE", "all steps done")
    result(run.fold(1), 50.125, 60.25)
    attempt(run.fold(2))
    MetricsLog(run.fold(2).metrics, run.fold(2).sent, None).log(
        12, 2, {"test_uar": 41.0, "test_war": 42.0, "clips_per_second": 120.0}
    )
    attempt(
        run.fold(3),
        "FAILED",
        "ValueError: [red]a long line that does not fit into a hundred columns" + 20 * " word",
    )
    slurm.say(
        f"120_1 RUNNING n[1-2] 1-09:59:01 {HOUR_AGO} None", "121 PENDING - 5:00 N/A Dependency"
    )


def test_the_table(slurm: Slurm, submitted: RunDir) -> None:
    whole(submitted, slurm)
    done = dfer("status", submitted.root, width="40")
    rows = done.stdout.splitlines()
    assert rows[4].split() == [
        "1",
        "DONE",
        "1",
        "5",
        "of",
        "36",
        "50.12",
        "60.25",
        "result",
        "n[3-4]",
    ]
    assert rows[5].split() == [
        "2",
        "RUNNING",
        "1",
        "12",
        "of",
        "36",
        "120",
        "41.00",
        "42.00",
        "test",
        "n[1-2]",
        "1-09:59:01",
    ]
    assert rows[6].split() == ["3", "FAILED", "1", "5", "of", "36", "n[3-4]"]
    assert (
        "fold 3: ValueError: [red]a long line that does not fit into a hundred columns"
        + 20 * " word"
        in rows
    )
    assert (
        "1 of 3 folds done: mean UAR 50.12, mean WAR 60.25 of 1 of 3 folds only (selection last)"
        in rows
    )
    assert "summary: job 121 waits for other jobs (Dependency)" in rows
    assert "\x1b" not in done.stdout


def test_the_table_on_a_terminal_of_a_hundred_columns(slurm: Slurm, submitted: RunDir) -> None:
    from launch.slurm.status import render

    whole(submitted, slurm)
    attempt(submitted.fold(2))
    slurm.say("120_1 PENDING - 5:00 N/A launch failed requeued held")
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=True, highlight=False, color_system=None).print(
        render(look_at([submitted], queue()))
    )
    assert max(map(len, out.getvalue().splitlines())) <= 100
    assert "    2  REQUEUED    2  12 of 36  41.00  42.00  test" in out.getvalue()
    assert (
        "fold 2: could not be started, held: scontrol release (launch failed requeued held)"
        in out.getvalue()
    )


def test_all_runs_the_newest_first(slurm: Slurm, submitted: RunDir) -> None:
    whole(submitted, slurm)
    other = RunDir(submitted.root.with_name("other"))
    write_json(other.run, {"dataset": "mafw", "folds": [1], "tracking": None})
    os.utime(other.run, (1, 1))
    (broken := RunDir(submitted.root.with_name("broken"))).root.mkdir()
    broken.run.write_text("{")
    done = dfer("status", "--runs", submitted.root.parent)
    assert done.stdout.index("demo: data set demo, cluster testbed") < done.stdout.index(
        "other: data set mafw"
    )
    assert f"{broken.run} cannot be read" in done.stdout
    assert done.returncode == 0
    check_refusal(dfer("status", "--runs", submitted.root), "holds no run")
    check_refusal(dfer("status", submitted.root.parent), "is not a run")


def test_json_and_no_slow_import(slurm: Slurm, submitted: RunDir) -> None:
    whole(submitted, slurm)
    code = (
        "import sys; from launch import cli; sys.argv[1:] = ['status', '--json', sys.argv[1]]\n"
        "try: cli.main()\n"
        "except SystemExit: assert not {'torch', 'pyarrow', 'mlflow', 'numpy', 'omegaconf.x'} & set(sys.modules), 'slow'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(submitted.root)],
        capture_output=True,
        text=True,
        check=True,
    )
    states = json.loads(done.stdout)
    assert [f["state"] for f in states["folds"]] == ["DONE", "RUNNING", "FAILED"]
    assert states["folds"][1]["left"] == "1-09:59:01"


# wait


def waits(run: RunDir, steps: list[Callable[[], None]], terminal: bool = False) -> tuple[int, str]:
    """What wait returns and prints, where ``steps`` happen one before each look."""
    left = iter(steps)
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as m:
        sleep = lambda _: next(left, nothing)()  # noqa: E731
        m.setattr(
            watch, "time", SimpleNamespace(sleep=sleep, strftime=time.strftime)
        )  # subprocess sleeps with the real one
        console = Console(file=out, width=120, force_terminal=terminal, highlight=False)
        return watch.wait([run], console), out.getvalue()


def finish(run: RunDir, k: int) -> None:
    attempt(run.fold(k), "DONE", "all steps done")
    result(run.fold(k), 50.0, 60.0)


def nothing() -> None:
    pass


@pytest.mark.parametrize("terminal", [False, True])
def test_wait_until_the_summary_is_over(slurm: Slurm, submitted: RunDir, terminal: bool) -> None:
    summary = "121 PENDING - 5:00 N/A Dependency"
    steps: list[Callable[[], None]] = [
        nothing,  # not in the queue yet
        lambda: slurm.say("120_0 PENDING - 5:00 N/A Priority", summary),
        lambda: slurm.say(status=1),
        lambda: slurm.say(f"120_0 RUNNING n1 5:00 {HOUR_AGO} None", summary),
        lambda: [finish(submitted, k) for k in (1, 2, 3)] and slurm.say(summary),
        nothing,
        nothing,
        nothing,
        lambda: (submitted.root / "late").touch(),
        slurm.say,
    ]
    status, said = waits(submitted, steps, terminal)
    assert status == 0
    assert (submitted.root / "late").exists()
    assert "3 of 3 folds done" in said
    if not terminal:
        lines = [
            line.partition(" ")[2]
            for line in said.splitlines()
            if " fold 1 " in line or "answer" in line
        ]
        assert lines == [
            "demo fold 1 CANCELLED: before it began",
            "demo fold 1 PENDING: other jobs go first (Priority)",
            "Slurm does not answer: waiting",
            "Slurm answers again",
            "demo fold 1 RUNNING on n1: starting",
            "demo fold 1 DONE on n[3-4]",
        ]


def test_wait_tells_of_folds_that_are_not_done(slurm: Slurm, submitted: RunDir) -> None:
    finish(submitted, 1)
    assert waits(submitted, [])[0] == 1
    folds = {
        "time": "",
        "cluster": "c",
        "folds": {"1": "120_0"},
        "summary": "121",
        "folder": "slurm/1",
    }
    write_json(submitted.jobs, {"submissions": [folds]})  # the only one that was submitted
    assert waits(submitted, [])[0] == 0


def test_ctrl_c_leaves_the_jobs_alone(slurm: Slurm, submitted: RunDir) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    slurm.job(1, "Priority")
    status, said = waits(submitted, [interrupt])
    assert (status, slurm.cancelled) == (130, [])
    assert "the jobs go on" in said


# logs


def test_logs_of_a_rank(slurm: Slurm, submitted: RunDir) -> None:
    fold = submitted.fold(2)
    fold.root.mkdir()
    fold.log.write_text("of rank 0 [bold]\n")
    (fold.root / "log-rank1.txt").write_text("of rank 1\n")
    assert dfer("logs", submitted.root, "--fold", 2).stdout == "of rank 0 [bold]\n"
    assert dfer("logs", submitted.root, "--fold", 2, "--rank", 1).stdout == "of rank 1\n"
    check_refusal(dfer("logs", submitted.root, "--fold", 4), "has no fold 4: it has 1, 2, 3")
    check_refusal(dfer("logs", submitted.root, "--fold", 3), "log.txt is not there yet")


def test_logs_fall_back_on_the_jobs_output(slurm: Slurm, submitted: RunDir) -> None:
    path = output(submitted, 1, "python: not found\n")
    done = dfer("logs", submitted.root, "--fold", 1)
    assert done.stdout == "python: not found\n"
    assert f"this is {path}:" in done.stderr


def test_logs_for_a_reader_that_has_enough(slurm: Slurm, submitted: RunDir) -> None:
    submitted.fold(1).root.mkdir()
    submitted.fold(1).log.write_text("line\n" * 1_000_000)
    words = f"'{DFER}' logs '{submitted.root}' --fold 1 | head -1"
    done = subprocess.run(words, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("line\n", "")


def test_follow_survives_a_restart_and_ends_with_the_fold(slurm: Slurm, submitted: RunDir) -> None:
    slurm.job(1, "Priority")
    process = subprocess.Popen(
        [str(DFER), "logs", str(submitted.root), "--fold", "1", "-f"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    time.sleep(0.6)  # it waits for a file that is not there
    fold = submitted.fold(1)
    fold.root.mkdir()

    def write(text: str) -> None:
        with fold.log.open("a") as f:
            f.write(text)

    write("first\n")
    slurm.job(1)
    assert process.stdout.readline() == "first\n"
    attempt(fold, "PREEMPTED", "SIGTERM")
    slurm.job(1, "BeginTime")
    time.sleep(4.5)  # longer than what ends it
    assert process.poll() is None
    write("second\n")
    assert process.stdout.readline() == "second\n"
    finish(submitted, 1)
    write("last\n")
    slurm.say()
    assert process.communicate(timeout=30)[0] == "last\n"
    assert process.returncode == 0


# cancel


def test_cancel_leaves_the_summary(slurm: Slurm, submitted: RunDir) -> None:
    whole(submitted, slurm)
    slurm.say(
        f"120_0 RUNNING n1 1:00 {HOUR_AGO} None",  # done, and writes the summary so far
        f"120_1 RUNNING n[1-2] 9:59 {HOUR_AGO} None",
        "120_2 PENDING - 5:00 N/A Priority",
        "121 PENDING - 5:00 N/A Dependency",
        "999 PENDING - 5:00 N/A Priority",
    )
    with fold_lock(submitted.fold(2)):  # by the batch script
        done = dfer("cancel", submitted.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert slurm.cancelled == ["120_1", "120_2"]
    assert done.stdout.splitlines() == [
        "fold 2: cancelled job 120_1 (RUNNING)",
        "fold 3: cancelled job 120_2 (REQUEUED)",
        "job 121 stays: it writes the summary of what is there",
    ]


def test_cancel_with_nothing_to_cancel(slurm: Slurm, submitted: RunDir) -> None:
    done = dfer("cancel", submitted.root)
    assert (done.returncode, slurm.cancelled) == (1, [])
    assert done.stderr.startswith("nothing to cancel")
    slurm.say(status=1)
    check_refusal(dfer("cancel", submitted.root), "Slurm does not answer")


HOLD = "import sys, time; from pathlib import Path; from dfer_dist.runs.layout import FoldDir; from launch.locks import fold_lock\n"
HOLD += "with fold_lock(FoldDir(Path(sys.argv[1]))): print('held', flush=True); time.sleep(60)"


def test_cancel_a_command_on_this_machine(slurm: Slurm, run: RunDir) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.fold(2).root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout and process.stdout.readline() == "held\n"
        done = dfer("cancel", run.root)
        assert (
            done.returncode,
            f"fold 2: told the command to leave (process {process.pid})" in done.stdout,
        ) == (0, True)
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()


def test_cancel_ends_no_stranger(slurm: Slurm, run: RunDir) -> None:
    stranger = subprocess.Popen(["sleep", "60"])  # has by now the number that stands in the lock
    try:
        with fold_lock(run.fold(1)):
            lock = run.fold(1).root / ".lock"
            lock.write_text(f"{os.uname().nodename} {stranger.pid}")
            done = dfer("cancel", run.root)
            assert "its ranks save and leave" in done.stdout
            lock.write_text("elsewhere 17")
            check_refusal(
                dfer("cancel", run.root),
                "fold 1 is worked on from elsewhere: stop it there, kill 17",
            )
        assert stranger.poll() is None
    finally:
        stranger.kill()
