"""Folds on this machine, one after the other, each started again where its ranks die."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dfer_dist.distributed.preemption import EXIT_PREEMPTED, TIME_IS_UP
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json
from launch.processes import POLL, Interrupted, Job, SignalCounter, run_ranks
from launch.progress import Follower, verdict

_LEAVING = 60.0  # seconds that ranks get to leave whose command is gone
_MARGIN = 60.0  # seconds before a deadline in which no fold is begun
_RESTARTS = 3  # of a fold whose ranks die without a newer checkpoint


def run_folds(
    run: RunDir, folds: list[int], nproc: int, console: Console, deadline: float | None = None
) -> list[int]:
    """Train and test folds that are not done yet; returns those that failed.

    A fold whose ranks die by a signal, as when memory runs out or when they hang, is started again from its last checkpoint.

    Parameters
    ----------
    deadline : float, optional
        Unix time before which to save and leave.

    Raises
    ------
    UserError
        If a fold stopped for a mistake that a person can mend; the other folds would stop for it too.
    Interrupted
        After Ctrl-C or SIGTERM, or when time is up, once all ranks have saved and left.
    """
    told = SignalCounter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    try:
        with Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console
        ) as progress:
            failed = []
            for k in folds:
                if not _run_fold(run, k, nproc, deadline, told, progress, console):
                    failed.append(k)
                    if told.times:  # it failed while it left: that is what there is to tell
                        break
            return failed
    finally:
        told.restore()


def _run_fold(
    run: RunDir,
    fold: int,
    nproc: int,
    deadline: float | None,
    told: SignalCounter,
    progress: Progress,
    console: Console,
) -> bool:
    """Whether the fold is done now; what :func:`run_folds` raises."""
    where = run.fold(fold)
    task = progress.add_task(f"fold {fold}", total=None, figures="")
    if is_done(where):
        progress.update(task, total=1, completed=1, figures=verdict(where) + ", kept")
        return True
    progress.update(task, figures="starting")
    earlier = {log: log.stat().st_size for log in where.root.glob("log*.txt")}
    with _locked(where) as lock:
        job = Job(run, fold, nproc, deadline, lock, told)
        code, killed = _run_again(job, Follower(where, progress, task), console)
    if code == 0:
        progress.update(task, figures=verdict(where))
        if not console.is_terminal:
            console.print(f"fold {fold}: {verdict(where)}")
        return True
    line = killed or last_error(where, earlier)
    if code == 2:
        raise UserError(line)
    progress.update(task, figures="failed")
    console.print(
        f"fold {fold} failed (status {code}): {line}; its log is {where.log}",
        style="red",
        markup=False,
        soft_wrap=True,
    )
    return False


def is_done(fold: FoldDir) -> bool:
    """Whether there is a result and all was said of it: a kill may come before the tracking server has it."""
    return (
        fold.result.exists() and fold.status.exists() and read_json(fold.status)["state"] == "DONE"
    )


def _run_again(job: Job, follow: Follower, console: Console) -> tuple[int, str | None]:
    """Run a fold until it ends for a reason of its own; returns what :func:`launch.processes.run_ranks` does."""
    where = job.where
    left = _RESTARTS
    while True:
        if job.told.times:
            raise Interrupted("all is saved")
        if job.deadline and time.time() > job.deadline - _MARGIN:
            raise Interrupted(f"{TIME_IS_UP}: all is saved")
        before = _checkpoints(where)
        code, killed = run_ranks(job, follow)
        if code in (0, 2) or (code != EXIT_PREEMPTED and not killed):
            return code, killed
        why = read_json(where.status)["attempts"][-1]["why"] if where.status.exists() else None
        if code == EXIT_PREEMPTED and why == TIME_IS_UP:
            raise Interrupted(f"{TIME_IS_UP}: saved")
        left = _RESTARTS if _checkpoints(where) != before else left - 1
        if left < 0:
            return code, killed
        console.print(
            f"fold {job.fold}: {killed or why}; going on from the last checkpoint",
            markup=False,
            soft_wrap=True,
        )


def _checkpoints(fold: FoldDir) -> set[str]:
    return {d.name for d in fold.checkpoints.glob("step-*")}


@contextmanager
def _locked(fold: FoldDir) -> Iterator[int]:
    """Hold a fold for this command and its ranks, which inherit the file; the kernel lets go when the last of them ends.

    Ranks whose command was killed are waited for: they save and leave.
    """
    fold.root.mkdir(parents=True, exist_ok=True)
    with (fold.root / ".lock").open("a+") as f:
        deadline, looks = time.monotonic() + _LEAVING, 0
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as e:
                f.seek(0)
                looks += 1  # who asks whether it is held, holds it for a moment too
                if looks > 1 and (time.monotonic() > deadline or not is_gone(f.read())):
                    raise UserError(
                        f"another command is working on {fold.root}: wait for it, or stop it"
                    ) from e
            time.sleep(POLL)
        f.truncate(0)
        f.write(f"{socket.gethostname()} {os.getpid()}")
        f.flush()
        yield f.fileno()


def is_gone(holder: str) -> bool:
    """Whether the process that wrote ``HOST PID`` is known to have ended."""
    host, _, pid = holder.partition(" ")
    return host == socket.gethostname() and pid.isdigit() and not Path(f"/proc/{pid}").exists()


def last_error(fold: FoldDir, earlier: dict[Path, int]) -> str:
    """The line that says why an attempt failed; ``earlier`` has the bytes that earlier attempts left in each log."""
    new = [log.read_bytes()[earlier.get(log, 0) :] for log in sorted(fold.root.glob("log*.txt"))]
    lines = [line for text in new for line in text.decode(errors="replace").splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else (lines[-1] if lines else "it wrote nothing")


def gpus_here() -> list[Path]:
    """The GPUs that this machine has, by their device files: torch, which knows those that may be used, takes seconds to import."""
    return sorted(Path("/dev").glob("nvidia[0-9]*"))


def fast_bf16() -> bool:
    """Whether bf16 is no slower than float32 here: on a GPU, or a processor with AVX-512, AMX or Arm's bf16 instructions.

    Without them torch emulates: the demo's model trained at 8 clips/s against 100 in float32 (measured with oneDNN held to
    AVX2).
    """
    if gpus_here():
        return True
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return not {"avx512f", "amx_bf16", "bf16"}.isdisjoint(cpu.split())
