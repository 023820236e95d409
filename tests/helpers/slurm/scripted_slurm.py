"""Slurm clients for ``dfer doctor``, which print what a test sets."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.slurm.cluster import Cluster

CONFIG = {
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AccountingStorageEnforce": "associations,limits,qos",
    "KillWait": "30 sec",
    "JobRequeue": "1",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
}
PARTITION = (
    "PartitionName=gpu AllowAccounts=ALL AllowQos=ALL Default=YES GraceTime=120 "
    "MaxTime=2-00:00:00 PreemptMode=REQUEUE State=UP TotalNodes=3"
)
NODES = [f"n{i}|64|256000|idle|a100,ib|gpu:a100:8(S:0-1)" for i in (1, 2, 3)]
FINE = Cluster(
    partition="gpu", nodes=2, gpus_per_node=8, memory_gb=200, time_minutes=600, constraint="a100&ib"
)

# what each client does: $root holds what it prints
SCRIPTS = {
    "scontrol": """
        case "$*" in
        *"show config"*) cat $root/config;;
        *"show partition"*) cat $root/partitions;;
        *"show job"*) cat $root/job;;
        esac""",
    "sinfo": 'case "$*" in *--version*) echo slurm 23.11.4;; *) cat $root/nodes;; esac',
    "sbatch": """
        case "$*" in
        *--test-only*)
            refusal=$root/refusal
            grep -q job-name=dfer-summary "${@: -1}" && refusal=$root/refusal-of-summary
            cat $refusal >&2; [ ! -s $refusal ];;
        *) echo 77; echo "$@" > $root/submitted; eval "${start:-}";;
        esac""",
    "sacctmgr": "cat $root/accounts",
    "scancel": 'echo "$@" >> $root/cancelled; eval "${deliver:-}"',
    "squeue": "true",
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
}


@dataclass
class ScriptedSlurm:
    """The folder of the clients and of what they print."""

    root: Path

    def set_output(self, name: str, *lines: str) -> None:
        (self.root / name).write_text("".join(f"{line}\n" for line in lines))

    def break_client(self, client: str, message: str) -> None:
        (self.root / client).write_text(
            f"#!/bin/sh\necho '{client}: error: {message}' >&2\nexit 1\n"
        )

    def config(self, **changes: str) -> None:
        self.set_output(
            "config",
            "Configuration data as of now",
            *(f"{k:<24}= {v}" for k, v in (CONFIG | changes).items()),
        )

    def job(self, state: str, reason: str = "None", status: int = 0) -> None:
        self.set_output(
            "job", f"JobId=77 JobState={state} Reason={reason} NodeList=n9 ExitCode={status}:0"
        )


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedSlurm:
    """A Slurm on which :data:`FINE` may run."""
    slurm = ScriptedSlurm(tmp_path / "bin")
    slurm.root.mkdir()
    for name, text in SCRIPTS.items():
        file = slurm.root / name
        file.write_text(f"#!/bin/bash\nroot={slurm.root}\n{text}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{slurm.root}{os.pathsep}{os.environ['PATH']}")
    slurm.config()
    slurm.set_output(
        "partitions", PARTITION, PARTITION.replace("=gpu", "=long").replace("YES", "NO")
    )
    slurm.set_output("nodes", *NODES)
    slurm.set_output("accounts", "lab|normal,high", "other|normal")
    slurm.set_output("refusal")
    slurm.set_output("refusal-of-summary")
    return slurm
