"""``dfer doctor``: would training run here, or on a cluster? A line for each thing it looks at: ok, or what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from dfer_dist.utils.errors import UserError
from launch.doctor.checks import NOTE, OK, WRONG, Check
from launch.slurm.cluster import LOCAL, Cluster, load_cluster, split_overrides

if TYPE_CHECKING:
    from dfer_dist.config.schema import Config
    from launch.doctor.machine import CheckRequest

_COLOURS = {OK: "green", NOTE: "yellow", WRONG: "red"}


def doctor(
    experiment: Annotated[
        str | None,
        typer.Argument(
            help="Look for its weights and shards too: a name in configs/ or a YAML file."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings such as data.shards=data/dfew.", metavar="[KEY=VALUE]..."),
    ] = None,
    cluster: Annotated[
        str,
        typer.Option(help="A name in configs/cluster/ or a YAML file; this machine by default."),
    ] = LOCAL,
    runs: Annotated[Path, typer.Option("--runs", help="The folder of all runs.")] = Path("runs"),
    queue_seconds: Annotated[
        float, typer.Option(min=1, help="How long the small job may wait in the queue.")
    ] = 90,
) -> None:
    """Check whether training would run on this machine or on a cluster.

    On a cluster it submits a small job. Exits with status 1 if something is wrong.

    Example: [bold]dfer doctor dfew_vitb32 --cluster gpus8 data.shards=/shared/dfew[/bold]
    """
    console = Console(highlight=False)
    words = [experiment, *(overrides or [])] if experiment else []
    words, cluster_settings = split_overrides(words)
    experiment, settings = (words[0], words[1:]) if words else (None, [])
    if cluster == LOCAL and cluster_settings:
        raise UserError(f"{cluster_settings[0]} is for a cluster: give --cluster NAME too")
    config, ask = _wishes(experiment, settings, runs.resolve())
    if cluster == LOCAL:
        checks = _here(config, ask)
    else:
        checks = _there(
            load_cluster(cluster, cluster_settings), config, ask, runs.resolve(), queue_seconds
        )
    wrong = 0
    for check in checks:
        wrong += check.state == WRONG
        console.print(
            Text.assemble(
                (f"{check.state:6}", _COLOURS[check.state]), f"{check.what}: {check.words}"
            ),
            soft_wrap=True,
        )
    if wrong:
        console.print(f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong")
        sys.exit(1)


def _wishes(
    experiment: str | None, overrides: list[str], runs: Path
) -> tuple[Config | None, CheckRequest]:
    """The settings of an experiment as a job would have them, and what a machine is looked at for."""
    from dfer_dist.config.load import load_config
    from dfer_dist.config.schema import TrackingConfig
    from launch.doctor.machine import CheckRequest

    config = load_config(experiment, overrides) if experiment else None
    if config:
        from dfer_dist.data.shards.store import is_remote, resolve_cache, resolve_location

        config.data.shards, config.data.cache = (
            resolve_location(config.data.shards),
            resolve_cache(config.data.cache),
        )
    tracking = config.tracking if config else TrackingConfig()
    uri = tracking.uri or f"sqlite:///{runs / 'mlflow.db'}"
    scratch = config.data.cache if config and is_remote(config.data.shards) else None
    return config, CheckRequest(tracking=uri if tracking.enabled else None, scratch=scratch)


def _written(config: Config | None, ask: CheckRequest, folder: Path) -> CheckRequest:
    """With the settings in a file."""
    from dfer_dist.config.load import dump_config

    if not config:
        return ask
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return replace(ask, config=str(folder / "config.yaml"))


def _here(config: Config | None, ask: CheckRequest) -> Iterator[Check]:
    import tempfile

    from launch.doctor.machine import examine, examine_extras

    with tempfile.TemporaryDirectory() as folder:
        yield from examine(_written(config, ask, Path(folder)))
    yield from examine_extras()


def _there(
    cluster: Cluster, config: Config | None, ask: CheckRequest, runs: Path, queue_seconds: float
) -> Iterator[Check]:
    from launch.doctor.partition import examine_slurm
    from launch.doctor.trial import examine_node, meeting_place

    sound = True
    for check in examine_slurm(cluster):
        sound &= check.state != WRONG
        yield check
    if not sound:
        yield Check("a node", NOTE, "not looked at, since no job would start")
        return
    ask = replace(
        ask,
        gpus=cluster.gpus_per_node,
        cpus=cluster.cpus_per_task,
        scratch=cluster.scratch or ask.scratch,
    )
    if config and cluster.scratch:
        from dfer_dist.data.shards.store import is_remote

        shards = config.data.shards
        config.data.shards = shards if is_remote(shards) else Path(shards).as_uri()
        config.data.cache = cluster.scratch
    try:
        with meeting_place(runs) as folder:
            yield from examine_node(cluster, _written(config, ask, folder), folder, queue_seconds)
    except OSError as e:
        yield Check(
            "runs folder",
            WRONG,
            f"{runs}: {e.strerror}; give --runs FOLDER on a file system that all nodes share, with flock",
        )
