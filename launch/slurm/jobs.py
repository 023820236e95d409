"""The Slurm jobs of a run, and how a job ended according to its own output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json
from launch.slurm.cluster import Cluster, restore_cluster
from launch.slurm.squeue import query_squeue

_TAIL_BYTES = 1 << 16  # of a job's output
# what Slurm, launch.slurm.job and launch.slurm.requeue write; Slurm also cancels a STEP when one of
# its ranks fails
_END = re.compile(
    r"^(?:slurmstepd.*\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+(?P<due> DUE TO [^*]*)? \*\*\*"
    r"|error: (?P<error>.+)"
    r"|fold \d+ failed \(status \d+\): (?P<failed>.+)"
    r"|(?P<again>requeued) \S+)\s*$",
    re.MULTILINE,
)


def _mapping(values: dict[str, Any], key: str) -> dict[Any, Any]:
    """Return the mapping under ``key``; empty if it is missing or damaged."""
    value = values.get(key)
    if isinstance(value, dict):
        return value
    return {}


@dataclass(frozen=True)
class Submission:
    """A job array and its summary job: an entry of ``jobs.json``."""

    time: str
    cluster: str  # its name
    settings: dict[str, Any]  # of the cluster
    max_parallel: int | None
    folds: dict[int, str]  # job ids
    summary: str | None  # job id
    folder: str  # of Submitit's files, relative to the run

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Submission:
        """Read an entry; what is missing or damaged counts as not recorded."""
        folds = _mapping(values, "folds")
        return cls(
            time=str(values.get("time") or ""),
            cluster=str(values.get("cluster") or ""),
            settings=_mapping(values, "settings"),
            max_parallel=values.get("max_parallel"),
            folds={int(fold): str(job) for fold, job in folds.items() if str(fold).isdigit()},
            summary=str(values.get("summary") or "") or None,
            folder=str(values.get("folder") or ""),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the entry as it is stored."""
        return {**asdict(self), "folds": {str(fold): job for fold, job in self.folds.items()}}

    def with_summary(self, job: str) -> Submission:
        """Return the same with the id of the summary job."""
        return replace(self, summary=job)

    def restore_cluster(self, run: RunDir) -> Cluster:
        """Return the cluster that was submitted to.

        Raises
        ------
        UserError
            If the settings are damaged.
        """
        return restore_cluster(self.settings, run.jobs)


def read_if_valid(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing or damaged."""
    try:
        return read_json(path)
    except UserError:
        return None


def folds_of(run: RunDir) -> list[int]:
    """Return the folds of a run.

    Raises
    ------
    UserError
        If the folder is no run, or its ``run.json`` is damaged.
    """
    return run.info().folds


def submissions(run: RunDir) -> list[Submission]:
    """Return what was submitted, newest last.

    It is empty for a run on this machine and for one of ``slurm/crossval.sbatch``.
    """
    entries = (read_if_valid(run.jobs) or {}).get("submissions")
    if not isinstance(entries, list):
        return []
    return [Submission.from_json(entry) for entry in entries if isinstance(entry, dict)]


def write_submissions(run: RunDir, entries: Sequence[Submission]) -> None:
    """Write ``jobs.json``; without entries there is none."""
    if entries:
        write_json(run.jobs, {"submissions": [entry.to_json() for entry in entries]})
    else:
        run.jobs.unlink(missing_ok=True)


def newest_jobs(run: RunDir) -> dict[int, str]:
    """Return the job that was submitted last for each fold."""
    return {fold: job for entry in submissions(run) for fold, job in entry.folds.items()}


def queued_folds(run: RunDir) -> dict[int, str]:
    """Return the jobs of the folds that are in the queue, by fold.

    Raises
    ------
    UserError
        If Slurm does not answer.
    """
    jobs = newest_jobs(run)
    if not jobs:
        return {}
    queue = query_squeue()
    if queue is None:
        raise UserError(
            f"Slurm does not answer (squeue): {run.root} was submitted before, and whether its "
            "folds are in the queue is not known; try again"
        )
    return {
        fold: job for fold, job in jobs.items() if job in queue and queue[job].state != "COMPLETING"
    }


def jobs_of_fold(run: RunDir, fold: int) -> list[str]:
    """Return the ids of the jobs that may train a fold, newest first."""
    entries = reversed(submissions(run))
    submitted = [entry.folds[fold] for entry in entries if fold in entry.folds]
    return [*submitted, *_plain_array_task(run, fold)]


def _plain_array_task(run: RunDir, fold: int) -> list[str]:
    """Return the array task of ``slurm/crossval.sbatch`` that trains a fold, if there is one."""
    with suppress(OSError):
        array = run.array.read_text().strip()
        if array.isdigit():
            return [f"{array}_{fold}"]
    return []


def all_jobs(run: RunDir) -> set[str]:
    """Return the ids of all jobs of a run, those of summaries included."""
    ids = {entry.summary for entry in submissions(run) if entry.summary}
    return ids.union(*(jobs_of_fold(run, k) for k in folds_of(run)))


def job_output(run: RunDir, fold: int) -> Path | None:
    """Return the output of the newest job of a fold that has started: Slurm's and its script's."""
    for entry in reversed(submissions(run)):
        job = entry.folds.get(fold)
        path = run.root / entry.folder / f"{job}_0_log.out"
        if job and path.is_file():
            return path
    # sbatch writes it into the folder that it is called in, the checkout
    paths = (Path(f"slurm-{job}.out") for job in _plain_array_task(run, fold))
    return next((path for path in paths if path.is_file()), None)


def read_tail(path: Path, size: int) -> bytes:
    """Return the last ``size`` bytes of a file; nothing if it is missing or unreadable."""
    with suppress(OSError), path.open("rb") as f:
        f.seek(max(0, f.seek(0, 2) - size))
        return f.read()
    return b""


class JobEnd(NamedTuple):
    """How a job ended according to its output.

    ``state`` is FAILED (``detail`` is the error), CANCELLED, ENDED (by Slurm, ``detail`` says why)
    or empty (``detail`` is the last line).
    """

    state: str
    detail: str


def parse_job_end(output: Path | None) -> JobEnd:
    """Read how a job ended from its output, if it has any."""
    if output is None:
        return JobEnd("", "")
    text = read_tail(output, _TAIL_BYTES).decode(errors="replace")
    ends = list(_END.finditer(text))
    if not ends:
        return JobEnd("", _last_line(text))
    last = ends[-1]
    error = last["error"] or last["failed"]
    if error == "it wrote nothing":
        return JobEnd("FAILED", _last_line(text[: last.start()]))
    if error:
        return JobEnd("FAILED", error)
    if last["due"] and "REQUEUE" not in last["due"]:
        return JobEnd("ENDED", f"ended by Slurm{last['due'].lower().rstrip()}")
    # also if it was requeued: it was cancelled while it waited in the queue
    return JobEnd("CANCELLED", "")


def _last_line(text: str) -> str:
    """Return the last line that Slurm did not write."""
    lines = filter(None, map(str.strip, reversed(text.splitlines())))
    return next((line for line in lines if not line.startswith(("srun:", "slurmstepd"))), "")


def has_log(fold: FoldDir) -> bool:
    """Return whether any rank of a fold has written to its log."""
    return any(log.stat().st_size for log in fold.root.glob("log*.txt"))
