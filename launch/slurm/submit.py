"""Submit all folds of a run, or of several, as one job array, and a summary job after it.

Submitit is given the name of a function, a run folder and a fold. The code, the settings and the
list of packages are in the run folder already, so that edits of the checkout reach no job. Slurm's
accounting is never asked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from dfer_dist.config.load import dump_config
from dfer_dist.config.schema import Config
from dfer_dist.runs.layout import RunDir, parse_folds
from dfer_dist.runs.sweep import SweepDir
from dfer_dist.utils.errors import UserError
from launch.console import announced, print_line
from launch.locks import run_lock
from launch.progress import is_done
from launch.report import open_mlflow_runs
from launch.runs import known_folds, load_experiment, remove_run
from launch.slurm.batch import (
    ArrayTask,
    ClusterTarget,
    make_executor,
    make_summary_executor,
    script_text,
    submitting,
)
from launch.slurm.clients import SlurmError, run_client
from launch.slurm.cluster import restore_cluster
from launch.slurm.job import run_rank, write_summaries
from launch.slurm.jobs import Submission, queued_folds, submissions, write_submissions
from launch.sweeps.variants import JobRequest, Variant, open_variant


def _variants(request: JobRequest, target: ClusterTarget) -> list[Variant]:
    settings = target.cluster.all_settings(request.experiment, request.overrides)
    return request.variants(settings)


def show_submission(request: JobRequest, target: ClusterTarget) -> None:
    """Print the batch script and the settings of each run, without making or submitting any."""
    tasks: list[ArrayTask] = []
    configs: list[tuple[RunDir, Config]] = []
    for variant in _variants(request, target):
        config, index = load_experiment(request.experiment, variant.settings, target.cluster.ranks)
        run = RunDir((request.runs / variant.name).resolve())
        tasks += [
            ArrayTask(run, fold) for fold in parse_folds(request.folds, known_folds(config, index))
        ]
        configs.append((run, config))
    executor = make_executor(tasks, target, configs[0][0].root / "slurm" / "1")
    print_line(script_text(executor, len(tasks)))
    for run, config in configs:
        print_line(f"\n# {run.config}\n{dump_config(config)}")


def submit(request: JobRequest, target: ClusterTarget, resume: bool) -> list[RunDir]:
    """Open the requested runs and submit their folds.

    Parameters
    ----------
    request : JobRequest
        What to train.
    target : ClusterTarget
        Where.
    resume : bool
        Submit the folds that are neither done nor in the queue, if others are in the queue.

    Returns
    -------
    list of RunDir
        The runs.

    Raises
    ------
    UserError
        What :func:`~launch.runs.open_run` raises; a run of which folds are in the queue; the
        reasons for which Slurm refuses the jobs.
    """
    variants = _variants(request, target)
    runs = [RunDir((request.runs / variant.name).resolve()) for variant in variants]
    tasks: list[ArrayTask] = []
    with ExitStack() as locks:
        for run in runs:
            locks.enter_context(run_lock(run))
        fresh = [run for run in runs if not run.run.exists()]
        try:
            for run, variant in zip(runs, variants, strict=True):
                queued = _check_queue(run, resume)
                tasks += _open(request, variant, target.cluster.ranks, queued)
            _submit_tasks(tasks, runs, target, request.folder)
        except BaseException:
            for run in fresh:
                if run.run.exists() and not run.jobs.exists():
                    remove_run(run)
            raise
    return runs


def _check_queue(run: RunDir, resume: bool) -> dict[int, str]:
    """Return the folds of a run that are in the queue; without ``resume`` there must be none."""
    queued = _unfinished_folds(run)
    if queued and not resume:
        raise UserError(
            f"folds {', '.join(map(str, sorted(queued)))} of {run.root} are in the queue already: "
            "dfer status shows them, --resume adds the missing folds, dfer cancel removes them"
        )
    return queued


def _unfinished_folds(run: RunDir) -> dict[int, str]:
    """Return the jobs in the queue of folds that are not done, by fold."""
    queued = queued_folds(run, and_ending=True)
    return {fold: job for fold, job in queued.items() if not is_done(run.fold(fold))}


def _open(
    request: JobRequest, variant: Variant, ranks: int, queued: dict[int, str]
) -> list[ArrayTask]:
    """Create or resume a run and return its requested folds that are neither done nor queued."""
    with announced(f"opening the run {variant.name}"):
        run, folds = open_variant(request, variant, ranks)
    with announced(f"opening the MLflow runs of {variant.name}"):
        open_mlflow_runs(run)
    return _missing_tasks(run, folds, queued)


def resume(run: RunDir) -> None:
    """Submit the folds that are neither done nor in the queue, as they were submitted before.

    Only folds that were asked for are submitted.

    Raises
    ------
    UserError
        If an older version began the run, or Slurm refuses the jobs.
    """
    if not (run.code / "launch" / "slurm" / "job.sh").exists():
        raise UserError(
            f"{run.root} was begun by an older version of this program: give its dfer crossval "
            "command again with --allow-drift code"
        )
    entries = submissions(run)
    last, info = entries[-1], run.info()
    # an earlier version recorded the folds only as jobs
    submitted = sorted({int(fold) for entry in entries for fold in entry.folds})
    folds = info.requested or submitted or info.folds
    cluster = restore_cluster(last.settings, run.jobs)
    submit_run(run, folds, ClusterTarget(last.cluster, cluster, last.max_parallel))


def submit_run(
    run: RunDir, folds: Sequence[int], target: ClusterTarget, has_summary: bool = True
) -> None:
    """Submit the folds of a run that exists, if they are neither done nor in the queue.

    Without a summary job the last fold writes the summary.

    Raises
    ------
    UserError
        If Slurm refuses the jobs.
    """
    open_mlflow_runs(run)
    with run_lock(run):
        tasks = _missing_tasks(run, folds, _unfinished_folds(run))
        _submit_tasks(tasks, [run], target, None, has_summary)


def _missing_tasks(run: RunDir, folds: Sequence[int], queued: dict[int, str]) -> list[ArrayTask]:
    return [ArrayTask(run, k) for k in folds if k not in queued and not is_done(run.fold(k))]


def _submit_tasks(
    tasks: list[ArrayTask],
    runs: list[RunDir],
    target: ClusterTarget,
    sweep: SweepDir | None,
    has_summary: bool = True,
) -> None:
    """Submit an array and its summary job, and record both in the runs' folders."""
    if not tasks:
        print_line("all folds are done or in the queue: nothing to submit")
        return
    folder = _new_folder(sweep.root if sweep else runs[0].root / "slurm")
    executor = make_executor(tasks, target, folder)
    with announced(f"submitting {len(tasks)} folds to Slurm"), submitting():
        jobs = executor.map_array(
            run_rank, [str(task.run.root) for task in tasks], [task.fold for task in tasks]
        )
    ids = [job.job_id for job in jobs]
    array = ids[0].partition("_")[0]
    before = [(run, submissions(run), _record(run, tasks, ids, target, folder)) for run in runs]
    # at once: the jobs are in the queue even if the next lines fail
    for run, entries, new in before:
        write_submissions(run, [*entries, new])
    summary = None
    try:
        if has_summary:
            summary = _submit_summary(runs, array, target, folder, sweep)
    except UserError as e:
        # its job asks for other resources than theirs: what keeps it out need not keep them out
        compare = ""
        if sweep:
            compare = f"; compare the runs with dfer report {sweep.root}"
        print_line(
            f"no summary job ({e}): the last fold of a run writes its summary; cluster.summary "
            f"sets the job's options{compare}"
        )
    except BaseException:  # all or nothing
        with suppress(SlurmError):
            run_client("scancel", *ids, timeout=None)
        for run, entries, _ in before:
            write_submissions(run, entries)
        raise
    for run, entries, new in before:
        write_submissions(run, [*entries, replace(new, summary=summary)])
    _print_submitted(runs, ids, summary, sweep)


def _print_submitted(
    runs: list[RunDir], ids: list[str], summary: str | None, sweep: SweepDir | None = None
) -> None:
    folds = f"{len(ids)} fold{'s' * (len(ids) > 1)}"
    array = ids[0].partition("_")[0]
    shown = sweep.root if sweep else runs[0].root
    summary_text = f", their summary as {summary}" if summary else ""
    print_line(
        f"submitted {folds} as job {array}{summary_text}; follow them with dfer status {shown}"
    )
    _say_who_writes_to_sqlite(runs)


def _say_who_writes_to_sqlite(runs: list[RunDir]) -> None:
    for uri in sorted({info.uri for run in runs if (info := run.info().tracking)}):
        if uri.startswith("sqlite:"):
            print_line(
                f"MLflow: the folds do not write to {uri}, since SQLite is not safe on several "
                "nodes: their summary job does, or dfer sync; set tracking.uri=http://… to an "
                "MLflow server to follow them there"
            )


def _record(
    run: RunDir, tasks: list[ArrayTask], ids: list[str], target: ClusterTarget, folder: Path
) -> Submission:
    jobs = zip(tasks, ids, strict=True)
    return Submission(
        time=datetime.now().astimezone().isoformat(timespec="seconds"),
        cluster=target.name,
        settings=asdict(target.cluster),
        max_parallel=target.max_parallel,
        folds={str(task.fold): job for task, job in jobs if task.run == run},
        folder=os.path.relpath(folder, run.root),
        root=str(run.root),
    )


def _submit_summary(
    runs: list[RunDir], array: str, target: ClusterTarget, folder: Path, sweep: SweepDir | None
) -> str:
    """Submit the job that writes the summaries once the array is over, and return its id."""
    executor = make_summary_executor(target, folder, runs[0].code, array)
    with announced("submitting their summary"), submitting():
        job = executor.submit(
            write_summaries, [str(run.root) for run in runs], sweep and str(sweep.root)
        )
    return str(job.job_id)


def _new_folder(parent: Path) -> Path:
    """Make a folder for one submission: in a used one Submitit would return an old result."""
    used = [int(folder.name) for folder in parent.glob("*") if folder.name.isdigit()]
    folder = parent / str(1 + max(used, default=0))
    folder.mkdir(parents=True)
    return folder
