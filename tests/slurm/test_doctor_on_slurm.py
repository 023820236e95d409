"""``dfer doctor`` on a real Slurm."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from cluster import Cluster

from tests.helpers.slurm.submitted import ROOT, Submitted
from tests.helpers.training.trials import DFER

pytestmark = pytest.mark.slurm

NODE = {
    "runs folder",
    "python",
    "GPUs",
    "processors",
    "DeepSpeed",
    "scratch",
    "weights",
    "shards",
    "tracking",
    "signals",
}
LINE = re.compile(r"(ok|note|wrong) +(n[1-4]: )?([^:]+): (.*)")


def read(
    done: subprocess.CompletedProcess[str], status: int
) -> tuple[dict[str, str], set[str], set[str]]:
    """Return what is wrong with its text, and what else Slurm and a node were asked."""
    print(done.stdout)
    assert done.returncode == status and not done.stderr, done.stdout + done.stderr
    lines = [m.groups() for m in map(LINE.fullmatch, done.stdout.splitlines()) if m]
    wrong = {subject: text for state, _, subject, text in lines if state == "wrong"}
    return wrong, *(
        {what for state, n, what, _ in lines if bool(n) == node and state != "wrong"}
        for node in (False, True)
    )


def doctor(
    trial: Submitted, *arguments: str, status: int = 0
) -> tuple[dict[str, str], set[str], set[str]]:
    experiment = [
        "demo",
        f"data.shards={trial.shards.root}",
        "--cluster",
        "testbed",
        "--runs",
        str(trial.root / "runs"),
    ]
    return read(trial.dfer("doctor", *experiment, *arguments), status)


def test_doctor_on_a_fine_cluster_leaves_nothing(trial: Submitted) -> None:
    wrong, slurm, node = doctor(trial, f"cluster.scratch={trial.root}/disk/$SLURM_JOB_ID")
    assert wrong == {} and node == NODE
    assert {
        "Slurm",
        "environment",
        "partition",
        "nodes",
        "account",
        "qos",
        "time",
        "a fold's job",
        "the summary's job",
        "preemption",
        "exit",
        "requeue",
    } == slurm
    assert os.listdir(trial.root / "runs") == []


def test_pretended_gpus_are_missing(trial: Submitted) -> None:
    wrong, _, node = doctor(trial, "cluster.gpus_per_node=2", "train.device=auto", status=1)
    assert wrong.keys() == {"GPUs"} and "CUDA_VISIBLE_DEVICES 0,1" in wrong["GPUs"]
    assert node == NODE - {"GPUs", "scratch"}


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["cluster.partition=nope"], "partition"),
        (["cluster.gpus_per_node=9"], "nodes"),
        (["cluster.nodes=5"], "nodes"),
        (["cluster.constraint=fast"], "nodes"),
    ],
)
def test_impossible_request_submits_no_job(
    trial: Submitted, arguments: list[str], what: str
) -> None:
    wrong, _, node = doctor(trial, *arguments, status=1)
    assert wrong.keys() == {what} and not node


def test_full_cluster_is_a_note(trial: Submitted) -> None:
    trial.ask(
        "sbatch",
        "--partition=high",
        "--nodes=4",
        "--exclusive",
        "--output=/dev/null",
        "--wrap",
        "sleep 60",
    )
    trial.wait(lambda: "R" in trial.ask("squeue", "--me", "-h", "-o", "%t").split())
    wrong, slurm, node = doctor(trial, "--queue-seconds", "3")
    assert wrong == {} and "job on a node" in slurm and not node
    assert len(trial.ask("squeue", "--me", "-h").splitlines()) == 1


def test_runs_folder_that_no_node_sees_is_wrong(trial: Submitted) -> None:
    assert trial.cluster
    hidden = trial.root / "hidden"
    hidden.mkdir()
    apart = [
        "unshare",
        "--mount",
        *([] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]),
    ]
    script = 'mount -t tmpfs tmpfs "$1" && shift && exec "$@"'
    arguments = [
        *apart,
        "sh",
        "-c",
        script,
        "sh",
        str(hidden),
        DFER,
        "doctor",
        "--cluster",
        "testbed",
        "--runs",
        str(hidden),
    ]
    env = trial.cluster.environment | {"PYTHONPATH": str(ROOT)}
    wrong, _, node = read(
        subprocess.run(
            arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
        ),
        1,
    )
    assert wrong.keys() == {"runs folder"} and "does not see" in wrong["runs folder"] and not node


def test_doctor_without_accounting(bare: Submitted, bare_cluster: Cluster) -> None:
    wrong, slurm, node = doctor(bare)
    assert wrong == {} and "account" in slurm and "qos" not in slurm and node == NODE - {"scratch"}
