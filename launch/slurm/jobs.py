"""The Slurm jobs of a run, and how a job ended according to its own output."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from dfer_dist.utils.records import Record
from launch.slurm.squeue import query_squeue

_TAIL_BYTES = 1 << 16  # of a job's output
# how the lines of others begin in it
_SLURM = ("srun:", "slurmstepd")
_OTHERS = (*_SLURM, "submitit ")
# what Slurm, launch.slurm.job and launch.slurm.requeue write; Slurm also cancels a STEP when one of
# its ranks fails
_END = re.compile(
    r"^(?:slurmstepd.*\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+(?P<due> DUE TO [^*]*)? \*\*\*"
    r"|error: (?P<error>.+)"
    r"|fold \d+ failed \(status \d+\): (?P<failed>.+)"
    r"|requeued \S+)\s*$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Submission:
    """A job array and its summary job."""

    time: str = ""
    cluster: str = ""  # its name
    settings: dict[str, Any] = field(default_factory=dict)  # of the cluster
    max_parallel: int | None = None
    folds: dict[str, str] = field(default_factory=dict)  # job ids, by fold
    summary: str | None = None  # job id
    folder: str = ""  # of Submitit's files, relative to the run
    root: str = ""  # the run's folder, in which the jobs work


@dataclass(frozen=True)
class _Submissions(Record):
    """``jobs.json``: what was submitted, newest last."""

    submissions: list[Submission]


def read_if_valid(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing or damaged."""
    try:
        return read_json(path)
    except UserError:
        return None


def submissions(run: RunDir) -> list[Submission]:
    """Return what was submitted, newest last; nothing if ``jobs.json`` is damaged.

    It is empty for a run on this machine and for one of ``slurm/crossval.sbatch``. In a copy of a
    run's folder the submissions have no jobs: those are the original's.
    """
    try:
        entries = _Submissions.read(run.jobs).submissions
    except UserError:
        return []
    return [e if _is_of(run, e) else replace(e, folds={}, summary=None) for e in entries]


def _is_of(run: RunDir, entry: Submission) -> bool:
    """Return whether the jobs of a submission work in this folder, whatever its path here."""
    if entry.root in ("", str(run.root)):
        return True
    with suppress(OSError):
        return run.root.samefile(entry.root)
    return False


def write_submissions(run: RunDir, entries: list[Submission]) -> None:
    """Write ``jobs.json``; without entries there is none."""
    if entries:
        _Submissions(entries).write(run.jobs)
    else:
        run.jobs.unlink(missing_ok=True)


def newest_jobs(run: RunDir) -> dict[int, str]:
    """Return the job that was submitted last for each fold."""
    return {int(fold): job for entry in submissions(run) for fold, job in entry.folds.items()}


def queued_folds(run: RunDir, and_ending: bool = False) -> dict[int, str]:
    """Return the jobs of the folds that are in the queue, by fold.

    Parameters
    ----------
    run : RunDir
        The run.
    and_ending : bool
        Include jobs that are COMPLETING: they may have been requeued, and wait again soon.

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
            f"Slurm does not answer (squeue): which folds of {run.root} are in the queue is not "
            "known; try again"
        )
    return {
        fold: job
        for fold, job in jobs.items()
        if job in queue and (and_ending or not queue[job].is_completing)
    }


def jobs_of_fold(run: RunDir, fold: int) -> list[str]:
    """Return the ids of the jobs that may train a fold, newest first."""
    submitted = [entry.folds.get(str(fold)) for entry in reversed(submissions(run))]
    return [*filter(None, submitted), *_plain_array_task(run, fold)]


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
    return ids.union(*(jobs_of_fold(run, k) for k in run.info().folds))


def job_output(run: RunDir, fold: int, job: str | None = None) -> Path | None:
    """Return the output of a fold's job: Slurm's and its script's.

    By default it is that of the newest job that has started.
    """
    outputs = {
        entry.folds[str(fold)]: run.root / entry.folder / f"{entry.folds[str(fold)]}_0_log.out"
        for entry in reversed(submissions(run))
        if str(fold) in entry.folds
    }
    # sbatch writes it into the folder that it is called in, the checkout
    outputs |= {task: Path(f"slurm-{task}.out") for task in _plain_array_task(run, fold)}
    return next((path for i, path in outputs.items() if job in (None, i) and path.is_file()), None)


def read_tail(path: Path, size: int) -> bytes:
    """Return the last ``size`` bytes of a file; nothing if it is missing or unreadable."""
    with suppress(OSError), path.open("rb") as f:
        f.seek(max(0, f.seek(0, 2) - size))
        return f.read()
    return b""


class JobEnd(NamedTuple):
    """How a job ended according to its output.

    ``state`` is FAILED (``detail`` is the error), CANCELLED, REQUEUED, ENDED (by Slurm, ``detail``
    says why) or empty (``detail`` is the last line).
    """

    state: str
    detail: str


def parse_job_end(output: Path | None) -> JobEnd:
    """Read how a job ended from its output, if it has any."""
    text = read_tail(output, _TAIL_BYTES).decode(errors="replace") if output else ""
    ends = list(_END.finditer(text))
    if not ends:
        by_slurm = [line for line in text.splitlines() if line.startswith(_SLURM)]
        return JobEnd("", last_own_line(text) or next(reversed(by_slurm), ""))
    last = ends[-1]
    error = last["error"] or last["failed"]
    if error == "it wrote nothing":
        error = last_own_line(text[: last.start()]) or error
    if error:
        return JobEnd("FAILED", error)
    if last["due"] and "REQUEUE" not in last["due"]:
        return JobEnd("ENDED", f"ended by Slurm{last['due'].lower().rstrip()}")
    is_requeued = last["due"] or last[0].startswith("requeued")
    return JobEnd("REQUEUED" if is_requeued else "CANCELLED", "")


def last_own_line(text: str) -> str:
    """Return the last line that says something; neither Slurm nor Submitit wrote it.

    A Python traceback says it in the line at its end, after which libraries may print more.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(_OTHERS)]
    for i in reversed(range(len(lines))):
        if lines[i].startswith("Traceback (most recent call last)"):
            end = next((line for line in lines[i + 1 :] if not line.startswith(" ")), "")
            return end or lines[-1].strip()
    return next(reversed(lines), "").strip()


def has_log(fold: FoldDir) -> bool:
    """Return whether any rank of a fold has written to its log."""
    return any(log.stat().st_size for log in fold.root.glob("log*.txt"))
