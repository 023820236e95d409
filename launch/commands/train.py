"""``dfer train``, ``dfer crossval``, ``dfer resume`` and ``dfer demo``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfer_dist.distributed.preemption import EXIT_PREEMPTED
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import SweepDir, expand
from dfer_dist.utils.errors import UserError
from launch import options
from launch.console import console, print_line, progress_bar
from launch.report import opening_mlflow_runs, report_run, report_sweep, update_mlflow_runs
from launch.runs import open_run
from launch.slurm import watch
from launch.slurm.cluster import LOCAL, load_cluster, split_overrides
from launch.sweeps.local import is_reported, open_sweep
from launch.sweeps.variants import JobRequest

if TYPE_CHECKING:
    from launch.slurm.batch import ClusterTarget

Folds = Annotated[str | None, typer.Option(help="Folds such as 1,3-5. Default: all.")]
MaxParallel = Annotated[
    int | None, typer.Option(min=1, help="Folds that may train at the same time. Default: all.")
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE,VALUE",
        help="Train a run for each value, and compare them. "
        "Repeatable: a run for each combination of values.",
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        metavar="N-M", help="Train a run for each seed, such as 0-4, and say what varies."
    ),
]
AddMissing = Annotated[
    bool, typer.Option("--resume", help="Submit only folds that are neither done nor queued.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print batch script and settings without submitting.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Show a live table until all folds end.")]


def train(
    experiment: options.Experiment,
    fold: Annotated[int, typer.Option(help="Fold to train and test, counted from 1.")],
    overrides: options.Overrides = None,
    nproc: options.NumRanks = None,
    name: options.RunName = None,
    runs: options.RunsFolder = Path("runs"),
    max_minutes: options.MaxMinutes = None,
    allow_drift: options.AllowDrift = None,
) -> None:
    """Train and test one fold.

    Run the same command again to resume.

    Example: [bold]dfer train dfew_vitb32 --fold 1 --nproc 8 data.shards=data/dfew[/bold]
    """
    ranks, deadline, allowed = nproc or 1, _deadline(max_minutes), allow_drift or ()
    run, folds = open_run(runs, name, experiment, overrides or [], allowed, str(fold), ranks)
    _exit_if_failed(_train_folds(run, folds, ranks, deadline))
    from dfer_dist.reporting.files import write_report

    write_report(run)
    update_mlflow_runs(run, "FINISHED")


def crossval(
    experiment: options.Experiment,
    overrides: options.Overrides = None,
    folds: Folds = None,
    nproc: options.NumRanks = None,
    name: options.RunName = None,
    runs: options.RunsFolder = Path("runs"),
    max_minutes: options.MaxMinutes = None,
    allow_drift: options.AllowDrift = None,
    cluster: options.ClusterName = LOCAL,
    max_parallel: MaxParallel = None,
    sweep: Sweep = None,
    seeds: Seeds = None,
    resume: AddMissing = False,
    dry_run: DryRun = False,
    wait: Wait = False,
) -> None:
    """Train and test all folds, on this machine or on a Slurm cluster.

    Writes the summary of all folds. Run the same command again to resume.

    Example: [bold]dfer crossval dfew_vitb32 --folds 1,3-5 --nproc 8 data.shards=data/dfew[/bold],
    or, on a cluster, [bold]dfer crossval dfew_vitb32 --cluster gpus8 cluster.nodes=3 --wait[/bold];
    two settings with three seeds each:
    [bold]dfer crossval dfew_vitb32 --sweep model.image=all,lora --seeds 0-2[/bold]
    """
    settings, cluster_settings = split_overrides(overrides or [])
    allowed, deadline = allow_drift or (), _deadline(max_minutes)
    request = JobRequest(experiment, settings, name, runs, folds, allowed, sweep or (), seeds)
    if cluster == LOCAL:
        others: dict[str, object] = {"--max-parallel": max_parallel, "--resume": resume}
        others |= {"--dry-run": dry_run, "--wait": wait}
        given = [*cluster_settings, *(name for name, value in others.items() if value)]
        if given:
            raise UserError(f"{given[0]} is for a cluster: give --cluster NAME too")
        if request.folder:
            _train_sweep(request, nproc or 1, deadline)
            return
        run, chosen = open_run(runs, name, experiment, settings, allowed, folds, nproc or 1)
        _cross_validate(run, chosen, nproc or 1, deadline)
        return
    if nproc or max_minutes:
        raise UserError(
            "--nproc and --max-minutes are for this machine: "
            "with --cluster give cluster.nodes, cluster.gpus_per_node and cluster.time_minutes"
        )
    from launch.slurm.batch import ClusterTarget

    target = ClusterTarget(cluster, load_cluster(cluster, cluster_settings), max_parallel)
    _submit(request, target, resume, dry_run, wait)


def _submit(
    request: JobRequest, target: ClusterTarget, resume: bool, dry_run: bool, wait: bool
) -> None:
    """Submit what is requested to a cluster, or show what would be submitted."""
    from launch.slurm.submit import show_submission, submit

    if dry_run:
        show_submission(request, target)
        return
    submitted = submit(request, target, resume)
    if wait:
        sys.exit(watch.wait(submitted))


def resume(run: options.RunFolder, nproc: options.NumRanks = None) -> None:
    """Resume a run with the settings it has.

    Trains the folds that were asked for before. Those of a submitted run that are missing are
    submitted again; other runs train here. RUN may be the folder of a sweep.

    Example: [bold]dfer resume runs/dfew_vitb32[/bold]
    """
    if SweepDir(run.resolve()).search.is_file():
        raise UserError(f"{run} is a search: give its dfer tune command again")
    for run_dir in expand(run):
        _resume(run_dir, nproc)


def _resume(run_dir: RunDir, nproc: int | None) -> None:
    folds = run_dir.info().folds_to_train
    if run_dir.answers.exists():
        raise UserError(f"{run_dir.root} is not trained: give its dfer eval command again")
    if not run_dir.jobs.exists():
        _cross_validate(run_dir, folds, nproc or 1)
        return
    if nproc:
        raise UserError(
            f"--nproc is for runs on this machine: {run_dir.root} was submitted to a cluster, "
            "leave --nproc out"
        )
    from launch.slurm.submit import resume as submit_again

    submit_again(run_dir)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data.")] = Path("data/demo"),
    runs: options.RunsFolder = Path("runs"),
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Ranks on this machine. Default: 2, or 1 on one GPU.")
    ] = None,
    clips: Annotated[int, typer.Option(min=70, help="Number of clips to render.")] = 700,
    name: options.RunName = None,
    overrides: options.Overrides = None,
) -> None:
    """Render a small data set, pack it, train five folds, and print the results.

    Needs no GPU and no downloads.

    Example: [bold]dfer demo[/bold]
    """
    from dfer_dist.config.load import load_config
    from dfer_dist.config.schema import split_batch
    from dfer_dist.data.sources.datasets import read_dataset
    from dfer_dist.demo.dataset import render_demo
    from launch.commands.data import pack_listing
    from launch.local import count_gpus, fast_bf16

    ranks = nproc or min(2, count_gpus() or 2)
    shards = out / "shards"
    settings = [f"data.shards={shards}", *(overrides or [])]
    if not fast_bf16():
        console.print("this machine is slow in bf16: training in float32")
        settings.insert(0, "train.precision=fp32")
    # refuse a wrong batch size before minutes of rendering
    split_batch(load_config("demo", settings), ranks)
    _check_demo_size(shards, clips)
    with progress_bar("render clips") as progress:
        source = render_demo(out / "source", clips=clips, progress=progress)
    listing = read_dataset("demo", source / "frames", source / "lists")
    pack_listing(listing, shards, clips_per_shard=64)
    run, folds = open_run(runs, name, "demo", settings, ("code", "versions"), None, ranks)
    _cross_validate(run, folds, ranks)


def _check_demo_size(shards: Path, clips: int) -> None:
    """Refuse to render over a demo with another number of clips."""
    from dfer_dist.data.shards.index import read_index

    if not (shards / "index.json").is_file():
        return
    present = sum(shard.clips for shard in read_index(shards).shards)
    if present != clips:
        raise UserError(
            f"{shards} holds a demo of {present} clips: "
            f"give --clips {present}, or another folder with --out"
        )


def _deadline(max_minutes: float | None) -> float | None:
    """Return the Unix time before which to stop."""
    return None if max_minutes is None else time.time() + 60 * max_minutes


def _cross_validate(
    run: RunDir, folds: list[int], ranks: int, deadline: float | None = None
) -> None:
    """Train folds on this machine, report those that have a result, and exit if any failed."""
    _exit_if_failed(_train_and_report(run, folds, ranks, deadline))


def _train_and_report(
    run: RunDir, folds: list[int], ranks: int, deadline: float | None
) -> list[int]:
    """Train folds, report those that have a result, and return those that failed."""
    failed = _train_folds(run, folds, ranks, deadline)
    status = "FAILED" if failed else "FINISHED"
    if any(run.fold(k).result.exists() for k in folds):
        report_run(run, status)
    elif failed:
        update_mlflow_runs(run, status)
    return failed


def _train_sweep(request: JobRequest, ranks: int, deadline: float | None) -> None:
    """Train all runs of a sweep on this machine, and compare them."""
    sweep, runs = open_sweep(request, ranks)
    failed: list[str] = []
    for i, (run, folds) in enumerate(runs, 1):
        print_line(f"{run.root.name}, run {i} of {len(runs)}", style="bold")
        if is_reported(run, folds):
            print_line(f"all folds of {run.root} are done")
            update_mlflow_runs(run, "FINISHED")
            continue
        # the settings of another run may work
        try:
            failed += [run.root.name] * bool(_train_and_report(run, folds, ranks, deadline))
        except UserError as error:
            print_line(f"{run.root.name}: {error}", style="red")
            failed.append(run.root.name)
    report_sweep(sweep)
    if failed:
        names = ", ".join(failed)
        sys.exit(f"{names} failed; fix the cause, then run the same command to resume")


def _train_folds(run: RunDir, folds: list[int], ranks: int, deadline: float | None) -> list[int]:
    """Train folds on this machine and return those that failed; exit if interrupted."""
    from launch.local import run_folds
    from launch.processes import Interrupted

    try:
        with opening_mlflow_runs(run):
            return run_folds(run, folds, ranks, deadline)
    except Interrupted as error:
        print_line(f"{error} in {run.root}; run the same command to resume")
        sys.exit(EXIT_PREEMPTED)


def _exit_if_failed(folds: list[int]) -> None:
    if folds:
        numbers = ", ".join(map(str, folds))
        sys.exit(f"fold {numbers} failed; fix the cause, then run the same command to resume")
