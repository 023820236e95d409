"""Which jobs are requeued, with a ``scontrol`` and a ``squeue`` that note their arguments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfer_dist.runs.layout import FoldDir
from dfer_dist.utils.files import write_json
from tests.helpers.paths import ROOT


def start(
    tmp_path: Path, *arguments: str, state: str = "RUNNING None", scontrol: str = "", **job: str
) -> subprocess.Popen[bytes]:
    """Start the program; return when it has ended or says that it has requeued the job."""
    for name, does in {
        "squeue": f'echo "{state}"',
        "scontrol": f'echo "$@" >> {tmp_path / "asked"}\n{scontrol}',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
        "PYTHONPATH": str(ROOT),
    }
    env |= {"PATH": f"{tmp_path}:{env['PATH']}", "SLURM_JOB_ID": "7", **job}
    said = tmp_path / "said"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.slurm.requeue", *arguments], env=env, stderr=stderr
        )
    deadline = time.monotonic() + 20
    while process.poll() is None and "requeued" not in said.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def run(tmp_path: Path, *arguments: str, **how: str) -> tuple[int, str, bool]:
    """Return the status, the arguments of ``scontrol``, and whether the program waited."""
    process = start(tmp_path, *arguments, **how)
    try:
        process.wait(0.5)
    except subprocess.TimeoutExpired:
        process.terminate()  # as Slurm does when it ends the job
        time.sleep(0.3)
        stayed = process.poll() is None
        process.kill()
    else:
        stayed = False
    return process.wait(), read_asked(tmp_path), stayed


def asked_by(tmp_path: Path, *arguments: str, **how: str) -> str:
    """Return the arguments of ``scontrol``."""
    process = start(tmp_path, *arguments, **how)
    process.kill()
    process.wait()
    return read_asked(tmp_path)


def read_asked(tmp_path: Path) -> str:
    asked = tmp_path / "asked"
    return asked.read_text() if asked.exists() else ""


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
    (tmp_path / "asked").unlink()
    assert run(tmp_path, "75", "--most", "2", SLURM_RESTART_COUNT="2") == (1, "", False)


@pytest.mark.parametrize(
    ("status", "begun", "asked"),
    [
        (137, [0, 0, 0], "requeue 7\n"),
        (137, [0, 0, 0, 0], ""),
        (137, [None, None, None, None], ""),
        (75, [0, 0, 0, 0], "requeue 7\n"),
        (137, [0, 0, 0, 0, 5], "requeue 7\n"),
        (137, [0, 5, 5, 5], "requeue 7\n"),
        (137, [0, 5, 5, 5, 5], ""),
    ],
)
def test_deaths_without_progress_are_not_requeued(
    tmp_path: Path, status: int, begun: list[int | None], asked: str
) -> None:
    write_json(FoldDir(tmp_path).status, {"attempts": [{"from_step": step} for step in begun]})
    assert asked_by(tmp_path, str(status), str(tmp_path)) == asked


def test_fold_without_a_status_is_requeued(tmp_path: Path) -> None:
    assert asked_by(tmp_path, "137", str(tmp_path / "fold-1")) == "requeue 7\n"


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
    scontrol = "kill -TERM $$\nkill -USR2 $$\necho sent >> " + str(tmp_path / "asked")
    assert run(tmp_path, "75", scontrol=scontrol) == (-signal.SIGKILL, "requeue 7\nsent\n", True)
