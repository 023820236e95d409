"""An element of a Slurm array, which trains one fold: what its batch script calls around and inside its ``srun``.

``open`` finds or makes the run together with the other elements of ``slurm/crossval.sbatch``, ``rank`` becomes a rank of the fold,
``close`` writes the summary so far. Submitit calls :func:`become_rank` and :func:`summarize` by their names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.provenance import python_command
from dfer_dist.utils.errors import UserError
from launch.console import run_app
from launch.locks import run_lock
from launch.options import AllowDrift, Experiment, Overrides, RunName, RunsFolder
from launch.slurm.requeue import should_requeue
from launch.tracking import open_mlflow_runs, update_mlflow_runs

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Where = Annotated[Path, typer.Argument(help="The run's folder.")]
Fold = Annotated[int, typer.Argument(help="The fold, counted from 1.")]


@app.command("open")
def open_together(
    fold: Fold,
    experiment: Experiment,
    overrides: Overrides = None,
    name: RunName = None,
    runs: RunsFolder = Path("runs"),
    allow_drift: AllowDrift = None,
) -> None:
    """Print the run's folder; nothing where the data set has no such fold.

    The first element of an array opens the run as ``dfer crossval`` does. The others, and those that are started again, take what it
    opened as it is: the checkout may have been edited since.
    """
    from launch.runs import open_run

    array = os.environ["SLURM_ARRAY_JOB_ID"]
    run = RunDir((runs / (name or Path(experiment).stem)).resolve())
    with run_lock(run) as opened_by:
        if opened_by.read() != array or not run.run.exists():
            run, _ = open_run(
                runs, name, experiment, overrides or [], allow_drift or (), None, _ranks()
            )
            open_mlflow_runs(run)
            opened_by.seek(0)
            opened_by.truncate()
            opened_by.write(array)
    if fold in run.describe()["folds"]:
        run.fold(fold).root.mkdir(exist_ok=True)
        print(run.root)
    else:
        print(f"{run.root} has no fold {fold}: nothing to do", file=sys.stderr)


def _ranks() -> int:
    """The ranks that ``srun`` will start.

    Raises
    ------
    UserError
        If GPUs of a node would have nothing to do.
    """
    nodes, tasks = int(os.environ["SLURM_JOB_NUM_NODES"]), int(os.environ.get("SLURM_NTASKS") or 1)
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    if gpus > tasks // nodes:
        raise UserError(
            f"{gpus} GPUs and {tasks // nodes} tasks on a node: each GPU wants a task; give sbatch --ntasks-per-node={gpus}"
        )
    return tasks


@app.command("rank")
def become_rank(root: Where, fold: Fold) -> NoReturn:
    """Replace this process by a rank, which reads its place from Slurm's variables and writes its log into the fold's folder.

    A fold that is done needs none.
    """
    from launch.processes import run_environment
    from launch.progress import is_done

    run, rank = RunDir(Path(root)), int(os.environ["SLURM_PROCID"])
    if is_done(run.fold(fold)):
        sys.exit(0)
    handle = os.open(run.fold(fold).log_of(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    env = run_environment(run, int(os.environ.get("SLURM_CPUS_PER_TASK") or 1))
    words = [
        *python_command(),
        "-m",
        "dfer_dist.train",
        "--run",
        str(run.root),
        "--fold",
        str(fold),
    ]
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.execve(sys.executable, words, env)


@app.command("close")
def close_together(
    root: Where,
    fold: Fold,
    status: Annotated[int, typer.Argument(help="With which the ranks ended.")],
) -> None:
    """Say how the fold ended, and unless it will be started again write the summary of all that are done."""
    from rich.console import Console

    from launch.progress import is_done, last_error
    from launch.report import report_run

    run = RunDir(root)
    if should_requeue(status):
        print(f"fold {fold} left with status {status}", file=sys.stderr, flush=True)
        return
    if status:
        print(
            f"fold {fold} failed (status {status}): {last_error(run.fold(fold), {})}",
            file=sys.stderr,
            flush=True,
        )
    with run_lock(run):
        folds = [run.fold(k) for k in run.describe()["folds"]]
        done = [is_done(k) for k in folds]
        if any(k.result.exists() for k in folds):
            report_run(
                Console(highlight=False),
                run,
                "FINISHED" if all(done) else "FAILED" if status else None,
            )


def summarize(roots: Sequence[str], comparison: str | None) -> None:
    """Write the summary of each run, folds that never came included, and close it at MLflow; of several, the comparison too."""
    from rich.console import Console

    from dfer_dist.reporting.comparison import write_overview
    from launch.progress import is_done
    from launch.report import report_run
    from launch.slurm.jobs import in_queue

    console, runs = Console(highlight=False), [RunDir(Path(root)) for root in roots]
    for run in runs:
        about = run.describe()
        missing = [k for k in about["folds"] if not is_done(run.fold(k))]
        waiting = in_queue(run)  # submitted later: their own summary closes the run
        never = [k for k in missing if k not in waiting]
        if len(missing) < len(about["folds"]):
            report_run(console, run, None if waiting else "FAILED" if missing else "FINISHED")
        else:
            console.print(f"{run.root}: no fold came to its end", soft_wrap=True)
        if never:
            update_mlflow_runs(run, "FAILED" if len(never) == len(about["folds"]) else None, never)
    if comparison:
        console.print(write_overview(runs, Path(comparison)))


if __name__ == "__main__":
    run_app(app)
