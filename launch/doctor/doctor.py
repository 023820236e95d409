"""``dfer doctor``: check whether training would run on this machine, or on a cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dfer_dist.utils.errors import UserError
from launch.console import console
from launch.doctor.checks import NOTE, OK, WRONG, Check
from launch.options import Overrides, RunsFolder
from launch.slurm.cluster import LOCAL, PREFIX, Cluster, load_cluster, split_overrides

if TYPE_CHECKING:
    from dfer_dist.config.schema import Config
    from launch.doctor.machine import MachineRequest

_COLOURS = {OK: "green", NOTE: "yellow", WRONG: "red"}


def doctor(
    experiment: Annotated[
        str | None,
        typer.Argument(
            help="Check its weights and shards too: a name in configs/, or a YAML file."
        ),
    ] = None,
    overrides: Overrides = None,
    cluster: Annotated[
        str,
        typer.Option(
            help="Cluster to check: a name in configs/cluster/, or a YAML file. "
            "Override its settings with cluster.KEY=VALUE. Default: this machine."
        ),
    ] = LOCAL,
    runs: RunsFolder = Path("runs"),
    queue_seconds: Annotated[
        float, typer.Option(min=1, help="How long the small job may wait in the queue.")
    ] = 90,
) -> None:
    """Check whether training would run on this machine or on a cluster.

    A cluster is checked with a small job on one of its nodes, or on two if folds have several. The
    exit status is 1 if anything is wrong.

    Example: [bold]dfer doctor dfew_vitb32 --cluster gpus8 data.shards=/shared/dfew[/bold]
    """
    # without an experiment the first setting takes its place
    arguments = overrides or []
    if experiment and experiment.startswith(PREFIX):
        arguments = [experiment, *arguments]
        experiment = None
    settings, cluster_settings = split_overrides(arguments)
    if cluster == LOCAL and cluster_settings:
        raise UserError(f"{cluster_settings[0]} is for a cluster: give --cluster NAME too")
    if settings and not experiment:
        raise UserError(f"{settings[0]} is a setting of an experiment: give its name too")
    if cluster == LOCAL:
        checks = _check_here(_load_config(experiment, settings), runs.resolve())
    else:
        chosen = load_cluster(cluster, cluster_settings)
        if experiment:
            settings = chosen.all_settings(experiment, settings)
        config = _load_config(experiment, settings)
        checks = _check_cluster(chosen, config, runs.resolve(), queue_seconds)
    if _print(checks):
        sys.exit(1)


def _print(checks: Iterator[Check]) -> int:
    """Print checks as they come, and return how many are wrong."""
    wrong = 0
    for check in checks:
        wrong += check.state == WRONG
        state = (f"{check.state:6}", _COLOURS[check.state])
        console.print(Text.assemble(state, f"{check.subject}: {check.text}"), soft_wrap=True)
    if wrong:
        console.print(f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong")
    return wrong


def _load_config(experiment: str | None, overrides: list[str]) -> Config | None:
    """Load the settings of an experiment, if one is given, as a job would have them."""
    from dfer_dist.config.load import load_config
    from dfer_dist.data.shards.store import resolve_cache, resolve_locations

    if not experiment:
        return None
    config = load_config(experiment, overrides)
    config.data.shards = resolve_locations(config.data.shards)
    config.data.cache = resolve_cache(config.data.cache)
    return config


def _needs(config: Config | None, runs: Path) -> MachineRequest:
    """Return what an experiment needs of a machine."""
    from dfer_dist.config.schema import TrackingConfig
    from dfer_dist.data.shards.store import is_remote
    from dfer_dist.tracking.identity import store_uri
    from launch.doctor.machine import MachineRequest

    tracking, scratch = TrackingConfig(), None
    if config:
        tracking = config.tracking
        if any(map(is_remote, config.data.locations)):
            scratch = config.data.cache
    uri = store_uri(tracking, runs) if tracking.enabled else None
    return MachineRequest(tracking=uri, scratch=scratch)


def _check_here(config: Config | None, runs: Path) -> Iterator[Check]:
    from launch.doctor.machine import check_extras, check_machine

    yield from check_machine(_needs(config, runs), config)
    yield from check_extras()


def _check_cluster(
    cluster: Cluster, config: Config | None, runs: Path, queue_seconds: float
) -> Iterator[Check]:
    from dfer_dist.config.load import dump_config
    from launch.doctor.partition import check_slurm
    from launch.doctor.trial import check_node, shared_folder

    is_fine = True
    for check in check_slurm(cluster):
        is_fine &= check.state != WRONG
        yield check
    if not is_fine:
        yield Check("a node", NOTE, "not checked, because no job would start")
        return
    machine = replace(_needs(config, runs), gpus=cluster.gpus_per_node, cpus=cluster.cpus_per_task)
    if cluster.scratch:
        machine = replace(machine, scratch=cluster.scratch_variable)
    try:
        with shared_folder(runs) as folder:
            if config:
                (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
            yield from check_node(cluster, machine, folder, queue_seconds)
    except OSError as e:
        remedy = "give --runs FOLDER on a file system that all nodes share, with flock"
        yield Check("runs folder", WRONG, f"{runs}: {e.strerror}; {remedy}")
