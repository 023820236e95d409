"""``dfer status``, ``logs -f`` and ``cancel`` of jobs on a real Slurm."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import pytest
from cluster import Cluster

from tests.helpers.slurm.submitted import Submitted
from tests.helpers.training.trials import DFER

pytestmark = pytest.mark.slurm


def dfer(trial: Submitted, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert trial.cluster
    env = {**trial.cluster.environment, "COLUMNS": "100"}
    return subprocess.run([DFER, *arguments], env=env, capture_output=True, text=True, timeout=60)


def folds(trial: Submitted) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(
        dfer(trial, "status", "--json", str(trial.run.root)).stdout
    )["folds"]
    return rows


def test_status_follows_a_requeue_and_cancel_ends_it(trial: Submitted, cluster: Cluster) -> None:
    trial.slow(0.3)
    trial.submit("--max-parallel", "1", folds="1-2")
    trial.training(6)
    first, second, third = folds(trial)[:3]
    assert (first["state"], first["nodes"], first["attempts"], first["steps"]) == (
        "RUNNING",
        "n[1-2]",
        1,
        36,
    )
    assert re.fullmatch(r"(\d+-)?(\d+:)?\d+:\d\d", first["left"])
    assert (second["state"], second["why"]) == ("PENDING", "enough folds run (JobArrayTaskLimit)")
    assert third["state"] == "NOT STARTED"
    print(dfer(trial, "status", str(trial.run.root)).stdout)

    arguments = [DFER, "logs", str(trial.run.root), "--fold", "1", "-f"]
    follower = subprocess.Popen(
        arguments, env=cluster.environment, stdout=subprocess.PIPE, text=True
    )
    trial.ask("scontrol", "requeue", trial.job())
    trial.wait(lambda: folds(trial)[0]["state"] == "REQUEUED", 30)
    assert folds(trial)[0]["why"].endswith("before: SIGTERM, saved")
    print(dfer(trial, "status", str(trial.run.root)).stdout)
    trial.wait(
        lambda: (
            "resumed" in folds(trial)[0]["why"]
            or "resumed" in folds(trial)[1]["why"]
            or folds(trial)[1]["step"]
        ),
        120,
    )
    assert follower.poll() is None

    done = dfer(trial, "cancel", str(trial.run.root))
    assert (done.returncode, done.stdout.count("cancelled job")) == (0, 2)
    trial.wait(lambda: {f["state"] for f in folds(trial)[:2]} == {"CANCELLED"}, 60)
    assert follower.communicate(timeout=30)[0].count("\n") > 1
    assert follower.returncode == 0
    assert dfer(trial, "cancel", str(trial.run.root)).returncode == 1
    print(dfer(trial, "status", str(trial.run.root)).stdout)


def test_status_while_slurmctld_does_not_answer(trial: Submitted, cluster: Cluster) -> None:
    trial.slow(0.3)
    trial.submit()
    trial.training(3)
    pid = int((cluster.root / "run" / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        done = dfer(trial, "status", str(trial.run.root))
        assert (
            done.returncode,
            " RUNNING " in done.stdout,
            "Slurm does not answer" in done.stdout,
        ) == (0, True, True)
        assert "nothing was cancelled" in dfer(trial, "cancel", str(trial.run.root)).stderr
    finally:
        os.kill(pid, signal.SIGCONT)
    trial.wait(lambda: folds(trial)[0]["left"], 60)
    assert dfer(trial, "cancel", str(trial.run.root)).returncode == 0
