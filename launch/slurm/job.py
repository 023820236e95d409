"""What a job does around and inside the ``srun`` of the ranks of its fold.

``slurm/crossval.sbatch`` and ``job.sh`` call the commands of this module: ``open`` makes or finds
the run, ``rank`` becomes a rank of the fold, ``close`` writes the summary so far. Submitit calls
:func:`run_rank` and :func:`write_summaries` by their names.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.provenance import resolved_python_command
from dfer_dist.runs.sweep import SweepDir
from dfer_dist.utils.errors import UserError
from launch.console import console, run_app
from launch.locks import run_lock
from launch.options import AllowDrift, Experiment, Overrides, RunFolder, RunName, RunsFolder
from launch.report import open_mlflow_runs, report_run, report_sweep, update_mlflow_runs
from launch.slurm.requeue import decide

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_SQUEUE_TRIES = 12
_SQUEUE_PAUSE = 10.0  # seconds between them
Fold = Annotated[int, typer.Argument(help="The fold, counted from 1.")]


@app.command("open")
def open_shared_run(
    fold: Fold,
    experiment: Experiment,
    overrides: Overrides = None,
    name: RunName = None,
    runs: RunsFolder = Path("runs"),
    allow_drift: AllowDrift = None,
) -> None:
    """Print the run's folder, or nothing if the data set has no such fold.

    The first task of an array opens the run as ``dfer crossval`` does. The other tasks, and those
    that are requeued, use this run as it is: the checkout may have been edited meanwhile.
    """
    from launch.runs import open_run

    array = os.environ["SLURM_ARRAY_JOB_ID"]
    run = RunDir((runs / (name or Path(experiment).stem)).resolve())
    with run_lock(run) as opened_by:
        if opened_by.read() != array or not run.run.exists():
            run, _ = open_run(
                runs, name, experiment, overrides or [], allow_drift or (), None, _num_ranks()
            )
            open_mlflow_runs(run)
            opened_by.seek(0)
            opened_by.truncate()
            opened_by.write(array)
    if fold in run.info().folds:
        run.fold(fold).root.mkdir(exist_ok=True)
        print(run.root)
    else:
        print(f"{run.root} has no fold {fold}: nothing to do", file=sys.stderr)


def _num_ranks() -> int:
    """Return the number of ranks that ``srun`` will start.

    Raises
    ------
    UserError
        If GPUs of a node would be idle.
    """
    nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    tasks = int(os.environ.get("SLURM_NTASKS") or 1)
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)
    if gpus > tasks // nodes:
        raise UserError(
            f"{gpus} GPUs and {tasks // nodes} tasks on a node: each GPU needs one task; "
            f"give sbatch --ntasks-per-node={gpus}"
        )
    return tasks


@app.command("rank")
def run_rank(root: RunFolder, fold: Fold) -> NoReturn:
    """Replace this process by a rank of a fold, which writes into its log; exit if it is done.

    The rank reads its number and the first node from Slurm's variables.
    """
    from launch.processes import run_environment
    from launch.progress import is_done

    run, rank = RunDir(Path(root)), int(os.environ["SLURM_PROCID"])
    if is_done(run.fold(fold)):
        sys.exit(0)
    log = os.open(run.fold(fold).log_of(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    env = run_environment(run, int(os.environ.get("SLURM_CPUS_PER_TASK") or 1))
    command = [*resolved_python_command(), "-m", "dfer_dist.train"]
    command += ["--run", str(run.root), "--fold", str(fold)]
    os.dup2(log, 1)
    os.dup2(log, 2)
    # until the program handles them: Submitit's handlers end with this program
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    os.execve(command[0], command, env)


@app.command("close")
def close_fold(
    root: RunFolder,
    fold: Fold,
    status: Annotated[int, typer.Argument(help="The exit status of the ranks.")],
    most: Annotated[int, typer.Option(help="Restarts of a job, of any kind.")] = 30,
) -> None:
    """Print how the fold ended and write the summary so far, unless the fold will be requeued."""
    from launch.progress import is_done

    run = RunDir(root)
    decision = decide(status, run.fold(fold), most)
    if status and not decision.error:
        print(f"fold {fold} ended with status {status}", file=sys.stderr, flush=True)
        return
    if decision.error:
        # launch.slurm.jobs finds this line in the job's output
        line = f"fold {fold} failed (status {status}): {decision.error}"
        print(line, file=sys.stderr, flush=True)
    with run_lock(run):
        if _ends_last(run, fold):
            _write_summary(run, fold)
            return
        folds = [run.fold(k) for k in run.info().folds]
        if not any(k.result.exists() for k in folds):
            return
        outcome = "FAILED" if status else None
        if all(is_done(k) for k in folds):
            outcome = "FINISHED"
        report_run(run, outcome)


def _ends_last(run: RunDir, fold: int) -> bool:
    """Return whether a fold ends without a summary job and with no other fold in the queue."""
    from launch.slurm.jobs import submissions

    entry = next((e for e in reversed(submissions(run)) if str(fold) in e.folds), None)
    if entry is None or entry.summary:
        return False
    try:
        return not _queued_folds(run) - {fold}
    except UserError:
        return False


def _queued_folds(run: RunDir) -> set[int]:
    """Return the folds in the queue that have not ended.

    A job stays there until it has written the summary so far: of two that end together, none may
    leave it to the other. A controller that is restarted answers after a while.
    """
    from launch.slurm.jobs import queued_folds

    for _ in range(_SQUEUE_TRIES - 1):
        with suppress(UserError):
            return _without_ended(run, queued_folds(run))
        time.sleep(_SQUEUE_PAUSE)
    return _without_ended(run, queued_folds(run))


def _without_ended(run: RunDir, jobs: dict[int, str]) -> set[int]:
    from launch.progress import is_done
    from launch.slurm.jobs import job_output, parse_job_end

    failed = {k for k in jobs if parse_job_end(job_output(run, k, jobs[k])).state == "FAILED"}
    return {k for k in jobs if k not in failed and not is_done(run.fold(k))}


def write_summaries(roots: Sequence[str], sweep: str | None) -> None:
    """Write the summary of each run and close it at MLflow.

    Parameters
    ----------
    roots : sequence of str
        The runs' folders.
    sweep : str, optional
        The folder of the sweep that they belong to, for its report.
    """
    for root in roots:
        _write_summary(RunDir(Path(root)))
    if sweep:
        report_sweep(SweepDir(Path(sweep)))


def _write_summary(run: RunDir, ending: int | None = None) -> None:
    """Write the summary of a run and close it; the job of fold ``ending`` still runs."""
    from launch.progress import is_done

    folds = run.info().folds_to_train
    missing = [k for k in folds if not is_done(run.fold(k))]
    # folds that were submitted later have a summary job of their own, which closes the run
    queued = _queued_folds(run) - {ending}
    outcome = "FAILED" if missing else "FINISHED"
    if len(missing) < len(folds):
        report_run(run, None if queued else outcome)
    else:
        console.print(f"{run.root}: no fold is done", soft_wrap=True)
    given_up = [k for k in missing if k not in queued]
    if given_up:
        update_mlflow_runs(run, "FAILED" if len(given_up) == len(folds) else None, given_up)


if __name__ == "__main__":
    run_app(app)
