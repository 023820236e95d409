"""Check ahead of a submission whether Slurm could give a fold what it asks for."""

from __future__ import annotations

import getpass
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import first_of
from launch.doctor.checks import OK, WRONG, Check, Result, note, ok, wrong
from launch.slurm.batch import (
    ArrayTask,
    ClusterTarget,
    make_executor,
    make_summary_executor,
    script_text,
)
from launch.slurm.clients import SlurmError, foreign_variables, parse_pairs, run_client
from launch.slurm.cluster import Cluster
from launch.slurm.sbatch_options import count_gpus

Fields = dict[str, str]  # of a partition or of the configuration, named as scontrol names them

_CLIENTS = ("sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
_MAX_SHOWN = 5  # variables
_SAVE_SECONDS = 30  # that ranks of a large model may take to save
# parts of the states in which a node runs no job; * marks one that does not answer
_OUT_OF_SERVICE = re.compile(
    r"down|drain|drng|fail|maint|power|boot|not_resp|unk|inval|reserved|\*$"
)


@dataclass(frozen=True)
class Node:
    """A line of ``sinfo``."""

    name: str
    sizes: dict[str, float]  # by unit
    in_service: bool  # whether jobs can run on it
    features: frozenset[str]

    @classmethod
    def parse(cls, line: str) -> Node:
        """Read a line in the format ``%N|%c|%m|%T|%f|%G``."""
        name, cpus, megabytes, state, features, gres = line.split("|", 5)
        sizes = {
            "GPU": count_gpus(gres),
            "processor": _parse_number(cpus),
            "GB of memory": _parse_number(megabytes) / 1024,
        }
        in_service = not _OUT_OF_SERVICE.search(state.lower())
        return cls(name, sizes, in_service, frozenset(features.split(",")))


def check_slurm(cluster: Cluster) -> Iterator[Check]:
    """Check whether Slurm would run the folds; stop early if the rest would repeat a fault."""
    missing = [name for name in _CLIENTS if not shutil.which(name)]
    if missing:
        text = f"{', '.join(missing)} not on PATH: log in to the cluster, or load its module"
        yield Check("Slurm", WRONG, text)
        return
    try:
        yield from _check_cluster(cluster)
    except SlurmError as e:
        remedy = "is this a login node of the cluster, and is its controller up (scontrol ping)?"
        yield Check("Slurm", WRONG, f"{e}: {remedy}")


def _check_cluster(cluster: Cluster) -> Iterator[Check]:
    rows = (line.partition("=") for line in run_client("scontrol", "show", "config").splitlines())
    config = {key.strip(): value.strip() for key, _, value in rows}
    version = run_client("sinfo", "--version").strip()
    yield Check("Slurm", OK, f"{version}, the controller answers")
    yield Check("environment", *_check_environment())
    lines = run_client("scontrol", "--oneliner", "show", "partition").splitlines()
    partitions = [parse_pairs(line) for line in lines if "PartitionName=" in line]
    partition = _choose_partition(cluster, partitions)
    usable = _check_partition(cluster, partition, partitions)
    yield Check("partition", *usable)
    if partition is None or usable.state == WRONG:
        return
    nodes = _check_nodes(cluster, _query_nodes(cluster.partition or partition["PartitionName"]))
    yield Check("nodes", *nodes)
    yield from _check_accounts(cluster, partition, config)
    yield Check("time", *_check_time(cluster, partition))
    # Slurm would only repeat what is wrong with the nodes.
    if nodes.state != WRONG:
        yield from _check_jobs(cluster)
    yield Check("preemption", *_check_preemption(partition, config))
    yield Check("exit", *_check_exit_time(cluster, _parse_number(config["KillWait"])))
    yield Check("requeue", *_check_requeue(config))


def _choose_partition(cluster: Cluster, partitions: list[Fields]) -> Fields | None:
    """Return the partition of the jobs; of a list, one that takes the longest."""
    if cluster.partition is None:
        return next((row for row in partitions if row["Default"] == "YES"), None)
    names = set(cluster.partition.split(","))
    named = [row for row in partitions if row["PartitionName"] in names]
    if len(named) < len(names):
        return None
    return max(named, key=lambda row: (row["State"] == "UP", parse_seconds(row["MaxTime"])))


def _query_nodes(partition: str) -> list[Node]:
    """Return the nodes of a partition; ``sinfo`` may list one more than once."""
    lines = run_client("sinfo", "-h", "-N", "-p", partition, "-o", "%N|%c|%m|%T|%f|%G").splitlines()
    return list({node.name: node for node in map(Node.parse, lines)}.values())


def _check_partition(
    cluster: Cluster, partition: Fields | None, partitions: list[Fields]
) -> Result:
    names = ", ".join(p["PartitionName"] for p in partitions) or "none"
    if partition is None and cluster.partition is None:
        return wrong(f"Slurm has no default: give cluster.partition=NAME; this cluster has {names}")
    if partition is None:
        return wrong(f"there is no '{cluster.partition}': this cluster has {names}")
    name, state = partition["PartitionName"], partition["State"]
    if state != "UP":
        return wrong(f"{name} is {state}: its jobs never start; give another, or ask the admins")
    return ok(f"{name} is up, {partition['TotalNodes']} nodes")


def _check_nodes(cluster: Cluster, nodes: list[Node]) -> Result:
    """Check that enough nodes are large enough and in service."""
    gres = str(cluster.sbatch.get("gres") or "")
    if gres and count_gpus(gres) != cluster.gpus_per_node:
        return wrong(
            f"cluster.sbatch.gres={gres} asks for {count_gpus(gres)} GPUs of each node, and "
            f"cluster.gpus_per_node={cluster.gpus_per_node} sets the ranks: give both the same"
        )
    needs = {
        "GPU": cluster.gpus_per_node,
        "processor": cluster.tasks * cluster.cpus_per_task,
        "GB of memory": cluster.memory_gb or 0,
    }
    for unit, need in needs.items():
        largest = max((node.sizes[unit] for node in nodes), default=0)
        if largest < need:
            return wrong(
                f"{_count(need, unit)} of a node asked for, the largest of the partition has "
                f"{largest:.3g}: ask for less"
            )
    fit = [node for node in nodes if all(node.sizes[unit] >= needs[unit] for unit in needs)]
    wanted = " and ".join(_count(need, unit) for unit, need in needs.items() if need)
    # of other expressions Slurm alone can judge
    if cluster.constraint and re.fullmatch(r"[\w.-]+(&[\w.-]+)*", cluster.constraint):
        fit = [node for node in fit if node.features.issuperset(cluster.constraint.split("&"))]
        wanted += f" and the feature {cluster.constraint}"
    asked, in_service = cluster.nodes, sum(node.in_service for node in fit)
    if len(fit) < asked:
        return wrong(f"{asked} asked for, the partition has {len(fit)} with {wanted}: ask for less")
    text = f"{asked} asked for; of {len(fit)} with {wanted} {in_service} are in service"
    if in_service < asked:
        return wrong(f"{text}: folds wait until more come back (sinfo -R says why they are down)")
    return ok(text)


def _count(number: float, unit: str) -> str:
    is_plain = number == 1 or " " in unit
    return f"{number:g} {unit}{'' if is_plain else 's'}"


def _check_accounts(cluster: Cluster, partition: Fields, config: Fields) -> Iterator[Check]:
    for key, given, allowed in (
        ("account", cluster.account, partition["AllowAccounts"]),
        ("qos", cluster.qos, partition["AllowQos"]),
    ):
        if given and allowed != "ALL" and given not in allowed.split(","):
            yield Check(key, WRONG, f"the partition does not take '{given}', only {allowed}")
            return
    # The only plugin with accounting; without it Slurm prints accounting_storage/none or (null).
    if not config["AccountingStorageType"].endswith("/slurmdbd"):
        yield Check("account", OK, "accounting is off: not checked")
        return
    user = f"user={getpass.getuser()}"
    try:
        text = run_client("sacctmgr", "-nP", "show", "assoc", user, "format=account,qos")
    except SlurmError as e:
        yield Check("account", *note(f"not checked, accounting does not answer: {e}"))
        return
    rows = [line.split("|") for line in text.splitlines()]
    enforced = config["AccountingStorageEnforce"]
    if not rows and "associations" in enforced:
        yield Check("account", WRONG, "you have none here, but need one: ask the administrators")
        return
    accounts = {row[0] for row in rows}
    qos = {name for row in rows for name in row[1].split(",") if name}
    is_strict = "associations" in enforced
    yield Check("account", *_check_own(cluster.account, accounts, is_strict))
    yield Check("qos", *_check_own(cluster.qos, qos, is_strict="qos" in enforced))


def _check_own(given: str | None, own: set[str], is_strict: bool) -> Result:
    """Check that an account or QOS is one of the user's."""
    known = ", ".join(sorted(own)) or "none"
    if not given:
        return ok(f"the default of yours ({known})")
    if given in own:
        return ok(given)
    text = f"'{given}' is not among yours ({known})"
    if is_strict:
        return wrong(text)
    return note(f"{text}; this cluster does not enforce it")


def _check_time(cluster: Cluster, partition: Fields) -> Result:
    limit, minutes = partition["MaxTime"], cluster.time_minutes
    if 60 * minutes > parse_seconds(limit):
        fits = int(parse_seconds(limit) // 60)
        return wrong(
            f"{minutes} minutes, the partition allows {fits}: give cluster.time_minutes={fits}; "
            "folds resume in a new job"
        )
    signal = f"ranks get a signal {cluster.notice_seconds} s before"
    return ok(f"{minutes} minutes (the partition allows {limit.lower()}), {signal}")


def parse_seconds(text: str) -> float:
    """Return Slurm's ``DAYS-HH:MM:SS`` in seconds; infinite for ``UNLIMITED``."""
    parts = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not parts:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds


def _parse_number(text: str) -> int:
    """Return the number at the beginning of a text, such as ``30 sec``; 0 if there is none."""
    return int(re.sub(r"\D.*", "", text) or 0)


def _check_jobs(cluster: Cluster) -> Iterator[Check]:
    """Check the batch scripts themselves with Slurm, without submitting them."""
    target = ClusterTarget("", cluster)
    with tempfile.TemporaryDirectory() as name:
        run = RunDir(Path(name, "run"))
        fold = make_executor([ArrayTask(run, 1)], target, run.root)
        summary = make_summary_executor(target, run.root, run.code, None)
        for subject, executor in (("a fold's job", fold), ("the summary's job", summary)):
            script = Path(name, "job.sh")
            script.write_text(script_text(executor, 1), encoding="utf-8")
            yield Check(subject, *_check_script(script, is_summary=executor is summary))


def _check_script(script: Path, is_summary: bool) -> Result:
    try:
        verdict = run_client("sbatch", "--test-only", str(script))
    except SlurmError as e:
        text = f"Slurm would refuse it: {e}"
        if is_summary:
            return note(f"{text}; the last fold would write the summary; see cluster.summary")
        return wrong(text)
    start = re.search(r"to start at (\S+)", verdict)
    when = f" and start it at {start[1]}" if start else ""
    return ok(f"Slurm would take it{when} (sbatch --test-only)")


def _check_environment() -> Result:
    names = foreign_variables()
    if names:
        shown = first_of(names, _MAX_SHOWN)
        return note(f"{shown}: set here, but not for jobs; the cluster's settings alone count")
    return ok("no variables of this shell or of a job around it are in the way")


def _check_preemption(partition: Fields, config: Fields) -> Result:
    mode, grace = partition["PreemptMode"], int(partition["GraceTime"])
    if config["PreemptType"].endswith("none") or mode == "OFF":
        return ok("jobs of this partition are not preempted")
    if config["PreemptType"].endswith("qos"):
        return note(
            "by QOS: sacctmgr show qos format=name,preemptmode,gracetime shows the time to save"
        )
    if "SUSPEND" in mode:
        return note(
            f"{mode}: ranks are stopped, not ended; after train.hang_minutes they end, and resume "
            "from their last checkpoint"
        )
    text = f"{mode}, {grace} s after SIGTERM (GraceTime)"
    is_lost = "REQUEUE" not in mode
    if grace >= _SAVE_SECONDS and not is_lost:
        return ok(text)
    text += ": what takes longer to save is lost back to the last checkpoint (train.save_minutes)"
    if is_lost:
        text += f", and {mode} does not bring a job back that has not ended by then"
    return note(text)


def _check_exit_time(cluster: Cluster, wait: int) -> Result:
    text = f"{wait} s from SIGTERM to SIGKILL after scancel or at the time limit (KillWait)"
    notice = cluster.notice_seconds
    if wait >= _SAVE_SECONDS:
        return ok(text)
    if notice < _SAVE_SECONDS:
        return wrong(
            f"{text}, and cluster.notice_seconds={notice}: too short to save; give "
            "cluster.notice_seconds=120"
        )
    return note(
        f"{text}: short, so ranks get a signal {notice} s before the limit; after scancel a large "
        "model may not be saved"
    )


def _check_requeue(config: Fields) -> Result:
    text = "folds ask for it (--requeue), their output is appended"
    if config["JobRequeue"] != "1":
        text += "; it is off by default here (JobRequeue=0), which --requeue overrides"
    return ok(text)
