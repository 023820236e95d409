"""``dfer logs`` with a fake ``squeue``."""

from __future__ import annotations

import subprocess
import sys
import time

from dfer_dist.runs.layout import RunDir
from tests.helpers.cli import check_refusal
from tests.helpers.paths import DFER
from tests.helpers.slurm.fake_clients import FakeSlurm, fold_row, run_dfer
from tests.helpers.slurm.run_folders import finish_fold, write_attempt, write_output
from tests.helpers.training.commands import wait_for


def test_logs_prints_the_log_of_a_rank(slurm: FakeSlurm, submitted: RunDir) -> None:
    fold = submitted.fold(2)
    fold.root.mkdir()
    fold.log.write_text("of rank 0 [bold]\n")
    (fold.root / "log-rank1.txt").write_text("of rank 1\n")
    assert run_dfer("logs", submitted.root, "--fold", 2).stdout == "of rank 0 [bold]\n"
    assert run_dfer("logs", submitted.root, "--fold", 2, "--rank", 1).stdout == "of rank 1\n"
    check_refusal(run_dfer("logs", submitted.root, "--fold", 4), "has no fold 4: it has 1, 2, 3")
    check_refusal(run_dfer("logs", submitted.root, "--fold", 3), "log.txt is missing")


def test_logs_without_a_log_prints_the_job_output(slurm: FakeSlurm, submitted: RunDir) -> None:
    path = write_output(submitted, 1, "python: not found\n")
    done = run_dfer("logs", submitted.root, "--fold", 1)
    assert done.stdout == "python: not found\n"
    assert f"this is {path}:" in done.stderr


def test_logs_into_a_closed_pipe_is_silent(slurm: FakeSlurm, submitted: RunDir) -> None:
    submitted.fold(1).root.mkdir()
    submitted.fold(1).log.write_text("line\n" * 1_000_000)
    command = f"'{DFER}' logs '{submitted.root}' --fold 1 | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("line\n", "")


# Looks ten times as often as the command.
FOLLOW = """
from launch import cli
from launch.slurm import logs
logs._POLL_SECONDS /= 10
cli.main()
"""


def test_logs_follow_survives_a_requeue(slurm: FakeSlurm, submitted: RunDir) -> None:
    slurm.set_queue(fold_row(1, "Priority"))
    process = subprocess.Popen(
        [sys.executable, "-c", FOLLOW, "logs", str(submitted.root), "--fold", "1", "-f"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    wait_for(slurm.root / "asked")
    time.sleep(0.1)  # it waits for a file that does not exist
    fold = submitted.fold(1)
    fold.root.mkdir()

    def write(text: str) -> None:
        with fold.log.open("a") as f:
            f.write(text)

    write("first\n")
    slurm.set_queue(fold_row(1))
    assert process.stdout.readline() == "first\n"
    write_attempt(fold, "PREEMPTED", "SIGTERM")
    slurm.set_queue(fold_row(1, "BeginTime"))
    time.sleep(0.8)  # longer than it takes to call a fold over
    assert process.poll() is None
    write("second\n")
    assert process.stdout.readline() == "second\n"
    finish_fold(submitted, 1)
    write("last\n")
    slurm.set_queue()
    assert process.communicate(timeout=30)[0] == "last\n"
    assert process.returncode == 0
