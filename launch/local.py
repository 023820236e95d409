"""Folds on this machine, one after the other, restarted when their ranks die."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

from dfer_dist.distributed.preemption import EXIT_PREEMPTED, TIME_IS_UP
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import FoldResult
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hardware import cpu_flags
from launch import processes
from launch.console import console, new_progress, print_line
from launch.locks import fold_lock
from launch.progress import is_done, last_error, read_status

_DEADLINE_MARGIN = 60.0  # seconds before a deadline in which no fold is started
_MAX_RESTARTS = 3  # of a fold whose ranks die without a newer checkpoint


# in metrics.jsonl, and next to the bar of a fold
_METRICS = {
    "loss": "loss {:.2f}",
    "val_war": "val WAR {:.1f}",
    "test_war": "WAR {:.1f}",
    "clips_per_second": "{:.0f} clips/s",
}


def run_folds(
    run: RunDir, folds: list[int], nproc: int, deadline: float | None = None
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
    signals = processes.SignalCounter()
    failed: list[int] = []
    try:
        with new_progress(TextColumn("{task.fields[metrics]}"), TimeElapsedColumn()) as progress:
            for k in folds:
                job = processes.FoldJob(run, k, nproc, deadline, signals)
                if not _run_fold(job, progress):
                    failed.append(k)
                    # it failed while it stopped, and printed why
                    if signals.count:
                        break
    finally:
        signals.restore()
    return failed


def _run_fold(job: processes.FoldJob, progress: Progress) -> bool:
    """Train one fold and return whether it is done."""
    fold, folder = job.fold, job.folder
    task = progress.add_task(f"fold {fold}", total=None, metrics="")
    if is_done(folder):
        metrics = f"{_describe_result(folder)}, done before"
        progress.update(task, total=1, completed=1, metrics=metrics)
        return True
    progress.update(task, metrics="starting")
    log_sizes = {log: log.stat().st_size for log in folder.root.glob("log*.txt")}
    with fold_lock(folder) as lock_fd:
        status, killed = _run_until_done(job, lock_fd, FoldProgress(folder, progress, task))
    if status == 0:
        progress.update(task, metrics=_describe_result(folder))
        if not console.is_terminal:
            console.print(f"fold {fold}: {_describe_result(folder)}")
        return True
    reason = killed or last_error(folder, log_sizes)
    if status == processes.EXIT_USER_ERROR:
        raise UserError(reason)
    progress.update(task, metrics="failed")
    message = f"fold {fold} failed (status {status}): {reason}; its log is {folder.log}"
    print_line(message, style="red")
    return False


def _run_until_done(
    job: processes.FoldJob, lock_fd: int, follow: FoldProgress
) -> processes.RanksExit:
    """Run a fold, again after its ranks were killed, until it is done or fails."""
    restarts_left = _MAX_RESTARTS
    while True:
        if job.signals.count:
            raise processes.Interrupted("all is saved")
        if job.deadline and time.time() > job.deadline - _DEADLINE_MARGIN:
            raise processes.Interrupted(f"{TIME_IS_UP}: all is saved")
        before = _checkpoints(job.folder)
        ended = processes.run_ranks(job, lock_fd, follow)
        is_preempted = ended.status == EXIT_PREEMPTED
        if ended.status in (0, processes.EXIT_USER_ERROR) or not (is_preempted or ended.killed):
            return ended
        last = read_status(job.folder).last
        reason = last.why if last else None
        if is_preempted and reason == TIME_IS_UP:
            raise processes.Interrupted(f"{TIME_IS_UP}: saved")
        advanced = _checkpoints(job.folder) != before
        restarts_left = _MAX_RESTARTS if advanced else restarts_left - 1
        if restarts_left < 0:
            return ended
        print_line(f"fold {job.fold}: {ended.killed or reason}; resuming from the last checkpoint")


def _checkpoints(fold: FoldDir) -> set[str]:
    return {folder.name for folder in fold.checkpoints.glob("step-*")}


class FoldProgress:
    """Updates a progress bar from a fold's ``status.json`` and ``metrics.jsonl`` when called."""

    def __init__(self, fold: FoldDir, progress: Progress, task: TaskID) -> None:
        self.fold, self.progress, self.task = fold, progress, task
        self._offset = 0  # bytes of metrics.jsonl that were read
        self._latest: dict[str, float] = {}

    def __call__(self) -> None:
        """Read what is new and update the bar.

        Raises
        ------
        OSError, ValueError, UserError
            If files are missing, damaged or unreachable.
        """
        status = read_status(self.fold)
        if status.state in ("", "STARTING"):
            return
        self.progress.update(self.task, total=status.steps)
        if self._read_metrics():
            step, metrics = self._latest["step"], describe_metrics(self._latest)
            self.progress.update(self.task, completed=step, metrics=metrics)

    def _read_metrics(self) -> bool:
        """Read new lines of ``metrics.jsonl`` and return whether there were any."""
        if self.fold.metrics.stat().st_size < self._offset:
            # a resumed fold wrote the file anew
            self._offset = 0
        with self.fold.metrics.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        try:
            for line in complete.splitlines():
                self._latest |= json.loads(line)
        except ValueError:
            # written anew, and longer than before: the offset was inside a line
            self._offset = 0
            return False
        return bool(complete)


def describe_metrics(latest: Mapping[str, float]) -> str:
    """Return loss, score and speed for the progress bar."""
    return "  ".join(text.format(latest[key]) for key, text in _METRICS.items() if key in latest)


def _describe_result(fold: FoldDir) -> str:
    """Return the scores of a finished fold."""
    result = FoldResult.read(fold.result)
    return f"UAR {result.uar:.2f}  WAR {result.war:.2f}"


def gpus_here() -> list[Path]:
    """Return the device files of this machine's GPUs, without the seconds that torch takes."""
    return sorted(Path("/dev").glob("nvidia[0-9]*"))


def count_gpus() -> int:
    """Return the GPUs that torch may use here; those of a node may be another job's."""
    if not gpus_here():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def fast_bf16() -> bool:
    """Return whether bf16 is no slower than float32 on this machine.

    It is on a GPU of compute capability 8.0 (Ampere) or newer, and on a processor with AVX-512, AMX
    or Arm's bf16 instructions. Without them torch emulates it: the demo's model trained at 8
    clips/s against 100 in float32 (measured with oneDNN limited to AVX2).
    """
    num_gpus = count_gpus()
    if num_gpus:
        import torch

        from dfer_dist.distributed.process_group import FAST_BF16

        return all(torch.cuda.get_device_capability(i) >= FAST_BF16 for i in range(num_gpus))
    return not {"avx512f", "amx_bf16", "bf16"}.isdisjoint(cpu_flags())
