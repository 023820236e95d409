"""``dfer doctor`` where something is wrong: a Slurm that says what it is told, and machines that lack things."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sqlite3
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from dfer_dist.utils.hardware import filesystem
from launch.doctor import machine, probe, trial
from launch.doctor.checks import NOTE, OK, WRONG, Check, on_network
from launch.doctor.clients import Node, parse_seconds
from launch.doctor.machine import MachineRequest
from launch.doctor.partition import check_slurm
from launch.slurm.cluster import Cluster
from tests.helpers.cli import check_refusal, dfer

CONFIG = {
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AccountingStorageEnforce": "associations,limits,qos",
}
CONFIG |= {
    "KillWait": "30 sec",
    "JobRequeue": "1",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
}
PARTITION = "PartitionName=gpu AllowAccounts=ALL AllowQos=ALL Default=YES GraceTime=120 MaxTime=2-00:00:00 PreemptMode=REQUEUE State=UP TotalNodes=3"
NODES = [f"n{i}|64|256000|idle|a100,ib|gpu:a100:8(S:0-1)" for i in (1, 2, 3)]
FINE = Cluster(
    partition="gpu", nodes=2, gpus_per_node=8, memory_gb=200, time_minutes=600, constraint="a100&ib"
)

# what each client does: $root holds what it prints
SCRIPTS = {
    "scontrol": 'case "$*" in *"show config"*) cat $root/config;; *"show partition"*) cat $root/partitions;; *"show job"*) cat $root/job;; esac',
    "sinfo": 'case "$*" in *--version*) echo slurm 23.11.4;; *) cat $root/nodes;; esac',
    "sbatch": 'case "$*" in *--test-only*) cat $root/refusal >&2; [ ! -s $root/refusal ];; *) echo 77; echo "$@" > $root/submitted; eval "${start:-}";; esac',
    "sacctmgr": "cat $root/accounts",
    "scancel": 'echo "$@" >> $root/cancelled; eval "${deliver:-}"',
    "squeue": "true",
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
}


@dataclass
class Slurm:
    root: Path

    def say(self, name: str, *lines: str) -> None:
        (self.root / name).write_text("".join(f"{line}\n" for line in lines))

    def break_(self, client: str, words: str) -> None:
        (self.root / client).write_text(f"#!/bin/sh\necho '{client}: error: {words}' >&2\nexit 1\n")

    def config(self, **changes: str) -> None:
        self.say(
            "config",
            "Configuration data as of now",
            *(f"{k:<24}= {v}" for k, v in (CONFIG | changes).items()),
        )

    def job(self, state: str, reason: str = "None", status: int = 0) -> None:
        self.say(
            "job", f"JobId=77 JobState={state} Reason={reason} NodeList=n9 ExitCode={status}:0"
        )


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """One on which :data:`FINE` may run."""
    slurm = Slurm(tmp_path / "bin")
    slurm.root.mkdir()
    for name, text in SCRIPTS.items():
        file = slurm.root / name
        file.write_text(f"#!/bin/bash\nroot={slurm.root}\n{text}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{slurm.root}{os.pathsep}{os.environ['PATH']}")
    slurm.config()
    slurm.say("partitions", PARTITION, PARTITION.replace("=gpu", "=long").replace("YES", "NO"))
    slurm.say("nodes", *NODES)
    slurm.say("accounts", "lab|normal,high", "other|normal")
    slurm.say("refusal")
    return slurm


def wrong(cluster: Cluster) -> list[Check]:
    return [check for check in check_slurm(cluster) if check.state != OK]


def test_all_is_well(slurm: Slurm) -> None:
    checks = list(check_slurm(replace(FINE, account="lab", qos="high")))
    assert {check.state for check in checks} == {OK}
    assert [check.subject for check in checks][:6] == [
        "Slurm",
        "partition",
        "nodes",
        "account",
        "qos",
        "time",
    ]
    assert wrong(replace(FINE, partition=None)) == []  # the default


CASES: dict[str, tuple[dict[str, object], dict[str, list[str]], str, str, str]] = {
    "partition": ({"partition": "cpu"}, {}, WRONG, "partition", "no 'cpu': this cluster has gpu, long"),
    "no default": ({"partition": None}, {"partitions": [PARTITION.replace("YES", "NO")]}, WRONG, "partition", "cluster.partition=NAME"),
    "closed": ({}, {"partitions": [PARTITION.replace("State=UP", "State=DRAIN")]}, WRONG, "partition", "gpu is DRAIN"),
    "gpus": ({"gpus_per_node": 9, "cpus_per_task": 1}, {}, WRONG, "nodes", "9 GPUs of a node asked for, the largest of the partition has 8"),
    "processors": ({"cpus_per_task": 9}, {}, WRONG, "nodes", "72 processors"),
    "memory": ({"memory_gb": 300}, {}, WRONG, "nodes", "300 GB of memory of a node asked for, the largest of the partition has 250"),
    "number of nodes": ({"nodes": 4}, {}, WRONG, "nodes", "4 asked for, the partition has 3"),
    "feature": ({"constraint": "h100"}, {}, WRONG, "nodes", "has 0 with .* the feature h100"),
    "nodes down": ({}, {"nodes": [NODES[0], *(n.replace("idle", s) for n, s in zip(NODES[1:], ("drained", "idle*"), strict=True))]},
                   WRONG, "nodes", "3 with .* 1 are in service"),
    "account": ({"account": "theirs"}, {}, WRONG, "account", r"'theirs' is not among yours \(lab, other\)$"),
    "qos": ({"qos": "urgent"}, {}, WRONG, "qos", r"'urgent' is not among yours \(high, normal\)$"),
    "nobody": ({}, {"accounts": []}, WRONG, "account", "you have none here"),
    "account of the partition": ({"account": "lab"}, {"partitions": [PARTITION.replace("AllowAccounts=ALL", "AllowAccounts=x,y")]},
                                 WRONG, "account", "does not take 'lab', only x,y"),
    "time": ({"time_minutes": 2881}, {}, WRONG, "time", "the partition allows 2880: give cluster.time_minutes=2880"),
    "refused": ({}, {"refusal": ["sbatch: error: QOSMaxGRESPerUser", "allocation failure: no"]}, WRONG, "a fold's job", "QOSMaxGRESPerUser; allocation failure: no$"),
    "short grace": ({}, {"partitions": [PARTITION.replace("GraceTime=120", "GraceTime=5")]}, NOTE, "preemption", "REQUEUE, 5 s after SIGTERM"),
    "cancelled": ({}, {"partitions": [PARTITION.replace("=REQUEUE", "=CANCEL")]}, NOTE, "preemption", "does not bring a job back"),
    "suspended": ({}, {"partitions": [PARTITION.replace("=REQUEUE", "=GANG,SUSPEND")]}, NOTE, "preemption", "stopped, not ended"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_named_and_nothing_else(slurm: Slurm, name: str) -> None:
    changes, says, state, what, words = CASES[name]
    for file, lines in says.items():
        slurm.say(file, *lines)
    (found,) = wrong(replace(FINE, **changes))  # type: ignore[arg-type]
    assert (found.state, found.subject) == (state, what)
    assert re.search(words, found.text), found.text


@pytest.mark.parametrize(
    ("changes", "cluster", "expected"),
    [
        ({"AccountingStorageType": "accounting_storage/none"}, replace(FINE, account="theirs"), []),
        (
            {"AccountingStorageEnforce": "none"},
            replace(FINE, account="theirs"),
            [(NOTE, "account")],
        ),
        ({"PreemptType": "preempt/none"}, FINE, []),
        ({"PreemptType": "preempt/qos"}, FINE, [(NOTE, "preemption")]),
        ({"KillWait": "10 sec"}, FINE, [(NOTE, "exit")]),
        ({"KillWait": "10 sec"}, replace(FINE, notice_seconds=20), [(WRONG, "exit")]),
        ({"JobRequeue": "0"}, FINE, []),
    ],
)
def test_what_the_clusters_configuration_means(
    slurm: Slurm, changes: dict[str, str], cluster: Cluster, expected: list[tuple[str, str]]
) -> None:
    slurm.config(**changes)
    assert [(check.state, check.subject) for check in wrong(cluster)] == expected


def test_a_slurm_that_does_not_answer_is_one_line(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.break_("sacctmgr", "Connection refused")
    (found,) = wrong(FINE)
    assert found.state == NOTE and "Connection refused" in found.text
    slurm.break_("scontrol", "Unable to contact slurm controller")
    (found,) = wrong(FINE)
    assert found.state == WRONG and found.text.startswith(
        "Unable to contact slurm controller: is this a login node"
    )
    (slurm.root / "sinfo").unlink()
    monkeypatch.setenv("PATH", str(slurm.root))
    (found,) = check_slurm(FINE)
    assert found.text.startswith("sinfo not on PATH")


def test_words_of_slurm_are_read() -> None:
    assert [parse_seconds(w) for w in ("30:00", "01:00:00", "2-00:00:00", "UNLIMITED")] == [
        1800,
        3600,
        172800,
        float("inf"),
    ]
    node = Node.parse("n1|8+|8000|mixed|(null)|gpu:a100:2(S:0),gpu:h100:1,shard:16")
    assert (node.cpus, node.gpus, node.in_service) == (8, 3, True)
    assert Node.parse("n1|8|8000|idle|x|(null)").gpus == 0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(trial, "_POLL", 0.01)
    monkeypatch.setattr(trial, "_CACHE_SECONDS", 0.05)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def silence(place: Path, queue_seconds: float = 0.1) -> Check:
    (check,) = trial.check_node(
        replace(FINE, setup=["module load x"]), MachineRequest(), place, queue_seconds
    )
    return check


@pytest.mark.parametrize(
    ("state", "status", "printed", "what", "words"),
    [
        ("FAILED", 33, "", "runs folder", "n9 does not see "),
        ("FAILED", 34, "", "python", "n9 does not see "),
        (
            "FAILED",
            1,
            "Traceback\nImportError: no x\nsrun: error: n9: task 0: Exited",
            "job on a node",
            "status 1): ImportError: no x",
        ),
        ("FAILED", 1, "srun: error: no cpus", "job on a node", "srun: error: no cpus"),
        ("NODE_FAIL", 0, "", "job on a node", "n9 ended it (NODE_FAIL, status 0): without output"),
    ],
)
def test_a_job_that_ends_without_a_report(
    slurm: Slurm, place: Path, state: str, status: int, printed: str, what: str, words: str
) -> None:
    slurm.job(state, status=status)
    if printed:
        (place / "out.txt").write_text(printed)
    check = silence(place)
    assert (check.state, check.subject) == (WRONG, what) and words in check.text
    submitted = (slurm.root / "submitted").read_text()
    assert (
        "--nodes=1 " in submitted
        and "--gpus-per-node=8" in submitted
        and "--time=2 " in submitted
        and "--mem=8192MB" in submitted
    )
    assert (slurm.root / "cancelled").read_text().split() == ["77"]


def test_a_job_that_waits(slurm: Slurm, place: Path) -> None:
    slurm.job("PENDING", "Resources")
    check = silence(place)
    assert check.state == NOTE and "nodes are busy (Resources)" in check.text
    slurm.job("PENDING", "PartitionTimeLimit")
    begin = time.monotonic()
    check = silence(place, queue_seconds=60)
    assert time.monotonic() - begin < 10  # it would wait for ever
    assert check.state == WRONG and "more time than the partition allows" in check.text
    slurm.break_("sbatch", "Batch job submission failed: QOS")
    assert silence(place).text == "Slurm refuses it: Batch job submission failed: QOS"


def test_a_lock_must_be_felt_on_the_other_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = probe.lock_folder(tmp_path)
    assert probe.check_shared_folder(tmp_path).state == OK
    os.close(held)
    check = probe.check_shared_folder(tmp_path)
    assert check.state == WRONG and "not seen" in check.text

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    check = probe.check_shared_folder(tmp_path)
    assert check.state == WRONG and "has no flock (No locks available)" in check.text


def test_signals_that_do_not_come_are_named() -> None:
    assert probe.check_signals(["SIGTERM", "SIGUSR2"]).state == OK
    check = probe.check_signals(["SIGTERM"])
    assert check.state == WRONG and check.text.startswith("SIGUSR2 sent to the job reached no rank")


def test_file_systems_are_known_by_their_mounts(tmp_path: Path) -> None:
    assert filesystem(Path("/proc/self")) == "proc"
    assert filesystem(tmp_path) == filesystem(tmp_path / "not" / "there")
    assert on_network("nfs4") and on_network("fuse.sshfs") and not on_network("ext4")


def look(name: str, ask: MachineRequest) -> Check:
    (found,) = [check for check in machine.check_machine(ask) if check.subject == name]
    return found


def test_what_a_machine_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_NEEDED", ("torch", "no_such_package"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (tmp_path / "file").write_text("")
    found = {
        check.subject: check
        for check in machine.check_machine(
            MachineRequest(gpus=2, cpus=999, scratch=str(tmp_path / "file" / "x"))
        )
    }
    assert (
        found["python"].state == WRONG
        and "cannot import no_such_package (ModuleNotFoundError" in found["python"].text
    )
    assert (
        found["GPUs"].state == WRONG
        and "2 asked for, torch sees 0 (Slurm shows 0,1" in found["GPUs"].text
    )
    assert found["processors"].state == NOTE
    assert (
        found["DeepSpeed"].state == WRONG
        and "-m dfer_dist.training.engine" in found["DeepSpeed"].text
    )
    assert (
        found["scratch"].state == WRONG
        and "cannot be written (Not a directory)" in found["scratch"].text
    )
    monkeypatch.setattr(machine, "filesystem", lambda _: "nfs4")
    assert look("scratch", MachineRequest(scratch=str(tmp_path / "new"))).state == NOTE
    assert look("scratch", MachineRequest(scratch="$DFER_UNSET/x")).state == WRONG


def test_tracking_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mlflow.db"
    assert (
        look("tracking", MachineRequest(tracking=f"sqlite:///{file}")).state == OK
        and not file.exists()
    )
    with sqlite3.connect(file) as store:
        store.execute("create table other (x)")
    check = look("tracking", MachineRequest(tracking=f"sqlite:///{file}"))
    assert check.state == WRONG and "no such table" in check.text
    with sqlite3.connect(file) as store:
        store.execute("create table experiments (x)")
    assert look("tracking", MachineRequest(tracking=f"sqlite:///{file}")).state == OK
    monkeypatch.setattr(machine, "filesystem", lambda _: "nfs4")
    check = look("tracking", MachineRequest(tracking=f"sqlite:///{file}"))
    assert check.state == NOTE and "tracking.uri=http" in check.text
    check = look("tracking", MachineRequest(tracking="http://127.0.0.1:9"))
    assert check.state == WRONG and "cannot be reached" in check.text


def test_this_machine_and_an_experiment(tmp_path: Path, tiny_shards: Index) -> None:
    done = dfer(
        "doctor",
        "demo",
        "model.pretrained=gone.pt",
        f"data.shards={tiny_shards.root}",
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[-1] == "1 thing is wrong" and done.stderr == ""
    assert (
        [line for line in lines if line.startswith("wrong")]
        == [line for line in lines if "weights: 'gone.pt'" in line]
        != []
    )
    assert any(line.startswith("ok    shards: dfew, 60 clips in 15 shards") for line in lines)
    check_refusal(
        dfer("doctor", "demo", "cluster.partition=gpu", cwd=tmp_path),
        "cluster.partition=gpu is for a cluster",
    )


def test_a_node_is_looked_at_by_a_small_job(
    slurm: Slurm, tmp_path: Path, tiny_shards: Index
) -> None:
    """The job runs here, and signals for it are sent to the process that the batch script has become."""
    slurm.say("job", "JobId=77 JobState=RUNNING Reason=None")
    slurm.say("nodes", *NODES)
    cluster = tmp_path / "here.yaml"
    cluster.write_text(
        "partition: gpu\ncpus_per_task: 1\nscratch: $DFER_SCRATCH/me\nsetup: [module load nothing]\n"
    )
    environment = {
        "start": 'bash "${!#}" & echo $! > $root/pid',
        "deliver": '[ $# = 1 ] || kill "-${1#--signal=}" $(cat $root/pid)',
    }
    words = ["doctor", "demo", f"data.shards={tiny_shards.root}", "--cluster", cluster]
    done = dfer(*words, cwd=tmp_path, DFER_SCRATCH=str(tmp_path / "disk"), **environment)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    host = os.uname().nodename
    assert any(
        line.startswith(f"note  {host}: setup: its lines print: ") and "not found" in line
        for line in lines
    )
    for name in (
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
    ):
        assert sum(line.startswith(f"ok    {host}: {name}: ") for line in lines) == 1, (name, lines)
    assert f"kept in {tmp_path}/disk/me" in done.stdout
    assert os.listdir(tmp_path / "runs") == []
