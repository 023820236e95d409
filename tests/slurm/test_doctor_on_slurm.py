"""``dfer doctor`` on a real Slurm."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time

import pytest
from cluster import Cluster

from tests.helpers.forked import Done
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
    "locks between nodes",
    "interface",
    "all-reduce",
}
LINE = re.compile(r"(ok|note|wrong) +(n[1-4](?:, n[1-4])*: )?([^:]+): (.*)")


def read(
    done: Done | subprocess.CompletedProcess[str], status: int
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


def run(trial: Submitted, *arguments: str) -> Done:
    experiment = [
        "demo",
        f"data.shards={trial.shards.root}",
        "--cluster",
        "testbed",
        "--runs",
        str(trial.root / "runs"),
    ]
    return trial.dfer("doctor", *experiment, *arguments)


def doctor(
    trial: Submitted, *arguments: str, status: int = 0
) -> tuple[dict[str, str], set[str], set[str]]:
    return read(run(trial, *arguments), status)


def test_doctor_on_a_fine_cluster_leaves_nothing(trial: Submitted) -> None:
    done = run(trial, f"cluster.scratch={trial.root}/disk/$SLURM_JOB_ID")
    wrong, slurm, node = read(done, 0)
    assert wrong == {} and node == NODE
    both = set(re.findall("^ok +n1, n2: ([^:]*): ", done.stdout, re.MULTILINE))
    assert {"runs folder", "locks between nodes", "interface"} <= both
    line = re.search(r"n1: all-reduce: gloo, (\S+) GB/s .*, latency (\d+) µs", done.stdout)
    assert line and float(line[1]) > 0 and int(line[2]) > 0
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


def test_interface_that_is_not_there_is_wrong(trial: Submitted) -> None:
    begin = time.monotonic()
    arguments = ["cluster.environment.GLOO_SOCKET_IFNAME=eth77"]
    wrong, _, node = doctor(trial, *arguments, status=1)
    assert time.monotonic() - begin < 120
    assert wrong.keys() == {"interface"} and "GLOO_SOCKET_IFNAME=eth77" in wrong["interface"]
    assert node == NODE - {"interface", "all-reduce", "scratch"}


def test_ranks_that_do_not_find_each_other_are_wrong(trial: Submitted) -> None:
    """The port of rank 0 is another program's, which never answers."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        wrong, _, _ = doctor(trial, f"cluster.environment.MASTER_PORT={port}", status=1)
    assert wrong.keys() == {"all-reduce"} and "do not find each other" in wrong["all-reduce"]


def test_folder_that_the_second_node_does_not_see_is_wrong(trial: Submitted) -> None:
    assert trial.cluster
    runs = trial.root / "runs"
    runs.mkdir()
    pid = (trial.cluster.root / "run" / "slurmd-n2.pid").read_text().strip()
    inside = ["nsenter", "--target", pid, "--mount", "--root", "--wd"]
    if os.geteuid() != 0:
        inside += ["--user", "--preserve-credentials"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "tmpfs", str(runs)], check=True)
    try:
        wrong, _, _ = doctor(trial, status=1)
    finally:
        subprocess.run([*inside, "umount", str(runs)], check=True)
    assert wrong.keys() == {"runs folder"} and wrong["runs folder"].startswith("n2 does not see")


def test_one_node_has_no_network_to_check(trial: Submitted) -> None:
    wrong, _, node = doctor(trial, "cluster.nodes=1")
    assert wrong == {}
    assert node == NODE - {"locks between nodes", "interface", "all-reduce", "scratch"}


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
