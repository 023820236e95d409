"""What a cluster is like: the files in ``configs/cluster/``, and the flags of the same names."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import typer

from dfer_dist.utils.errors import UserError

LOCAL = "local"  # this machine
_ROOM = 60  # seconds that must be left of a job before its signal


@dataclass
class Cluster:
    """A job's part of a cluster, as ``sbatch`` knows it, and how its nodes are set up."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = 1  # of a fold
    gpus_per_node: int = 0
    tasks_per_node: int | None = None  # ranks; null: one a GPU, or one
    cpus_per_task: int = 8
    memory_gb: float | None = None  # of a node; null: what the cluster gives
    time_minutes: int = 1440  # a fold that needs longer goes back into the queue and goes on
    notice_seconds: int = 120  # Slurm sends USR2 so long before the time is up
    max_requeues: int = 30  # of a fold
    scratch: str | None = (
        None  # folder on the nodes' own disks, such as $SLURM_TMPDIR: shards are copied there, once a node
    )
    setup: list[str] = field(default_factory=list)  # shell lines, such as `module load cuda`
    environment: dict[str, str] = field(default_factory=dict)  # variables of the job

    @property
    def tasks(self) -> int:
        """Ranks on a node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """Ranks of a fold."""
        return self.nodes * self.tasks


_HELP = {
    "partition": "Slurm's partition.",
    "account": "The account that pays.",
    "qos": "Quality of service.",
    "constraint": "Features that nodes must have.",
    "nodes": "Nodes of each fold.",
    "gpus_per_node": "GPUs of each node; a rank a GPU.",
    "tasks_per_node": "Ranks on each node, where it has no GPUs.",
    "cpus_per_task": "Processors of each rank.",
    "memory_gb": "Memory of each node.",
    "time_minutes": "A job's time; a fold that needs longer is requeued.",
    "notice_seconds": "How long before the end ranks are told to save.",
    "max_requeues": "Restarts of a fold.",
    "scratch": "Folder on the nodes' own disks that shards are copied to.",
    "setup": "A shell line before the ranks start; may be repeated.",
    "environment": "A variable of the job; may be repeated.",
}
_MANY = {"setup": "LINE", "environment": "NAME=VALUE"}


def load_cluster(name: str, flags: dict[str, Any] | None = None) -> Cluster:
    """The file ``configs/cluster/NAME.yaml``, or the YAML file ``name``, with ``flags`` on top (None: not given).

    Raises
    ------
    UserError
        No such file, an unknown key, a wrong type, or values that do not go together.
    """
    given: dict[str, Any] = {k: v for k, v in (flags or {}).items() if v not in (None, [])}
    if "environment" in given:
        pairs = [word.partition("=") for word in given["environment"]]
        wrong = [
            word
            for word, (key, eq, _) in zip(given["environment"], pairs, strict=True)
            if not (key and eq)
        ]
        if wrong:
            raise UserError(f"--environment {wrong[0]}: give NAME=VALUE")
        given["environment"] = {key: value for key, _, value in pairs}
    from dfer_dist.config.load import (  # OmegaConf behind it, which --help need not wait for
        find_config,
        load_as,
    )

    cluster = load_as(Cluster, find_config(name, "cluster"), given)
    _check(cluster)
    return cluster


def _check(cluster: Cluster) -> None:
    for key in ("nodes", "cpus_per_task", "time_minutes", "tasks_per_node"):
        if getattr(cluster, key) is not None and getattr(cluster, key) < 1:
            raise UserError(f"{key}: must be at least 1")
    for key in ("gpus_per_node", "notice_seconds", "max_requeues"):
        if getattr(cluster, key) < 0:
            raise UserError(f"{key}: must not be negative")
    if cluster.gpus_per_node and cluster.tasks != cluster.gpus_per_node:
        raise UserError(
            f"tasks_per_node={cluster.tasks} with gpus_per_node={cluster.gpus_per_node}: each GPU wants one rank; leave tasks_per_node out"
        )
    if any(
        re.search("MLFLOW_TRACKING_(PASSWORD|TOKEN)", words)
        for words in (*cluster.environment, *cluster.setup)
    ):
        raise UserError(
            "environment, setup: a password would stand in the run's folder; export MLFLOW_TRACKING_PASSWORD in the shell that submits: "
            "jobs inherit it"
        )
    if 60 * cluster.time_minutes < cluster.notice_seconds + _ROOM:
        raise UserError(
            f"time_minutes={cluster.time_minutes} with notice_seconds={cluster.notice_seconds}: ranks would be told to leave before "
            f"they had {_ROOM} s to train; give more time or less notice"
        )


def with_cluster_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for each value of :class:`Cluster`; its parameter ``flags`` gets them as a dict, None where not given."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        flags = {f.name: given.pop(f.name) for f in fields(Cluster)}
        command(**given, flags=flags)

    own = inspect.signature(command, eval_str=True).parameters
    kept = [p.replace(kind=p.KEYWORD_ONLY) for name, p in own.items() if name != "flags"]
    added = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(f.name)
        )
        for f in fields(Cluster)
    ]
    run.__signature__ = inspect.Signature(kept + added)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def _option(name: str) -> Any:
    kind: Any = {"nodes": int, "memory_gb": float}.get(name, str)
    if isinstance(getattr(Cluster(), name), int) or name == "tasks_per_node":
        kind = int
    kind = list[kind] if name in _MANY else kind
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        help=_HELP[name],
        metavar=_MANY.get(name),
        rich_help_panel="Cluster (instead of its file's)",
    )
    return Annotated[kind | None, option]
