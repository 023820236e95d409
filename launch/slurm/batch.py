"""The batch script of an array of folds, made by Submitit.

Submitit submits the script that it makes, but has no public function that returns it.
:func:`script_text` therefore calls ``SlurmExecutor._make_submission_file_text`` and
``_submitit_command_str``, for ``dfer crossval --dry-run`` alone, and sets the parameter
``map_count`` as ``SlurmExecutor._internal_process_submissions`` does for an array. Read in Submitit
1.5.3 and 1.5.4: ``setup.cfg`` bounds the version, and
``tests/unit/launch/slurm/test_batch.py`` fails when one of these functions changes.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, NamedTuple

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.provenance import python_command
from dfer_dist.utils.errors import UserError
from launch.slurm.clients import cleaned_environment
from launch.slurm.cluster import Cluster
from launch.slurm.sbatch_options import sent
from launch.submitit_paths import executor_class

_SUMMARY_MEMORY_GB = 4
_SUMMARY_MINUTES = 30


class ArrayTask(NamedTuple):
    """A task of a job array: it trains one fold of a run."""

    run: RunDir
    fold: int


@dataclass(frozen=True)
class ClusterTarget:
    """Where folds are submitted to, and how many of them may run at a time."""

    name: str
    cluster: Cluster
    max_parallel: int | None = None


def make_executor(tasks: list[ArrayTask], target: ClusterTarget, folder: Path) -> SlurmExecutor:
    """Return Submitit's executor for a job array of folds.

    Parameters
    ----------
    tasks : list of ArrayTask
        What is trained, in the order of the array.
    target : ClusterTarget
        Where.
    folder : Path
        For the batch script, its arguments and the jobs' output.

    Raises
    ------
    UserError
        If Slurm is not installed here.
    """
    cluster = target.cluster
    return _executor(
        folder,
        cluster,
        # set by job.sh
        'bash -c "$rank_command" rank ',
        **fold_options(cluster),
        job_name=f"dfer-{tasks[0].run.root.name}",
        setup=_setup(cluster, tasks),
        # since Slurm 22.05 srun does not inherit the CPUs of a task from the job; without
        # --kill-on-bad-exit the other ranks would wait for one that died
        srun_args=[
            f"--cpus-per-task={cluster.cpus_per_task}",
            "--cpu-bind=cores",
            "--kill-on-bad-exit=1",
            *_srun_options(folder, len(tasks)),
        ],
        array_parallelism=target.max_parallel or max(1, len(tasks)),
        additional_parameters={
            "requeue": True,
            "output": _output(folder, len(tasks), 0),
            **sent(cluster.sbatch),
        },
    )


def fold_options(cluster: Cluster) -> dict[str, Any]:
    """Return what a fold's job asks of Slurm, as parameters of Submitit."""
    options = _placement(cluster) | {
        "time": cluster.time_minutes,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": memory(cluster.memory_gb),
    }
    # `gres` names the GPUs itself: with both options Slurm would ask for both
    if cluster.gpus_per_node and "gres" not in sent(cluster.sbatch):
        options["gpus_per_node"] = cluster.gpus_per_node
    return options


def make_summary_executor(
    target: ClusterTarget, folder: Path, code: Path, array: str | None
) -> SlurmExecutor:
    """Return Submitit's executor for the job that writes the summary after the array ``array``.

    Parameters
    ----------
    target : ClusterTarget
        Where; ``cluster.summary`` replaces what the folds' jobs ask for.
    folder : Path
        For the batch script, its arguments and the job's output.
    code : Path
        The copy of the code that the job runs.
    array : str, optional
        The id of the job array; None for a job that waits for none, to check its options.
    """
    cluster = target.cluster
    path = f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    options = _placement(cluster) | {"mem": memory(_SUMMARY_MEMORY_GB)}
    options |= {name: None for name in options if cluster.summary.get(name) is False}
    return _executor(
        folder,
        cluster,
        "",
        **options,
        job_name="dfer-summary",
        time=_SUMMARY_MINUTES,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=1,
        setup=[*user_setup_lines(cluster), path],
        srun_args=["--cpus-per-task=1", *_srun_options(folder, 1)],
        dependency=array and f"afterany:{array}",
        additional_parameters={
            "requeue": True,
            "output": _output(folder, 1, 0),
            **sent(cluster.summary),
        },
    )


def _srun_options(folder: Path, num_tasks: int) -> list[str]:
    # after SBATCH_EXPORT=NONE, or where a site sets it, tasks would lack what job.sh exports
    return ["--export=ALL", f"--output={_output(folder, num_tasks, '%t')}"]


def _output(folder: Path, num_tasks: int, task: int | str) -> str:
    """Return the output file as Submitit names it; a per cent sign of the folder is escaped."""
    job = "%A_%a" if num_tasks > 1 else "%j"
    return f"{str(folder).replace('%', '%%')}/{job}_{task}_log.out"


def _executor(folder: Path, cluster: Cluster, before: str, **parameters: Any) -> SlurmExecutor:
    """Return an executor; ``before`` is put before the command of Python."""
    try:
        executor = executor_class(folder)(folder, python=before + shlex.join(python_command()))
    except RuntimeError as e:
        raise UserError(
            "Slurm is not installed here (no srun on PATH): log in to the cluster, or leave out "
            "--cluster"
        ) from e
    notice = cluster.notice_seconds
    # Submitit's own workload key is refused where keys are enforced
    executor.update_parameters(
        stderr_to_stdout=True, signal_delay_s=notice, wckey=None, **parameters
    )
    return executor


def _placement(cluster: Cluster) -> dict[str, Any]:
    return {key: getattr(cluster, key) for key in ("partition", "account", "qos", "constraint")}


def memory(gb: float | None) -> str | None:
    """Return the argument of ``--mem`` for a number of GB (2**30 bytes)."""
    if gb is None:
        return None
    return f"{round(1024 * gb)}MB"


def script_text(executor: SlurmExecutor, num_tasks: int) -> str:
    """Return the batch script that Submitit would submit for an array of ``num_tasks``."""
    if num_tasks > 1:  # of one task Submitit makes a plain job
        executor.parameters["map_count"] = num_tasks
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def _setup(cluster: Cluster, tasks: list[ArrayTask]) -> list[str]:
    """Return the shell lines between the options of the batch script and its ``srun``."""
    runs = " ".join(shlex.quote(str(task.run.root)) for task in tasks)
    folds = " ".join(str(task.fold) for task in tasks)
    return [
        *user_setup_lines(cluster),
        f"runs=({runs})",
        f"folds=({folds})",
        "task=${SLURM_ARRAY_TASK_ID:-0}",
        "run=${runs[task]} fold=${folds[task]}",
        f"python={shlex.quote(sys.executable)} max_requeues={cluster.max_requeues}",
        'source "$run/code/launch/slurm/job.sh" || exit',
    ]


def user_setup_lines(cluster: Cluster) -> list[str]:
    """Return the shell lines of ``cluster.setup`` and of the variables of the job."""
    exports = (f"export {key}={_in_quotes(value)}" for key, value in cluster.variables.items())
    return [*cluster.setup, *exports]


def _in_quotes(value: str) -> str:
    r"""Quote a value for the shell, which replaces its variables and nothing else.

    A dollar sign that begins no variable stays, and ``\\$`` is one.
    """
    special = r'\\\$|\\|["`]|\$(?![A-Za-z_{])'
    escaped = re.sub(special, lambda m: m[0] if m[0] == "\\$" else f"\\{m[0]}", value)
    return f'"{escaped}"'


@contextmanager
def submitting() -> Iterator[None]:
    """Submit without the shell's own options, and turn Slurm's refusal into a :class:`UserError`.

    Submitit would also print the refusal.

    Raises
    ------
    UserError
        With the reasons that ``sbatch`` gives.
    """
    try:
        with redirect_stderr(StringIO()), cleaned_environment():
            yield
    except (FailedJobError, FailedSubmissionError) as e:
        reasons = re.findall("^sbatch: (?:error: )?(.*)", str(e), re.MULTILINE)
        # a wrapper of the site may print them anywhere, or not at all
        printed = e.__cause__.stdout if isinstance(e.__cause__, CalledProcessError) else ""
        text = "; ".join(reasons) or " ".join(f"{e} {printed}".split()) or "sbatch gives no reason"
        raise UserError(f"Slurm refuses the job: {text}") from e
