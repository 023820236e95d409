"""The batch script of an array of folds, made by Submitit."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmExecutor

from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.provenance import python_command
from dfer_dist.utils.errors import UserError
from launch.slurm.cluster import Cluster


@dataclass(frozen=True)
class ClusterTarget:
    """Where to: the cluster by its name, and how many folds may run at a time."""

    name: str
    cluster: Cluster
    max_parallel: int | None = None


def make_executor(
    tasks_of_array: list[tuple[RunDir, int]], target: ClusterTarget, folder: Path
) -> SlurmExecutor:
    """Submitit's executor for an array of these elements, or for one plain job."""
    cluster = target.cluster
    try:
        executor = SlurmExecutor(folder, python=shlex.join(python_command()))
    except RuntimeError as e:
        raise UserError(
            "there is no Slurm client here (srun): log in to the cluster, or leave out --cluster"
        ) from e
    place = {
        key: getattr(cluster, key)
        for key in ("partition", "account", "qos", "constraint", "nodes", "cpus_per_task")
    }
    executor.update_parameters(
        **place,
        job_name=f"dfer-{tasks_of_array[0][0].root.name}" if tasks_of_array else "dfer-summary",
        time=cluster.time_minutes,
        ntasks_per_node=cluster.tasks,
        gpus_per_node=cluster.gpus_per_node or None,
        mem=None if cluster.memory_gb is None else f"{round(1024 * cluster.memory_gb)}MB",
        signal_delay_s=cluster.notice_seconds,
        setup=_setup(cluster, tasks_of_array),
        # srun takes neither from the job since Slurm 22.05; without the other, ranks wait for ever for one that died
        srun_args=[
            f"--cpus-per-task={cluster.cpus_per_task}",
            "--cpu-bind=cores",
            "--kill-on-bad-exit=1",
        ],
        array_parallelism=target.max_parallel or max(1, len(tasks_of_array)),
        stderr_to_stdout=True,
        additional_parameters={"requeue": True},
    )
    return executor


def _setup(cluster: Cluster, tasks_of_array: list[tuple[RunDir, int]]) -> list[str]:
    """Shell lines between the options of a batch script and its ``srun``."""
    lines = user_setup_lines(cluster)
    if not tasks_of_array:
        return lines
    runs, folds = (
        " ".join(shlex.quote(str(x)) for x in column)
        for column in zip(*((r.root, k) for r, k in tasks_of_array), strict=True)
    )
    return [
        *lines,
        f"runs=({runs})",
        f"folds=({folds})",
        "element=${SLURM_ARRAY_TASK_ID:-0}",
        "run=${runs[element]} fold=${folds[element]}",
        f"python={shlex.quote(sys.executable)} most={cluster.max_requeues}",
        'source "$run/code/launch/slurm/job.sh" || exit',
    ]


def user_setup_lines(cluster: Cluster) -> list[str]:
    """Shell lines that a person has given for the nodes."""
    return [
        *cluster.setup,
        *(f"export {key}={shlex.quote(value)}" for key, value in cluster.environment.items()),
    ]


@contextmanager
def slurm_errors() -> Iterator[None]:
    """Slurm's own words as one error; Submitit would print them as well."""
    try:
        with redirect_stderr(StringIO()):
            yield
    except FailedJobError as e:
        said = [
            line.removeprefix("sbatch: ").removeprefix("error: ")
            for line in str(e).splitlines()
            if line.startswith("sbatch: ")
        ]
        raise UserError(f"Slurm takes no such job: {'; '.join(said) or str(e).strip()}") from e
