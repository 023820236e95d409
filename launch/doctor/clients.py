"""Slurm's clients: run them, and read what they print."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass

from launch.slurm.batch import memory
from launch.slurm.cluster import Cluster
from launch.slurm.sbatch_options import arguments, count_gpus, sent

_TIMEOUT = 15.0  # seconds for Slurm to answer
_OUT_OF_SERVICE = (
    "down",
    "drain",
    "drng",
    "fail",
    "maint",
    "power",
    "boot",
    "not_resp",
    "unk",
    "inval",
    "reserved",
)


class SlurmError(Exception):
    """A reason that Slurm gives for an error."""


def run_client(*command: str) -> str:
    """Run a client such as ``scontrol`` and return what it prints.

    Raises
    ------
    SlurmError
        If it ends with an error, or does not answer.
    """
    # the user's own variables may change what is printed
    habits = ("SQUEUE_", "SINFO_", "SBATCH_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(habits)}
    try:
        done = subprocess.run(
            command,
            env=env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise SlurmError(f"{command[0]} does not answer within {_TIMEOUT:.0f} s") from e
    except OSError as e:
        raise SlurmError(f"{command[0]}: {e.strerror}") from e
    if done.returncode:
        lines = (line for line in done.stderr.splitlines() if line.strip())
        reasons = "; ".join(re.sub(r"^\w+: (error: )?", "", line) for line in lines)
        raise SlurmError(reasons or f"{command[0]} ends with status {done.returncode}")
    # sbatch --test-only prints its verdict to stderr
    return done.stdout + (done.stderr if "--test-only" in command else "")


def parse_pairs(line: str) -> dict[str, str]:
    """Return the ``KEY=VALUE`` pairs of ``scontrol --oneliner``."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def parse_number(text: str) -> int:
    """Return the number at the beginning of a text, such as ``30 sec``; 0 if there is none."""
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0


def parse_seconds(text: str) -> float:
    """Return Slurm's ``DAYS-HH:MM:SS`` in seconds; infinite for ``UNLIMITED``."""
    parts = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not parts:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds


def sbatch_arguments(
    cluster: Cluster,
    nodes: int,
    tasks: int,
    minutes: int,
    memory_gb: float | None,
    without: Collection[str] = (),
) -> list[str]:
    """Return the options of ``sbatch`` for a job on a cluster.

    Parameters
    ----------
    cluster : Cluster
        The cluster.
    nodes, tasks : int
        Nodes, and tasks on each of them.
    minutes : int
        The time limit.
    memory_gb : float, optional
        Memory of each node.
    without : collection of str
        Options of ``cluster.sbatch`` to leave out.
    """
    placement = ("partition", "account", "qos", "constraint")
    options = [f"--{key}={getattr(cluster, key)}" for key in placement if getattr(cluster, key)]
    options += [
        f"--nodes={nodes}",
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={cluster.cpus_per_task}",
        f"--time={minutes}",
    ]
    if cluster.gpus_per_node and "gres" not in sent(cluster.sbatch):
        options.append(f"--gpus-per-node={cluster.gpus_per_node}")
    if memory_gb:
        options.append(f"--mem={memory(memory_gb)}")
    further = {key: value for key, value in cluster.sbatch.items() if key not in without}
    return options + arguments(further)


@dataclass(frozen=True)
class SlurmConfig:
    """The parts of ``scontrol show config`` that matter to a job."""

    accounting: bool  # whether there is an accounting database
    enforced: str  # such as associations,limits,qos
    kill_wait: int  # seconds from SIGTERM to SIGKILL
    requeues: bool  # whether jobs are requeued by default
    preempt_type: str

    @classmethod
    def parse(cls, text: str) -> SlurmConfig:
        """Read the output of ``scontrol show config``."""
        rows = (line.partition("=") for line in text.splitlines())
        values = {key.strip(): value.strip() for key, equals, value in rows if equals}
        return cls(
            accounting="none" not in values.get("AccountingStorageType", "none"),
            enforced=values.get("AccountingStorageEnforce", "none"),
            kill_wait=parse_number(values.get("KillWait", "30")),
            requeues=values.get("JobRequeue") == "1",
            preempt_type=values.get("PreemptType", "preempt/none"),
        )


@dataclass(frozen=True)
class Partition:
    """A line of ``scontrol --oneliner show partition``."""

    name: str
    is_default: bool
    state: str
    num_nodes: str
    max_time: str
    accounts: str  # ALL, or names
    qos: str  # ALL, or names
    preempt_mode: str
    grace: int  # seconds from SIGTERM to SIGKILL when a job is preempted

    @classmethod
    def parse(cls, line: str) -> Partition | None:
        """Read a line; None if it has no partition."""
        values = parse_pairs(line)
        if "PartitionName" not in values:
            return None
        return cls(
            name=values["PartitionName"],
            is_default=values.get("Default") == "YES",
            state=values.get("State", "?"),
            num_nodes=values.get("TotalNodes", "?"),
            max_time=values.get("MaxTime", "UNLIMITED"),
            accounts=values.get("AllowAccounts", "ALL"),
            qos=values.get("AllowQos", "ALL"),
            preempt_mode=values.get("PreemptMode", "OFF"),
            grace=parse_number(values.get("GraceTime", "0")),
        )


@dataclass(frozen=True)
class Node:
    """A line of ``sinfo``; memory in GB (2**30 bytes)."""

    name: str
    cpus: int
    memory: float
    state: str
    features: frozenset[str]
    gpus: int

    @classmethod
    def parse(cls, line: str) -> Node:
        """Read a line in the format ``%N|%c|%m|%T|%f|%G``."""
        name, cpus, megabytes, state, features, gres = line.split("|", 5)
        return cls(
            name=name,
            cpus=parse_number(cpus),
            memory=parse_number(megabytes) / 1024,
            state=state.lower(),
            features=frozenset(features.split(",")),
            gpus=count_gpus(gres),
        )

    @property
    def in_service(self) -> bool:
        """Whether jobs can run on it."""
        is_silent = self.state.endswith("*")
        return not is_silent and not any(word in self.state for word in _OUT_OF_SERVICE)
