"""Check ahead of a submission whether Slurm could give a fold what it asks for."""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Callable, Iterator

from launch.doctor.checks import NOTE, OK, WRONG, Check
from launch.doctor.clients import (
    Node,
    Partition,
    SlurmConfig,
    SlurmError,
    parse_seconds,
    run_client,
    sbatch_arguments,
)
from launch.slurm.cluster import Cluster
from launch.slurm.sbatch_options import count_gpus

_CLIENTS = ("sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
_SAVE_SECONDS = 30  # that ranks of a large model may take to save


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
        text = (
            f"{e}: is this a login node of the cluster, and is its controller up (scontrol ping)?"
        )
        yield Check("Slurm", WRONG, text)


def _check_cluster(cluster: Cluster) -> Iterator[Check]:
    config = SlurmConfig.parse(run_client("scontrol", "show", "config"))
    version = run_client("sinfo", "--version").strip()
    yield Check("Slurm", OK, f"{version}, the controller answers")
    partitions = _query_partitions()
    partition = _choose_partition(cluster, partitions)
    usable = _check_partition(cluster, partition, partitions)
    yield usable
    if partition is None or usable.state == WRONG:
        return
    nodes = _check_nodes(cluster, _query_nodes(partition.name))
    yield nodes
    yield from _check_accounts(cluster, partition, config)
    yield _check_time(cluster, partition)
    # Slurm would only repeat what is wrong with the nodes.
    if nodes.state != WRONG:
        yield _check_job(cluster)
    yield _check_preemption(partition, config)
    yield _check_exit_time(cluster, config)
    yield _check_requeue(config)


def _query_partitions() -> list[Partition]:
    lines = run_client("scontrol", "--oneliner", "show", "partition").splitlines()
    return [partition for partition in map(Partition.parse, lines) if partition]


def _query_nodes(partition: str) -> list[Node]:
    """Return the nodes of a partition; ``sinfo`` may list one more than once."""
    lines = run_client("sinfo", "-h", "-N", "-p", partition, "-o", "%N|%c|%m|%T|%f|%G").splitlines()
    return list({node.name: node for node in map(Node.parse, lines)}.values())


def _choose_partition(cluster: Cluster, partitions: list[Partition]) -> Partition | None:
    """Return the cluster's partition, or Slurm's default."""
    for partition in partitions:
        is_default = cluster.partition is None and partition.is_default
        if partition.name == cluster.partition or is_default:
            return partition
    return None


def _check_partition(
    cluster: Cluster, partition: Partition | None, partitions: list[Partition]
) -> Check:
    known = f"this cluster has {', '.join(p.name for p in partitions) or 'none'}"
    if partition is None and cluster.partition is None:
        text = f"none is given, and Slurm has no default: {known}; give cluster.partition=NAME"
        return Check("partition", WRONG, text)
    if partition is None:
        return Check("partition", WRONG, f"there is no '{cluster.partition}': {known}")
    if partition.state != "UP":
        text = (
            f"{partition.name} is {partition.state}: jobs in it never start; give another, or ask "
            "the administrators"
        )
        return Check("partition", WRONG, text)
    return Check("partition", OK, f"{partition.name} is up, {partition.num_nodes} nodes")


def _check_nodes(cluster: Cluster, nodes: list[Node]) -> Check:
    """Check that enough nodes are large enough and in service."""
    gres = str(cluster.sbatch.get("gres") or "")
    if gres and count_gpus(gres) != cluster.gpus_per_node:
        text = (
            f"cluster.sbatch.gres={gres} asks for {count_gpus(gres)} GPUs of each node, and "
            f"cluster.gpus_per_node={cluster.gpus_per_node} sets the ranks: give both the same"
        )
        return Check("nodes", WRONG, text)
    needs: list[tuple[Callable[[Node], float], float, str]] = [
        (lambda node: node.gpus, cluster.gpus_per_node, "GPU"),
        (lambda node: node.cpus, cluster.tasks * cluster.cpus_per_task, "processor"),
        (lambda node: node.memory, cluster.memory_gb or 0, "GB of memory"),
    ]
    for size, need, unit in needs:
        largest = max(map(size, nodes), default=0)
        if largest < need:
            text = (
                f"{_count(need, unit)} of a node asked for, the largest of the partition has "
                f"{largest:.3g}: ask for less"
            )
            return Check("nodes", WRONG, text)
    fit = [node for node in nodes if all(size(node) >= need for size, need, _ in needs)]
    wanted = " and ".join(_count(need, unit) for _, need, unit in needs if need)
    # of other expressions Slurm alone can judge
    if cluster.constraint and re.fullmatch(r"[\w.-]+(&[\w.-]+)*", cluster.constraint):
        fit = [node for node in fit if set(cluster.constraint.split("&")) <= node.features]
        wanted += f" and the feature {cluster.constraint}"
    return _check_enough(cluster, fit, wanted)


def _check_enough(cluster: Cluster, fit: list[Node], wanted: str) -> Check:
    if len(fit) < cluster.nodes:
        text = (
            f"{cluster.nodes} asked for, the partition has {len(fit)} with {wanted}: ask for less"
        )
        return Check("nodes", WRONG, text)
    in_service = sum(node.in_service for node in fit)
    text = f"{cluster.nodes} asked for; of {len(fit)} with {wanted} {in_service} are in service"
    if in_service < cluster.nodes:
        text += ": folds wait until more come back (sinfo -R says why they are down)"
        return Check("nodes", WRONG, text)
    return Check("nodes", OK, text)


def _count(number: float, unit: str) -> str:
    is_plain = number == 1 or " " in unit
    return f"{number:g} {unit}{'' if is_plain else 's'}"


def _check_accounts(cluster: Cluster, partition: Partition, config: SlurmConfig) -> Iterator[Check]:
    for key, given, allowed in (
        ("account", cluster.account, partition.accounts),
        ("qos", cluster.qos, partition.qos),
    ):
        if given and allowed != "ALL" and given not in allowed.split(","):
            yield Check(key, WRONG, f"the partition does not take '{given}', only {allowed}")
            return
    if not config.accounting:
        yield Check("account", OK, "accounting is off: not checked")
        return
    try:
        rows = _query_associations()
    except SlurmError as e:
        yield Check("account", NOTE, f"not checked, accounting does not answer: {e}")
        return
    if not rows and "associations" in config.enforced:
        text = "you have none here, and this cluster requires one: ask its administrators"
        yield Check("account", WRONG, text)
        return
    accounts = {account for account, _ in rows}
    qos = {name for _, names in rows for name in names.split(",") if name}
    yield _check_own(
        "account", cluster.account, accounts, is_strict="associations" in config.enforced
    )
    yield _check_own("qos", cluster.qos, qos, is_strict="qos" in config.enforced)


def _query_associations() -> list[tuple[str, str]]:
    """Return account and list of QOS of each of the user's associations."""
    user = f"user={getpass.getuser()}"
    text = run_client("sacctmgr", "-nP", "show", "assoc", user, "format=account,qos")
    rows = (line.split("|") for line in text.splitlines())
    return [(row[0], row[1]) for row in rows]


def _check_own(key: str, given: str | None, own: set[str], is_strict: bool) -> Check:
    """Check that an account or QOS is one of the user's."""
    known = ", ".join(sorted(own)) or "none"
    if not given:
        return Check(key, OK, f"the default of yours ({known})")
    if given in own:
        return Check(key, OK, given)
    text = f"'{given}' is not among yours ({known})"
    if is_strict:
        return Check(key, WRONG, text)
    return Check(key, NOTE, f"{text}; this cluster does not enforce it")


def _check_time(cluster: Cluster, partition: Partition) -> Check:
    if 60 * cluster.time_minutes > parse_seconds(partition.max_time):
        fits = int(parse_seconds(partition.max_time) // 60)
        text = (
            f"{cluster.time_minutes} minutes, the partition allows {fits}: give "
            f"cluster.time_minutes={fits}; folds resume in a new job"
        )
        return Check("time", WRONG, text)
    text = (
        f"{cluster.time_minutes} minutes (the partition allows {partition.max_time.lower()}), "
        f"ranks get a signal {cluster.notice_seconds} s before"
    )
    return Check("time", OK, text)


def _check_job(cluster: Cluster) -> Check:
    """Check a fold's job with Slurm itself, without submitting it."""
    options = sbatch_arguments(
        cluster, cluster.nodes, cluster.tasks, cluster.time_minutes, cluster.memory_gb
    )
    try:
        verdict = run_client("sbatch", "--test-only", "--requeue", *options, "--wrap", "true")
    except SlurmError as e:
        return Check("a fold's job", WRONG, f"Slurm would refuse it: {e}")
    start = re.search(r"to start at (\S+)", verdict)
    when = f" and start it at {start[1]}" if start else ""
    return Check("a fold's job", OK, f"Slurm would take it{when} (sbatch --test-only)")


def _check_preemption(partition: Partition, config: SlurmConfig) -> Check:
    mode, grace = partition.preempt_mode, partition.grace
    if config.preempt_type.endswith("none") or mode == "OFF":
        return Check("preemption", OK, "jobs of this partition are not preempted")
    if config.preempt_type.endswith("qos"):
        text = (
            "by QOS: sacctmgr show qos format=name,preemptmode,gracetime shows how long jobs get "
            "to save"
        )
        return Check("preemption", NOTE, text)
    if "SUSPEND" in mode:
        text = (
            f"{mode}: ranks are stopped, not ended; after train.hang_minutes they end, and resume "
            "from their last checkpoint"
        )
        return Check("preemption", NOTE, text)
    text = f"{mode}, {grace} s after SIGTERM (GraceTime)"
    is_lost = "REQUEUE" not in mode
    if grace >= _SAVE_SECONDS and not is_lost:
        return Check("preemption", OK, text)
    text += ": what takes longer to save is lost back to the last checkpoint (train.save_minutes)"
    if is_lost:
        text += f", and {mode} does not bring a job back that has not ended by then"
    return Check("preemption", NOTE, text)


def _check_exit_time(cluster: Cluster, config: SlurmConfig) -> Check:
    wait = config.kill_wait
    text = f"{wait} s from SIGTERM to SIGKILL after scancel or at the time limit (KillWait)"
    if wait >= _SAVE_SECONDS:
        return Check("exit", OK, text)
    if cluster.notice_seconds < _SAVE_SECONDS:
        text += (
            f", and cluster.notice_seconds={cluster.notice_seconds}: too short to save; give "
            "cluster.notice_seconds=120"
        )
        return Check("exit", WRONG, text)
    text += (
        f": short, so ranks get a signal {cluster.notice_seconds} s before the limit; after "
        "scancel a large model may not be saved"
    )
    return Check("exit", NOTE, text)


def _check_requeue(config: SlurmConfig) -> Check:
    text = "folds ask for it (--requeue), their output is appended"
    if not config.requeues:
        text += "; it is off by default here (JobRequeue=0), which --requeue overrides"
    return Check("requeue", OK, text)
