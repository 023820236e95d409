"""What Slurm says ahead of a submission: the controller, the partition, the account, and whether it could give what a fold asks for."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from launch.doctor.checks import NOTE, OK, WRONG, Check
from launch.slurm.cluster import Cluster
from launch.slurm.sbatch_options import sent

_CLIENTS = ("sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
_PATIENCE = 15.0  # seconds for Slurm to answer
_SAVING = 30  # seconds that ranks of a large model may take to save
_GONE = (
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
    """Slurm's own words against something."""


def ask(*words: str) -> str:
    """What a client such as ``scontrol`` prints.

    Raises
    ------
    SlurmError
        If it ends with an error, or does not answer.
    """
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SINFO_", "SBATCH_"))
    }  # a person's own habits
    try:
        done = subprocess.run(
            words,
            env=env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise SlurmError(f"{words[0]} does not answer within {_PATIENCE:.0f} s") from e
    except OSError as e:
        raise SlurmError(f"{words[0]}: {e.strerror}") from e
    if done.returncode:
        said = [
            re.sub(r"^\w+: (error: )?", "", line)
            for line in done.stderr.splitlines()
            if line.strip()
        ]
        raise SlurmError("; ".join(said) or f"{words[0]} ends with status {done.returncode}")
    return done.stdout + (done.stderr if "--test-only" in words else "")


def pairs(line: str) -> dict[str, str]:
    """``KEY=VALUE`` words, as ``scontrol --oneliner`` prints them."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def request(
    cluster: Cluster, nodes: int, tasks: int, minutes: int, memory_gb: float | None
) -> list[str]:
    """Options of ``sbatch`` for a part of a cluster."""
    plain = ("partition", "account", "qos", "constraint")
    words = [f"--{key}={getattr(cluster, key)}" for key in plain if getattr(cluster, key)]
    words += [
        f"--nodes={nodes}",
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={cluster.cpus_per_task}",
        f"--time={minutes}",
    ]
    if cluster.gpus_per_node and "gres" not in sent(cluster.sbatch):
        words.append(f"--gpus-per-node={cluster.gpus_per_node}")
    return words + ([f"--mem={round(1024 * memory_gb)}MB"] if memory_gb else [])


def examine_slurm(cluster: Cluster) -> Iterator[Check]:
    """Ask Slurm whether it would run such jobs. Ends early where the rest would only repeat what is wrong."""
    missing = [name for name in _CLIENTS if not shutil.which(name)]
    if missing:
        yield Check(
            "Slurm",
            WRONG,
            f"{', '.join(missing)} not on PATH: log in to the cluster, or load its module",
        )
        return
    try:
        config = _config()
        yield Check("Slurm", OK, f"{ask('sinfo', '--version').strip()}, the controller answers")
        partitions = {
            p["PartitionName"]: p
            for p in map(pairs, ask("scontrol", "--oneliner", "show", "partition").splitlines())
            if p
        }
        there = _partition(cluster, partitions)
        yield there
        if there.state == WRONG:
            return
        name = cluster.partition or _default(partitions)
        own = partitions[name or ""]
        nodes = [
            Node.read(line)
            for line in ask(
                "sinfo", "-h", "-N", "-p", name or "", "-o", "%N|%c|%m|%T|%f|%G"
            ).splitlines()
        ]
        enough = _nodes(cluster, list({node.name: node for node in nodes}.values()))
        yield enough
        yield from _accounts(cluster, own, config)
        yield _time(cluster, own)
        if enough.state != WRONG:  # Slurm would say the same in other words
            yield _taken(cluster)
        yield _preemption(own, config)
        yield _kill_wait(cluster, config)
        yield _requeue(config)
    except SlurmError as e:
        yield Check(
            "Slurm",
            WRONG,
            f"{e}: is this a login node of the cluster, and the controller up (scontrol ping)?",
        )


def _config() -> dict[str, str]:
    rows = (line.partition("=") for line in ask("scontrol", "show", "config").splitlines())
    return {key.strip(): value.strip() for key, eq, value in rows if eq}


def _default(partitions: dict[str, dict[str, str]]) -> str | None:
    return next((name for name, p in partitions.items() if p.get("Default") == "YES"), None)


def _partition(cluster: Cluster, partitions: dict[str, dict[str, str]]) -> Check:
    name = cluster.partition or _default(partitions)
    known = f"this cluster has {', '.join(partitions) or 'none'}"
    if name is None:
        return Check(
            "partition",
            WRONG,
            f"none is given, and Slurm has no default: {known}; give cluster.partition=NAME",
        )
    if name not in partitions:
        return Check("partition", WRONG, f"there is no '{name}': {known}")
    state, nodes = partitions[name].get("State", "?"), partitions[name].get("TotalNodes", "?")
    if state != "UP":
        return Check(
            "partition",
            WRONG,
            f"{name} is {state}: jobs wait in it for ever; take another, or ask the administrators",
        )
    return Check("partition", OK, f"{name} is up, {nodes} nodes")


@dataclass(frozen=True)
class Node:
    """A line of ``sinfo``; memory in GB (2^30 bytes)."""

    name: str
    cpus: int
    memory: float
    state: str
    features: frozenset[str]
    gpus: int

    @classmethod
    def read(cls, line: str) -> Node:
        name, cpus, memory, state, features, gres = line.split("|", 5)
        gpus = sum(int(n) for n in re.findall(r"\bgpu:(?:[^:,()]+:)?(\d+)", gres))
        return cls(
            name,
            _number(cpus),
            _number(memory) / 1024,
            state.lower(),
            frozenset(features.split(",")),
            gpus,
        )

    @property
    def usable(self) -> bool:
        return not (self.state.endswith("*") or any(word in self.state for word in _GONE))


def _number(word: str) -> int:
    return int(re.match(r"\d+", word)[0]) if re.match(r"\d", word) else 0  # type: ignore[index]


def _nodes(cluster: Cluster, nodes: list[Node]) -> Check:
    """Whether enough nodes are large enough and in service."""
    cpus = cluster.tasks * cluster.cpus_per_task
    wishes = [
        ("gpus", cluster.gpus_per_node, "GPU"),
        ("cpus", cpus, "processor"),
        ("memory", cluster.memory_gb or 0, "GB of memory"),
    ]
    for key, wish, word in wishes:
        most = max((getattr(node, key) for node in nodes), default=0)
        if most < wish:
            return Check(
                "nodes",
                WRONG,
                f"{_many(wish, word)} of a node asked for, the largest of the partition has {most:.3g}: ask for less",
            )
    fit = [node for node in nodes if all(getattr(node, key) >= wish for key, wish, _ in wishes)]
    wanted = " and ".join(_many(wish, word) for _, wish, word in wishes if wish)
    if plain := re.fullmatch(
        r"[\w.-]+(&[\w.-]+)*", cluster.constraint or ""
    ):  # of others Slurm alone can judge
        fit = [node for node in fit if set(plain[0].split("&")) <= node.features]
        wanted += f" and the feature {cluster.constraint}"
    if len(fit) < cluster.nodes:
        return Check(
            "nodes",
            WRONG,
            f"{cluster.nodes} asked for, the partition has {len(fit)} with {wanted}: ask for less",
        )
    usable = sum(node.usable for node in fit)
    words = f"{cluster.nodes} asked for; of {len(fit)} with {wanted} {usable} are in service"
    if usable < cluster.nodes:
        return Check(
            "nodes",
            WRONG,
            f"{words}: folds wait until more come back (sinfo -R says why they are down)",
        )
    return Check("nodes", OK, words)


def _many(number: float, word: str) -> str:
    return f"{number:g} {word}{'' if number == 1 or ' ' in word else 's'}"


def _accounts(
    cluster: Cluster, partition: dict[str, str], config: dict[str, str]
) -> Iterator[Check]:
    for key, allowed in (
        ("account", partition.get("AllowAccounts", "ALL")),
        ("qos", partition.get("AllowQos", "ALL")),
    ):
        given = getattr(cluster, key)
        if given and allowed != "ALL" and given not in allowed.split(","):
            yield Check(key, WRONG, f"the partition does not take '{given}', only {allowed}")
            return
    if "none" in config.get("AccountingStorageType", "none"):
        yield Check("account", OK, "accounting off: not checked")
        return
    try:
        rows = ask(
            "sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", "format=account,qos"
        ).splitlines()
    except SlurmError as e:
        yield Check("account", NOTE, f"not checked, accounting does not answer: {e}")
        return
    enforcement = config.get("AccountingStorageEnforce", "none")
    if not rows and "associations" in enforcement:
        yield Check(
            "account",
            WRONG,
            "you have none here, and this cluster wants one: ask its administrators",
        )
        return
    mine = {
        "account": {row.split("|")[0] for row in rows},
        "qos": {q for row in rows for q in row.split("|")[1].split(",") if q},
    }
    enforced = {"account": "associations", "qos": "qos"}
    for key, word in enforced.items():
        given, known = getattr(cluster, key), ", ".join(sorted(mine[key])) or "none"
        strict = word in enforcement
        if given and given not in mine[key]:
            yield Check(
                key,
                WRONG if strict else NOTE,
                f"'{given}' is not among yours ({known}){'' if strict else '; this cluster does not mind'}",
            )
        else:
            yield Check(key, OK, given or f"the default of yours ({known})")


def seconds(word: str) -> float:
    """Slurm's ``DAYS-HH:MM:SS`` in seconds; infinite for ``UNLIMITED``."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", word)
    if not found:
        return float("inf")
    days, hours, minutes, rest = (int(n or 0) for n in found.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + rest


def _time(cluster: Cluster, partition: dict[str, str]) -> Check:
    most = partition.get("MaxTime", "UNLIMITED")
    if 60 * cluster.time_minutes > seconds(most):
        fits = int(seconds(most) // 60)
        return Check(
            "time",
            WRONG,
            f"{cluster.time_minutes} minutes, the partition allows {fits}: give cluster.time_minutes={fits}; folds resume in a new job",
        )
    words = f"{cluster.time_minutes} minutes (the partition allows {most.lower()}), ranks are told {cluster.notice_seconds} s before"
    return Check("time", OK, words)


def _taken(cluster: Cluster) -> Check:
    """Slurm's own verdict on the job of a fold, which is not submitted."""
    words = request(cluster, cluster.nodes, cluster.tasks, cluster.time_minutes, cluster.memory_gb)
    try:
        said = ask("sbatch", "--test-only", "--requeue", *words, "--wrap", "true")
    except SlurmError as e:
        return Check("a fold's job", WRONG, f"Slurm would not take it: {e}")
    start = re.search(r"to start at (\S+)", said)
    return Check(
        "a fold's job",
        OK,
        f"Slurm would take it{f' and start it at {start[1]}' if start else ''} (sbatch --test-only)",
    )


def _preemption(partition: dict[str, str], config: dict[str, str]) -> Check:
    mode, grace = partition.get("PreemptMode", "OFF"), _number(partition.get("GraceTime", "0"))
    kind = config.get("PreemptType", "preempt/none")
    if kind.endswith("none") or mode == "OFF":
        return Check("preemption", OK, "jobs of this partition are not preempted")
    if kind.endswith("qos"):
        return Check(
            "preemption",
            NOTE,
            "by QOS: sacctmgr show qos format=name,preemptmode,gracetime tells how long jobs get to save",
        )
    if "SUSPEND" in mode:
        return Check(
            "preemption",
            NOTE,
            f"{mode}: ranks are stopped, not ended; for longer than train.hang_minutes they end, and go on from their last save",
        )
    hard = (
        ""
        if "REQUEUE" in mode
        else f", and {mode} does not bring a job back that has not left by then"
    )
    if grace < _SAVING or hard:
        lost = f"what takes longer to save is lost back to the last checkpoint (train.save_minutes){hard}"
        return Check("preemption", NOTE, f"{mode}, {grace} s after SIGTERM (GraceTime): {lost}")
    return Check("preemption", OK, f"{mode}, {grace} s after SIGTERM (GraceTime)")


def _kill_wait(cluster: Cluster, config: dict[str, str]) -> Check:
    wait = _number(config.get("KillWait", "30"))
    words = f"{wait} s from SIGTERM to SIGKILL after scancel or at the time limit (KillWait)"
    if wait >= _SAVING:
        return Check("leaving", OK, words)
    if cluster.notice_seconds < _SAVING:
        return Check(
            "leaving",
            WRONG,
            f"{words}, and notice_seconds={cluster.notice_seconds}: too short to save; give cluster.notice_seconds=120",
        )
    return Check(
        "leaving",
        NOTE,
        f"{words}: short, so ranks are told {cluster.notice_seconds} s before the limit; after scancel a large model may not be saved",
    )


def _requeue(config: dict[str, str]) -> Check:
    default = (
        ""
        if config.get("JobRequeue") == "1"
        else "; off by default here (JobRequeue=0), which --requeue overrides"
    )
    return Check("requeue", OK, f"folds ask for it (--requeue), their output is appended{default}")
