"""Which jobs are requeued, with a ``scontrol`` and a ``squeue`` that note their arguments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from dfer_dist.runs.layout import FoldDir
from launch.slurm.requeue import exclude_nodes
from tests.helpers.paths import ROOT


class Started(NamedTuple):
    """A process of the program, and the file in which its ``scontrol`` notes its arguments."""

    process: subprocess.Popen[bytes]
    asked: Path


def write_clients(folder: Path, state: str, scontrol: str) -> Path:
    """Write the clients into a new folder and return the file of the arguments of ``scontrol``."""
    folder.mkdir()
    asked = folder / "asked"
    asked.touch()
    for name, does in {
        "squeue": f'echo "{state}"',
        "scontrol": f'echo "$@" >> {asked}\n{scontrol}',
        "sinfo": "printf '%s\\n' 'n1 idle' 'n2 mix' 'n3 alloc' 'n4 drain' 'n5 down*' 'n6 idle*'",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    return asked


def start(
    tmp_path: Path, *arguments: str, state: str = "RUNNING None", scontrol: str = "", **job: str
) -> Started:
    """Start the program; return when it has ended or says that it has requeued the job.

    A client that outlives the program, when that is killed, must not be taken for one of the next.
    """
    clients = tmp_path / f"clients-{len(list(tmp_path.glob('clients-*')))}"
    asked = write_clients(clients, state, scontrol)
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
        "PYTHONPATH": str(ROOT),
    }
    env |= {"PATH": f"{clients}:{env['PATH']}", "SLURM_JOB_ID": "7", **job}
    said = tmp_path / "said"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.slurm.requeue", *with_fold(tmp_path, *arguments)],
            env=env,
            stderr=stderr,
        )
    deadline = time.monotonic() + 20
    while process.poll() is None and "requeued" not in said.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return Started(process, asked)


def with_fold(tmp_path: Path, status: str, *others: str) -> list[str]:
    """Return the arguments with the folder of fold 1 of a run."""
    return [status, str(tmp_path / "fold-1"), *others]


def run(tmp_path: Path, *arguments: str, **how: str) -> tuple[int, str, bool]:
    """Return the status, the arguments of ``scontrol``, and whether the program waited."""
    process, asked = start(tmp_path, *arguments, **how)
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        process.terminate()  # as Slurm does when it ends the job
        time.sleep(0.3)
        stayed = process.poll() is None
        process.kill()
    else:
        stayed = False
    return process.wait(), asked.read_text(), stayed


def asked_by(tmp_path: Path, *arguments: str, **how: str) -> str:
    """Return the arguments of ``scontrol``."""
    process, asked = start(tmp_path, *arguments, **how)
    process.kill()
    process.wait()
    return asked.read_text()


@pytest.mark.parametrize(
    "status", [75, 128 + signal.SIGKILL, 128 + signal.SIGABRT, 128 + signal.SIGTERM]
)
def test_saved_or_killed_job_is_requeued_and_waits(tmp_path: Path, status: int) -> None:
    assert run(tmp_path, str(status)) == (-signal.SIGKILL, "requeue 7\n", True)


@pytest.mark.parametrize("status", [0, 1, 2, 127, 128, 255])
def test_error_that_would_come_again_is_not_requeued(tmp_path: Path, status: int) -> None:
    assert run(tmp_path, str(status)) == (0, "", False)


def test_array_task_is_named_by_its_array(tmp_path: Path) -> None:
    asked = asked_by(tmp_path, "75", SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="3")
    assert asked == "requeue 5_3\n"


def test_restarts_have_a_limit(tmp_path: Path) -> None:
    assert asked_by(tmp_path, "75", "--most", "2", SLURM_RESTART_COUNT="1") == "requeue 7\n"
    assert run(tmp_path, "75", "--most", "2", SLURM_RESTART_COUNT="2") == (0, "", False)


@pytest.mark.parametrize("status", [137, 233])
def test_fourth_start_that_gets_no_further_is_the_last(tmp_path: Path, status: int) -> None:
    """Three restarts; then a newer checkpoint gives three more."""
    fold = FoldDir(tmp_path / "fold-1")
    for _ in range(3):
        fail_to_launch(tmp_path, "n2")
        assert "requeue 7\n" in asked_by(tmp_path, str(status))
    assert asked_by(tmp_path, str(status)) == ""
    assert "requeue 7\n" in asked_by(tmp_path, "75")
    (fold.checkpoints / "step-00000005").mkdir(parents=True)
    assert "requeue 7\n" in asked_by(tmp_path, str(status))


SHOW_JOB = 'case "$*" in *"show job"*) echo "JobId=7 Partition=low ExcNodeList=n3";; esac'


def test_node_is_excluded_after_its_second_failure(tmp_path: Path) -> None:
    job = {"scontrol": SHOW_JOB, "SLURM_JOB_NODELIST": "n1,n2", "SLURM_JOB_NUM_NODES": "1"}
    fail_to_launch(tmp_path, "n2")
    assert asked_by(tmp_path, "233", **job) == "requeue 7\n"
    assert update_by(tmp_path, "233", **job) == "update JobId=7 ExcNodeList=n2,n3"


def update_by(tmp_path: Path, *arguments: str, **how: str) -> str:
    """Return how ``scontrol`` is asked to change the requeued job."""
    process, asked = start(tmp_path, *arguments, **how)
    deadline = time.monotonic() + 20
    while "update" not in asked.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    return asked.read_text().splitlines()[-1]


def test_job_on_one_node_is_requeued_once_for_another(tmp_path: Path) -> None:
    """Then the same error is the fold's."""
    job = {"scontrol": SHOW_JOB, "SLURM_JOB_NUM_NODES": "1"}
    end = "srun: error: {}: task 0: Exited with exit code 1\nImportError: x\n"
    note_start(tmp_path, end.format("n1"))
    job["SLURM_JOB_NODELIST"] = "n1"
    assert update_by(tmp_path, "1", **job) == "update JobId=7 ExcNodeList=n1,n3"
    note_start(tmp_path, end.format("n2"))
    job["SLURM_JOB_NODELIST"] = "n2"
    assert run(tmp_path, "1", **job) == (0, "", False)


@pytest.mark.parametrize(("num_nodes", "excludes"), [(1, True), (2, False)])
def test_node_is_not_excluded_if_too_few_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_nodes: int, excludes: bool
) -> None:
    """Three are in service, of which the user has excluded one."""
    asked = write_clients(tmp_path / "clients", "", SHOW_JOB)
    monkeypatch.setenv("PATH", f"{tmp_path / 'clients'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", str(num_nodes))
    exclude_nodes("7", ["n2"])
    assert ("update" in asked.read_text()) == excludes


def fail_to_launch(tmp_path: Path, node: str) -> None:
    note_start(tmp_path, f"srun: error: Task launch for StepId=7.0 failed on node {node}: dead\n")


def note_start(tmp_path: Path, text: str) -> None:
    """Write what job.sh notes at the start of a job, and what srun and the ranks then print."""
    fold, output = FoldDir(tmp_path / "fold-1"), tmp_path / "7_0_log.out"
    fold.root.mkdir(exist_ok=True)
    output.touch()
    fold.start.write_text(f"{time.time():.0f}\n{output.stat().st_size} {output}\n")
    with output.open("a") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("state", "asked"),
    [
        ("COMPLETING None", ""),
        ("PENDING BeginTime", ""),
        ("COMPLETING TimeLimit", "requeue 7\n"),
        ("", ""),
    ],
)
def test_job_ended_from_outside_is_not_requeued(tmp_path: Path, state: str, asked: str) -> None:
    assert asked_by(tmp_path, "75", state=state) == asked


def test_scontrol_survives_the_signals_that_it_causes(tmp_path: Path) -> None:
    scontrol = "kill -TERM $$\nkill -USR2 $$\necho sent >> ${0%/*}/asked"
    assert run(tmp_path, "75", scontrol=scontrol) == (-signal.SIGKILL, "requeue 7\nsent\n", True)
