"""Folds on this machine, one after the other, restarted when their ranks die."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from dfer_dist.distributed.preemption import EXIT_PREEMPTED, TIME_IS_UP
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import FoldStatus
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hardware import cpu_flags
from launch.console import print_line
from launch.locks import fold_lock
from launch.processes import (
    EXIT_USER_ERROR,
    FoldJob,
    Interrupted,
    RanksExit,
    SignalCounter,
    run_ranks,
)
from launch.progress import FoldProgress, describe_result, fold_progress, is_done, last_error

_DEADLINE_MARGIN = 60.0  # seconds before a deadline in which no fold is started
_MAX_RESTARTS = 3  # of a fold whose ranks die without a newer checkpoint


def run_folds(
    run: RunDir, folds: list[int], nproc: int, console: Console, deadline: float | None = None
) -> list[int]:
    """Train and test folds that are not done yet, and return those that failed.

    A fold whose ranks are killed by a signal, as when memory runs out or when they hang, is
    restarted from its last checkpoint.

    Parameters
    ----------
    deadline : float, optional
        Unix time before which to save and stop.

    Raises
    ------
    UserError
        If a fold failed with an error that the user can fix; the other folds would fail too.
    Interrupted
        After Ctrl-C or SIGTERM, or when time is up, once all ranks have ended.
    """
    signals = SignalCounter()
    failed: list[int] = []
    try:
        with fold_progress(console) as progress:
            for k in folds:
                if not _run_fold(run, k, nproc, deadline, signals, progress, console):
                    failed.append(k)
                    # it failed while it stopped, and printed why
                    if signals.count:
                        break
    finally:
        signals.restore()
    return failed


def _run_fold(
    run: RunDir,
    fold: int,
    nproc: int,
    deadline: float | None,
    signals: SignalCounter,
    progress: Progress,
    console: Console,
) -> bool:
    """Train one fold and return whether it is done."""
    folder = run.fold(fold)
    task = progress.add_task(f"fold {fold}", total=None, metrics="")
    if is_done(folder):
        progress.update(
            task, total=1, completed=1, metrics=f"{describe_result(folder)}, done before"
        )
        return True
    progress.update(task, metrics="starting")
    log_sizes = {log: log.stat().st_size for log in folder.root.glob("log*.txt")}
    with fold_lock(folder) as lock_fd:
        job = FoldJob(run, fold, nproc, deadline, lock_fd, signals)
        status, killed = _run_until_done(job, FoldProgress(folder, progress, task), console)
    if status == 0:
        progress.update(task, metrics=describe_result(folder))
        if not console.is_terminal:
            console.print(f"fold {fold}: {describe_result(folder)}")
        return True
    reason = killed or last_error(folder, log_sizes)
    if status == EXIT_USER_ERROR:
        raise UserError(reason)
    progress.update(task, metrics="failed")
    message = f"fold {fold} failed (status {status}): {reason}; its log is {folder.log}"
    print_line(console, message, style="red")
    return False


def _run_until_done(job: FoldJob, follow: FoldProgress, console: Console) -> RanksExit:
    """Run a fold, again after its ranks were killed, until it is done or fails."""
    restarts_left = _MAX_RESTARTS
    while True:
        if job.signals.count:
            raise Interrupted("all is saved")
        if job.deadline and time.time() > job.deadline - _DEADLINE_MARGIN:
            raise Interrupted(f"{TIME_IS_UP}: all is saved")
        before = _checkpoints(job.folder)
        ended = run_ranks(job, follow)
        if ended.status in (0, EXIT_USER_ERROR):
            return ended
        if ended.status != EXIT_PREEMPTED and not ended.killed:
            return ended
        reason = _reason_of_last_attempt(job.folder)
        if ended.status == EXIT_PREEMPTED and reason == TIME_IS_UP:
            raise Interrupted(f"{TIME_IS_UP}: saved")
        advanced = _checkpoints(job.folder) != before
        restarts_left = _MAX_RESTARTS if advanced else restarts_left - 1
        if restarts_left < 0:
            return ended
        print_line(
            console,
            f"fold {job.fold}: {ended.killed or reason}; resuming from the last checkpoint",
        )


def _reason_of_last_attempt(fold: FoldDir) -> str | None:
    if not fold.status.exists():
        return None
    attempt = FoldStatus.read(fold.status).last
    return attempt.why if attempt else None


def _checkpoints(fold: FoldDir) -> set[str]:
    return {folder.name for folder in fold.checkpoints.glob("step-*")}


def gpus_here() -> list[Path]:
    """Return the device files of this machine's GPUs, without the seconds that torch takes."""
    return sorted(Path("/dev").glob("nvidia[0-9]*"))


def fast_bf16() -> bool:
    """Return whether bf16 is no slower than float32 on this machine.

    It is on a GPU and on a processor with AVX-512, AMX or Arm's bf16 instructions. Without them
    torch emulates it: the demo's model trained at 8 clips/s against 100 in float32 (measured with
    oneDNN limited to AVX2).
    """
    if gpus_here():
        return True
    return not {"avx512f", "amx_bf16", "bf16"}.isdisjoint(cpu_flags())
