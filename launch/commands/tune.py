"""``dfer tune``: search settings on a part of the training clips."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Device
from dfer_dist.distributed.preemption import EXIT_PREEMPTED
from dfer_dist.utils.errors import UserError
from launch import options
from launch.console import print_line
from launch.fold_table import FoldTable
from launch.slurm.cluster import LOCAL, load_cluster, split_overrides
from launch.sweeps.machines import ClusterMachine, LocalMachine
from launch.sweeps.search import EPOCHS, Search, SearchOptions, open_search
from launch.sweeps.search_report import report_search
from launch.sweeps.trials import TrialLoop
from launch.sweeps.variants import JobRequest

if TYPE_CHECKING:
    from launch.slurm.batch import ClusterTarget


class Metric(Enum):
    """What is maximized."""

    uar = "uar"
    war = "war"


Space = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="YAML file: for each setting {low: …, high: …}, with log: true or int: true, or a "
        "list of choices.",
    ),
]
Trials = Annotated[int, typer.Option(min=1, help="Number of trials, with those of before.")]
Parallel = Annotated[int, typer.Option(min=1, help="Trials that train at the same time.")]
Objective = Annotated[Metric, typer.Option(help="Score to maximize, on the validation part.")]
Folds = Annotated[str, typer.Option(help="Folds whose test clips are left out, such as 1,3-5.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the choice of values.")]
ValSeed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Seed of the choice of validation clips.")
]
Prune = Annotated[
    bool, typer.Option(help="Stop trials whose scores after an epoch are below the median.")
]


def tune(
    experiment: options.Experiment,
    space: Space,
    trials: Trials,
    overrides: options.Overrides = None,
    parallel: Parallel = 1,
    metric: Objective = Metric.uar,
    folds: Folds = "1",
    seed: Seed = 0,
    val_seed: ValSeed = 0,
    prune: Prune = True,
    nproc: options.NumRanks = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the search. Default: EXPERIMENT-tune.")
    ] = None,
    runs: options.RunsFolder = Path("runs"),
    allow_drift: options.AllowDrift = None,
    cluster: options.ClusterName = LOCAL,
) -> None:
    """Search settings on a part of the training clips.

    Trains on four fifths of the training clips of a fold and scores on the rest. No test clip of
    the fold is read. Writes the best settings as an experiment for dfer crossval. Run the same
    command again to resume.

    Example: [bold]dfer tune dfew_vitb32 --space space.yaml --trials 20 --parallel 2[/bold]
    """
    settings, cluster_settings = split_overrides(overrides or [])
    label = name or f"{Path(experiment).stem}-tune"
    request = JobRequest(experiment, settings, label, runs, folds, allow_drift or ())
    how = SearchOptions(metric.value, seed, val_seed, prune)
    ranks, target, on_machine = nproc or 1, None, settings
    if cluster != LOCAL:
        from launch.slurm.batch import ClusterTarget

        if nproc:
            raise UserError("--nproc is for this machine: with --cluster give cluster.nodes")
        target = ClusterTarget(cluster, load_cluster(cluster, cluster_settings))
        on_machine = target.cluster.all_settings(experiment, settings)
        ranks = target.cluster.ranks
    elif cluster_settings:
        raise UserError(f"{cluster_settings[0]} is for a cluster: give --cluster NAME too")
    with open_search(request, space, how, on_machine, ranks) as search:
        is_over, has_best = _train_and_report(search, target, ranks, trials, parallel)
    if not is_over:
        print_line("stopped; run the same command to resume")
        sys.exit(EXIT_PREEMPTED)
    if not has_best:
        sys.exit("no trial has a score: give more --trials, or another --space and --name")


def _train_and_report(
    search: Search, target: ClusterTarget | None, ranks: int, total: int, parallel: int
) -> tuple[bool, bool]:
    """Return whether the trials are over, and whether one has a score."""
    named = ["--nproc", str(ranks)] * (ranks > 1)
    if target:
        named = ["--cluster", target.name]
    try:
        is_over = _train(search, target, ranks, total, parallel)
    except UserError:
        report_search(search, named)
        raise
    return is_over, report_search(search, named)


def _train(
    search: Search, target: ClusterTarget | None, ranks: int, total: int, parallel: int
) -> bool:
    """Train the trials; return False if they were stopped."""
    config = load_config(search.request.experiment, search.settings)
    epochs = config.train.epochs * (EPOCHS not in search.space.values)
    done = sum(trial.state.is_finished() for trial in search.trials)
    print_line(f"{search.folder.name}: {done} of {total} trials are over")
    with FoldTable(max(1, total - done), epochs, "trial", parallel) as table, ExitStack() as stack:
        machine: LocalMachine | ClusterMachine
        if target:
            machine = ClusterMachine(target, table)
        else:
            uses_gpus = config.train.device is not Device.cpu
            machine = LocalMachine(ranks, parallel, uses_gpus, table)
        stack.callback(machine.close)
        return TrialLoop(search, machine, total, parallel).run()
