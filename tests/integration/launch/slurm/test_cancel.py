"""``dfer cancel`` with a fake ``squeue`` and ``scancel``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import SweepDir, SweepMember
from dfer_dist.utils.files import read_json, write_json
from launch.locks import fold_lock
from tests.helpers.cli import check_refusal
from tests.helpers.slurm.fake_clients import FakeSlurm, fold_row, run_dfer
from tests.helpers.slurm.run_folders import HOUR_AGO, fill_run, finish_fold, write_output


def test_cancel_leaves_the_summary_job(slurm: FakeSlurm, submitted: RunDir) -> None:
    fill_run(submitted)
    slurm.set_queue(
        f"120_0 RUNNING n1 1:00 {HOUR_AGO} None",  # done, and writes the summary so far
        f"120_1 RUNNING n[1-2] 9:59 {HOUR_AGO} None",
        "120_2 PENDING - 5:00 N/A Priority",
        "121 PENDING - 5:00 N/A Dependency",
        "999 PENDING - 5:00 N/A Priority",
    )
    with fold_lock(submitted.fold(2)):  # by the batch script
        done = run_dfer("cancel", submitted.root)
    assert (done.returncode, done.stderr) == (0, "")
    assert slurm.cancelled == ["120_1", "120_2"]
    assert done.stdout.splitlines() == [
        "fold 2: cancelled job 120_1 (RUNNING)",
        "fold 3: cancelled job 120_2 (REQUEUED)",
        "job 121 stays: it writes the summary of the folds that are done",
    ]


def test_cancel_with_nothing_to_cancel_exits_with_1(slurm: FakeSlurm, submitted: RunDir) -> None:
    done = run_dfer("cancel", submitted.root)
    assert (done.returncode, slurm.cancelled) == (1, [])
    assert done.stderr.startswith("nothing to cancel")
    slurm.set_queue(status=1)
    check_refusal(run_dfer("cancel", submitted.root), "Slurm does not answer")


def test_cancel_of_folds_that_are_done_says_so(slurm: FakeSlurm, submitted: RunDir) -> None:
    fill_run(submitted)
    assert run_dfer("cancel", submitted.root).returncode == 1
    submitted.update_info(requested=[1])
    done = run_dfer("cancel", submitted.root)
    assert (done.returncode, done.stderr, slurm.cancelled) == (0, "", [])
    assert "are done" in done.stdout


@pytest.mark.parametrize("ended", ["done", "failed"])
def test_cancel_leaves_a_job_that_writes_the_summary(
    slurm: FakeSlurm, submitted: RunDir, ended: str
) -> None:
    """Its batch script holds the lock of the fold, which no command on this machine does."""
    fold = submitted.fold(1)
    submitted.update_info(requested=[1])
    finish_fold(submitted, 1)
    if ended == "failed":
        fold.result.unlink()
        write_output(submitted, 1, "fold 1 failed (status 1): ImportError: x\n")
    slurm.set_queue(fold_row(1))
    with fold_lock(fold):
        (fold.root / ".lock").write_text("")
        done = run_dfer("cancel", submitted.root)
    assert slurm.cancelled == []
    text = {"done": "all folds of", "failed": "no fold of"}[ended]
    assert (done.stdout + done.stderr).startswith(f"nothing to cancel: {text}")
    assert done.returncode == int(ended == "failed")


HOLD_LOCK = """
import sys, time
from pathlib import Path
from dfer_dist.runs.layout import FoldDir
from launch.locks import fold_lock
with fold_lock(FoldDir(Path(sys.argv[1]))):
    print('held', flush=True)
    time.sleep(60)
"""


def test_cancel_stops_a_command_on_this_machine(slurm: FakeSlurm, run: RunDir) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(run.fold(2).root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout and process.stdout.readline() == "held\n"
        done = run_dfer("cancel", run.root)
        assert (
            done.returncode,
            f"fold 2: sent SIGTERM to its command (process {process.pid})" in done.stdout,
        ) == (0, True)
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()


HOLD_TWO = """
import signal, sys, time
from pathlib import Path
from dfer_dist.runs.layout import FoldDir
from launch.locks import fold_lock
signal.signal(signal.SIGTERM, lambda *_: print('signal', flush=True))
with fold_lock(FoldDir(Path(sys.argv[1]))), fold_lock(FoldDir(Path(sys.argv[2]))):
    print('held', flush=True)
    time.sleep(60)
"""


def test_command_that_trains_several_runs_gets_one_signal(slurm: FakeSlurm, run: RunDir) -> None:
    """As of a search: a second one would end its ranks before they have saved."""
    other, sweep = RunDir(run.root.with_name("other")), SweepDir.of(run.root.parent, "s")
    write_json(other.run, read_json(run.run))
    for own in (run, other):
        sweep.add(own, SweepMember(own.root.name))
    folders = [str(own.fold(1).root) for own in (run, other)]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_TWO, *folders], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout and process.stdout.readline() == "held\n"
        assert run_dfer("cancel", sweep.root).returncode == 0
        assert process.stdout.readline() == "signal\n"
    finally:
        process.kill()
    assert process.communicate()[0] == ""


def test_cancel_kills_no_other_process(slurm: FakeSlurm, run: RunDir) -> None:
    other = subprocess.Popen(["sleep", "60"])  # has the process id in the lock by now
    try:
        with fold_lock(run.fold(1)):
            lock = run.fold(1).root / ".lock"
            lock.write_text(f"{os.uname().nodename} {other.pid}")
            done = run_dfer("cancel", run.root)
            assert "its ranks save and exit" in done.stdout
            lock.write_text("elsewhere 17")
            check_refusal(
                run_dfer("cancel", run.root),
                "fold 1 is trained by elsewhere: stop it there, kill 17",
            )
        assert other.poll() is None
    finally:
        other.kill()
