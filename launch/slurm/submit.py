"""All folds of a run, or of several, as one array of a Slurm cluster, and a summary after them, through Submitit.

What is submitted is an importable function, a run folder and a fold; the code, the settings and the list of packages are in the run
folder already, so that edits of the checkout reach no job. Nothing here asks Slurm's accounting.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from dfer_dist.config.load import dump_config, load_config
from dfer_dist.config.schema import split_batch
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json
from launch.locks import run_lock
from launch.progress import is_done
from launch.runs import open_run, remove_run
from launch.slurm.batch import ClusterTarget, make_executor, slurm_errors, user_setup_lines
from launch.slurm.cluster import Cluster
from launch.slurm.job import become_rank, summarize
from launch.slurm.jobs import in_queue, submissions
from launch.slurm.squeue import cancel
from launch.tracking import open_mlflow_runs

# a job of one processor for the summary
_SUMMARY = {
    "time": 30,
    "nodes": 1,
    "ntasks_per_node": 1,
    "cpus_per_task": 1,
    "mem": "4GB",
    "gpus_per_node": None,
}


@dataclass(frozen=True)
class JobRequest:
    """What a person wants on a cluster: one experiment, or one with several values of a setting."""

    experiment: str
    overrides: list[str]
    name: str | None
    runs: Path
    folds: str | None
    allow_drift: Sequence[str]
    sweep: str | None  # such as model.backbone=ViT-B-32,ViT-L-14

    @property
    def label(self) -> str:
        return self.name or Path(self.experiment).stem

    def variants(self) -> list[tuple[str, list[str]]]:
        """Name and settings of each run.

        Raises
        ------
        UserError
            If the sweep is not ``KEY=VALUE,VALUE``.
        """
        if self.sweep is None:
            return [(self.label, self.overrides)]
        key, eq, rest = self.sweep.partition("=")
        values = list(dict.fromkeys(filter(None, rest.split(","))))
        if not (key and eq and len(values) > 1):
            raise UserError(
                f"--sweep {self.sweep}: give a setting and two values or more, such as model.backbone=ViT-B-32,ViT-L-14"
            )
        names = [f"{self.label}-{re.sub('[^A-Za-z0-9._-]+', '-', value)}" for value in values]
        if len(set(names)) < len(names):
            raise UserError(f"--sweep {self.sweep}: these values give runs of one name, {names[0]}")
        return [
            (name, [*self.overrides, f"{key}={value}"])
            for name, value in zip(names, values, strict=True)
        ]


def staged(cluster: Cluster, wish: JobRequest) -> list[str]:
    """The settings by which shards of a shared folder are copied to the nodes' own disks, where the cluster has some."""
    from dfer_dist.data.shards.store import is_remote

    if not cluster.scratch:
        return []
    shards = load_config(wish.experiment, wish.overrides).data.shards
    words = [] if is_remote(shards) else [f"data.shards={Path(shards).resolve().as_uri()}"]
    return [*words, f"data.cache={cluster.scratch}"]


def show(wish: JobRequest, target: ClusterTarget, console: Console) -> None:
    """Print the batch script and the settings of each run; nothing is made or submitted."""
    from dfer_dist.data.shards.index import open_index
    from dfer_dist.runs.layout import parse_folds

    tasks_of_array, configs = [], []
    for name, words in wish.variants():
        config = load_config(wish.experiment, [*words, *staged(target.cluster, wish)])
        split_batch(config, target.cluster.ranks)
        known = open_index(config.data, config.data.loss_budget).folds
        run = RunDir((wish.runs / name).resolve())
        tasks_of_array += [
            (run, k) for k in (known if wish.folds is None else parse_folds(wish.folds, known))
        ]
        configs.append((run, config))
    executor = make_executor(tasks_of_array, target, configs[0][0].root / "slurm" / "1")
    if len(tasks_of_array) > 1:
        executor.parameters["map_count"] = len(tasks_of_array)  # as Submitit does for an array
    console.print(
        executor._make_submission_file_text(executor._submitit_command_str, ""),
        markup=False,
        soft_wrap=True,
    )
    for run, config in configs:
        console.print(f"\n# {run.config}\n{dump_config(config)}", markup=False, soft_wrap=True)


def submit(wish: JobRequest, target: ClusterTarget, resume: bool, console: Console) -> list[RunDir]:
    """Open the runs of a wish and submit their folds; returns the runs.

    Parameters
    ----------
    resume : bool
        Submit only folds that are neither done nor in the queue, where some are in the queue already.

    Raises
    ------
    UserError
        What :func:`~launch.runs.open_run` raises; a run of which folds are in the queue; what Slurm says against it.
    """
    runs, tasks_of_array, fresh = [], [], []
    with ExitStack() as held:
        try:
            for name, words in wish.variants():
                run = RunDir((wish.runs / name).resolve())
                held.enter_context(run_lock(run))
                busy = set(in_queue(run))
                if busy and not resume:
                    raise UserError(
                        f"folds {', '.join(map(str, sorted(busy)))} of {run.root} are in the queue already: dfer status shows them, "
                        "--resume adds what is missing, dfer cancel takes them out"
                    )
                new = not run.run.exists()
                settings = [*words, *staged(target.cluster, wish)]
                run, folds = open_run(
                    wish.runs,
                    name,
                    wish.experiment,
                    settings,
                    wish.allow_drift,
                    wish.folds,
                    target.cluster.ranks,
                )
                fresh += [run] if new else []
                open_mlflow_runs(run)
                runs.append(run)
                tasks_of_array += [
                    (run, k) for k in folds if k not in busy and not is_done(run.fold(k))
                ]
            together = (wish.runs / f"{wish.label}.sweep").resolve() if wish.sweep else None
            _send(tasks_of_array, runs, target, together, console)
        except BaseException:
            for run in fresh:
                if not run.jobs.exists():
                    remove_run(run)
            raise
    return runs


def resume(run: RunDir, console: Console) -> None:
    """Submit what is neither done nor in the queue, as it was submitted before.

    Raises
    ------
    UserError
        What Slurm says against it.
    """
    last = submissions(run)[-1]
    open_mlflow_runs(run)
    with run_lock(run):
        busy = in_queue(run)
        tasks_of_array = [
            (run, k) for k in run.describe()["folds"] if k not in busy and not is_done(run.fold(k))
        ]
        _send(
            tasks_of_array,
            [run],
            ClusterTarget(last["cluster"], Cluster(**last["settings"]), last["max_parallel"]),
            None,
            console,
        )


def _send(
    tasks_of_array: list[tuple[RunDir, int]],
    runs: list[RunDir],
    target: ClusterTarget,
    together: Path | None,
    console: Console,
) -> None:
    """Submit an array and the summary after it, and write both into the runs' folders."""
    if not tasks_of_array:
        console.print("all folds are done or in the queue: nothing to submit")
        return
    folder = _fresh(together or runs[0].root / "slurm")
    executor = make_executor(tasks_of_array, target, folder)
    with slurm_errors():
        sent = executor.map_array(
            become_rank, *zip(*[(str(run.root), fold) for run, fold in tasks_of_array], strict=True)
        )
    ids = [job.job_id for job in sent]
    new: dict[str, Any] = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cluster": target.name,
    }
    new |= {"settings": asdict(target.cluster), "max_parallel": target.max_parallel}
    before = {run.root: submissions(run) for run in runs}

    def record(summary: str | None) -> None:
        for run in runs:
            folds = {
                str(fold): job
                for (there, fold), job in zip(tasks_of_array, ids, strict=True)
                if there == run
            }
            more = {"folds": folds, "summary": summary, "folder": os.path.relpath(folder, run.root)}
            write_json(run.jobs, {"submissions": [*before[run.root], {**new, **more}]})

    record(None)  # at once: these jobs are there whatever comes now
    try:
        summary = _send_summary(runs, ids[0].partition("_")[0], target, folder, together)
    except BaseException:  # all or nothing
        cancel(ids)
        for run in runs:
            write_json(run.jobs, {"submissions": before[run.root]}) if before[
                run.root
            ] else run.jobs.unlink()
        raise
    record(summary)
    number, where = len(ids), runs[0].root if len(runs) == 1 else f"--runs {runs[0].root.parent}"
    console.print(
        f"submitted {number} fold{'s' * (number > 1)} as job {ids[0].partition('_')[0]}, their summary as {summary}; "
        f"dfer status {where} shows how they stand",
        soft_wrap=True,
    )


def _send_summary(
    runs: list[RunDir], array: str, target: ClusterTarget, folder: Path, together: Path | None
) -> str:
    """Submit the job that writes the summary once no element of the array is left; returns its id."""
    executor = make_executor([], target, folder)
    code = f"export PYTHONPATH={shlex.quote(str(runs[0].code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    setup = [*user_setup_lines(target.cluster), code]
    executor.update_parameters(
        **_SUMMARY, srun_args=["--cpus-per-task=1"], setup=setup, dependency=f"afterany:{array}"
    )
    comparison = str(together / "comparison.md") if together else None
    with slurm_errors():
        return str(executor.submit(summarize, [str(run.root) for run in runs], comparison).job_id)


def _fresh(parent: Path) -> Path:
    """A folder of its own for a submission: Submitit would take an old result for a new one's."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (parent / str(number)).mkdir()
            return parent / str(number)
        except FileExistsError:
            number += 1
