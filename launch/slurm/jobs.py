"""Which Slurm jobs a run has, and what a job's own output says of its end."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from launch.slurm.squeue import queue

_TAIL = 1 << 16  # bytes of an output that are looked at
# what Slurm, launch.slurm.job and launch.slurm.requeue write; a STEP is also cancelled when one of its ranks fails
_END = re.compile(
    r"^(?:slurmstepd.*\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+(?P<due> DUE TO [^*]*)? \*\*\*"
    r"|error: (?P<error>.+)|fold \d+ failed \(status \d+\): (?P<failed>.+)|(?P<again>requeued) \S+)\s*$",
    re.MULTILINE,
)


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object of the run folder; None if it is missing or damaged."""
    try:
        return read_json(path)
    except UserError:
        return None


def folds_of(run: RunDir) -> list[int]:
    """The folds of a run.

    Raises
    ------
    UserError
        If the folder is no run, or its ``run.json`` is damaged.
    """
    folds = run.describe().get("folds")
    if not isinstance(folds, list) or not all(isinstance(k, int) for k in folds):
        raise UserError(f"{run.run} does not name its folds: it is damaged")
    return folds


def submissions(run: RunDir) -> list[dict[str, Any]]:
    """What was submitted, newest last; empty for a run on this machine, and for one of ``slurm/crossval.sbatch``."""
    found = (read_object(run.jobs) or {}).get("submissions")
    return [s for s in found if isinstance(s, dict)] if isinstance(found, list) else []


def newest_jobs(run: RunDir) -> dict[int, str]:
    """The job that was submitted last for each fold."""
    return {
        int(fold): str(job)
        for s in submissions(run)
        for fold, job in (s.get("folds") or {}).items()
    }


def in_queue(run: RunDir) -> dict[int, str]:
    """The jobs of folds that are in the queue.

    Raises
    ------
    UserError
        If Slurm does not say.
    """
    mine = newest_jobs(run)
    if not mine:
        return {}
    there = queue()
    if there is None:
        raise UserError(
            f"Slurm does not answer (squeue): {run.root} was submitted before, and whether it waits there is not known"
        )
    return {
        fold: job for fold, job in mine.items() if job in there and there[job].state != "COMPLETING"
    }


def jobs_of_fold(run: RunDir, fold: int) -> list[str]:
    """Ids of the jobs that may work on a fold, newest first."""
    named = [
        folds[str(fold)]
        for s in reversed(submissions(run))
        if str(fold) in (folds := s.get("folds") or {})
    ]
    return [*map(str, named), *_array_task(run, fold)]


def _array_task(run: RunDir, fold: int) -> list[str]:
    with suppress(OSError):
        array = run.array.read_text().strip()
        return [f"{array}_{fold}"] if array.isdigit() else []
    return []


def all_jobs(run: RunDir) -> set[str]:
    """Ids of all jobs of a run, summaries included."""
    ids = {str(s["summary"]) for s in submissions(run) if s.get("summary")}
    return ids.union(*(jobs_of_fold(run, k) for k in folds_of(run)))


def output_of(run: RunDir, fold: int) -> Path | None:
    """Where the newest job of a fold that has begun wrote what is no rank's: Slurm's words, and the batch script's."""
    for s in reversed(submissions(run)):
        job = (s.get("folds") or {}).get(str(fold))
        path = run.root / str(s.get("folder")) / f"{job}_0_log.out"
        if job and path.is_file():
            return path
    # sbatch writes it where it was called: the checkout, from where people also ask
    return next(
        (p for job in _array_task(run, fold) if (p := Path(f"slurm-{job}.out")).is_file()), None
    )


def tail(path: Path, size: int) -> bytes:
    """The last ``size`` bytes of a file; nothing of one that is missing or cannot be read."""
    with suppress(OSError), path.open("rb") as f:
        f.seek(max(0, f.seek(0, 2) - size))
        return f.read()
    return b""


def end_of_job(output: Path) -> tuple[str, str]:
    """How a job ended by its own output, and a line on it.

    ``FAILED`` with the error; ``CANCELLED``; ``ENDED`` by Slurm for a reason of its own; else nothing, with the last line.
    """
    text = tail(output, _TAIL).decode(errors="replace")
    last = next(reversed(list(_END.finditer(text))), None)
    if last is None:
        return "", _last_line(text)
    if error := last["error"] or last["failed"]:
        return "FAILED", _last_line(text[: last.start()]) if error == "it wrote nothing" else error
    if last["due"] and "REQUEUE" not in last["due"]:
        return "ENDED", f"ended by Slurm{last['due'].lower().rstrip()}"
    return "CANCELLED", ""  # also where it was requeued: it left the queue while it waited there


def _last_line(text: str) -> str:
    """The last line that is not Slurm's own."""
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next(
        (line for line in lines if line and not line.startswith(("srun:", "slurmstepd"))), ""
    )


def has_output(fold: FoldDir) -> bool:
    """Whether any rank of a fold has written to its log."""
    return any(log.stat().st_size for log in fold.root.glob("log*.txt"))
