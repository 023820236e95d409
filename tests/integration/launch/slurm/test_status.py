"""``dfer status`` with a fake ``squeue``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import write_json
from launch.slurm.squeue import QueuedJob, query_squeue
from tests.helpers.cli import check_refusal
from tests.helpers.slurm.fake_clients import FakeSlurm, run_dfer
from tests.helpers.slurm.run_folders import HOUR_AGO, LONG_ERROR, fill_run, write_attempt

AGE = re.compile(r"\d+ (s|min)\b")  # of a fold's last line


def test_squeue_ignores_the_users_variables(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    (slurm.root / "squeue").write_text(
        f'#!/bin/sh\necho "$@" > {slurm.root}/asked\n'
        'echo "7|RUNNING|n[1-2]|1:00|0:10|$SQUEUE_STATES|a|b"\n'
    )
    assert query_squeue() == {"7": QueuedJob("7", "RUNNING", "n[1-2]", "1:00", "0:10", "", "a|b")}
    assert (slurm.root / "asked").read_text() == "--me -h -r -o %i|%T|%N|%L|%M|%S|%r\n"


def test_squeue_without_an_answer_is_none(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.set_queue("half a line", "")
    assert query_squeue() == {}
    slurm.set_queue(status=1)
    assert query_squeue() is None
    monkeypatch.setattr("launch.slurm.squeue._TIMEOUT", 0.3)
    (slurm.root / "squeue").write_text("#!/bin/sh\nexec sleep 20\n")
    begin = time.monotonic()
    assert query_squeue() is None and time.monotonic() - begin < 5
    (slurm.root / "squeue").unlink()
    monkeypatch.setenv("PATH", str(slurm.root))
    assert query_squeue() is None


def fill(slurm: FakeSlurm, run: RunDir) -> None:
    """Record a run of which the second fold and the summary are in the queue."""
    fill_run(run)
    slurm.set_queue(
        f"120_1 RUNNING n[1-2] 1-09:59:01 {HOUR_AGO} None", "121 PENDING - 5:00 N/A Dependency"
    )


def test_status_prints_the_table(slurm: FakeSlurm, submitted: RunDir) -> None:
    fill(slurm, submitted)
    done = run_dfer("status", submitted.root, width="40")
    rows = done.stdout.splitlines()
    first, second, third = (" ".join(row.split()) for row in rows[4:7])
    assert first == "1 DONE 5 of 36 50.12 60.25 result 1 n[3-4]"
    second = AGE.sub("AGE", second)
    progress = "2 RUNNING training 12 of 36 0.750 120 AGE"
    assert second == f"{progress} 41.00 42.00 test 1 1-09:59:01 n[1-2]"
    assert third == "3 FAILED 5 of 36 1 n[3-4]"
    assert f"fold 3: {LONG_ERROR}" in rows
    assert (
        "1 of 3 folds done: mean UAR 50.12, mean WAR 60.25 of 1 of 3 folds only (selection last)"
        in rows
    )
    assert "summary: job 121 waits for other jobs (Dependency)" in rows
    assert "\x1b" not in done.stdout


def test_status_prints_all_runs_newest_first(slurm: FakeSlurm, submitted: RunDir) -> None:
    fill(slurm, submitted)
    other = RunDir(submitted.root.with_name("other"))
    write_json(other.run, {"dataset": "mafw", "folds": [1], "tracking": None})
    os.utime(other.run, (1, 1))
    broken = RunDir(submitted.root.with_name("broken"))
    broken.root.mkdir()
    broken.run.write_text("{")
    done = run_dfer("status", "--runs", submitted.root.parent)
    assert done.stdout.index("demo: data set demo, cluster testbed") < done.stdout.index(
        "other: data set mafw"
    )
    assert f"{broken.run} cannot be read" in done.stdout
    assert done.returncode == 0
    check_refusal(run_dfer("status", "--runs", submitted.root), "holds no run")
    same = run_dfer("status", submitted.root.parent)
    assert AGE.sub("AGE", same.stdout) == AGE.sub("AGE", done.stdout)
    check_refusal(run_dfer("status", slurm.root), "is not a run")


def test_status_as_json_imports_nothing_slow(slurm: FakeSlurm, submitted: RunDir) -> None:
    fill(slurm, submitted)
    code = (
        "import sys; from launch import cli; sys.argv[1:] = ['status', '--json', sys.argv[1]]\n"
        "try: cli.main()\n"
        "except SystemExit:\n"
        "    slow = {'torch', 'pyarrow', 'mlflow', 'numpy', 'omegaconf.x'} & set(sys.modules)\n"
        "    assert not slow, slow\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(submitted.root)],
        capture_output=True,
        text=True,
        check=True,
    )
    states = json.loads(done.stdout)
    assert [f["state"] for f in states["folds"]] == ["DONE", "RUNNING", "FAILED"]
    running = states["folds"][1]
    assert (running["left"], running["phase"], running["loss"]) == ("1-09:59:01", "training", 0.75)
    assert running["seconds_silent"] >= 0


def test_status_without_an_answer_says_so_once(slurm: FakeSlurm, submitted: RunDir) -> None:
    write_attempt(submitted.fold(1))
    slurm.set_queue(status=1)
    done = run_dfer("status", submitted.root)
    assert done.returncode == 0
    assert done.stdout.count("Slurm does not answer") == 1
