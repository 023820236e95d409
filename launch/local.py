"""Folds on this machine, one after the other, restarted when their ranks die."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Config, Device, Head, ImageTuning
from dfer_dist.distributed.preemption import EXIT_PREEMPTED, TIME_IS_UP
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import FoldResult
from dfer_dist.runs.status import Phase
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.hardware import cpu_flags
from launch import processes
from launch.console import console, print_line
from launch.fold_table import FoldTable
from launch.locks import fold_lock
from launch.progress import (
    FoldProgress,
    LoggedMetrics,
    is_done,
    last_error,
    read_status,
    unix_time,
)

if TYPE_CHECKING:
    from dfer_dist.data.folds.overlay import FoldOverlay
    from dfer_dist.data.shards.index import Index

_DEADLINE_MARGIN = 60.0  # seconds before a deadline in which no fold is started
_MAX_RESTARTS = 3  # of a fold whose ranks die without a newer checkpoint
_TUNING = {
    ImageTuning.all: "full fine-tuning",
    ImageTuning.last: "last {image_blocks} blocks",
    ImageTuning.norms: "norms",
    ImageTuning.lora: "LoRA of rank {lora_rank}",
    ImageTuning.adapters: "adapters",
    ImageTuning.none: "frozen image tower",
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
    config = read_config(run.config)
    _announce(run, config, folds, nproc)
    signals = processes.SignalCounter()
    failed: list[int] = []
    try:
        with FoldTable(len(folds), config.train.epochs) as table:
            for k in folds:
                job = processes.FoldJob(run, k, nproc, deadline, signals)
                if not run_fold(job, table):
                    failed.append(k)
                    # it failed while it stopped, and printed why
                    if signals.count:
                        break
    finally:
        signals.restore()
    return failed


def _announce(run: RunDir, config: Config, folds: Sequence[int], ranks: int) -> None:
    """Say what will be trained on what."""
    from dfer_dist.data.folds.packed import open_folds
    from dfer_dist.data.shards.joint import open_sets

    if all(is_done(run.fold(k)) for k in folds):
        print_line(f"all folds of {run.root} are done")
    else:
        index = open_sets(config.data, config.data.loss_budget)
        line = first_line(config, index, folds, ranks, open_folds(config.data, index))
        console.print(line, soft_wrap=not console.is_terminal, markup=False)


def first_line(
    config: Config,
    index: Index,
    folds: Sequence[int],
    ranks: int,
    overlay: FoldOverlay | None = None,
) -> str:
    """Return what is trained on what.

    Such as "Training DFER-CLIP (ViT-B/32, full fine-tuning) on demo: 5 folds of 140 clips, 2 ranks
    on the CPU, bf16".
    """
    model = config.model
    backbone = re.sub(r"^(ViT-\w+)-(\d+)(-quickgelu)?$", r"\1/\2", Path(model.backbone).name)
    tuning = _TUNING[model.image].format_map(vars(model))
    data = f"{index.name}: {_describe_folds(index, folds, overlay)}"
    count = f"{ranks} rank{'s' * (ranks > 1)}{_place(config.train.device)}"
    precision = config.train.precision.name
    what = f"DFER-CLIP ({backbone}, {tuning})"
    if model.head is Head.linear:
        what = f"{backbone} with a linear head ({tuning})"
    return f"Training {what} on {data}, {count}, {precision}"


def _describe_folds(index: Index, folds: Sequence[int], overlay: FoldOverlay | None) -> str:
    from dfer_dist.data.folds.clips import fold_clips, fold_numbers

    parts = [fold_clips(index, k, overlay) for k in folds]
    sizes = [len(part.test) for part in parts]
    clips = " to ".join(str(n) for n in sorted({min(sizes), max(sizes)}))
    count = len(fold_numbers(index, overlay))
    by = f" ({overlay.name})" if overlay else ""
    if count == 1:
        return f"{len(parts[0].train)} training and {clips} test clips"
    if len(folds) == count:
        return f"{len(folds)} folds{by} of {clips} clips"
    if len(folds) == 1:
        return f"fold {folds[0]} of {count}{by}, {clips} clips"
    numbers = ", ".join(map(str, folds))
    return f"folds {numbers} of {count}{by}, {clips} clips each"


def _place(device: Device) -> str:
    """Return what the ranks run on, if it is known without the seconds that torch takes.

    Torch may not see the GPUs of this machine, and ranks may share one.
    """
    if device is Device.cuda:
        return " on GPUs"
    are_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    is_known = device is Device.cpu or are_hidden or not gpus_here()
    return " on the CPU" * is_known


def run_fold(job: processes.FoldJob, table: FoldTable) -> bool:
    """Train one fold and return whether it is done; errors are those of :func:`run_folds`."""
    fold, folder = job.row, job.folder
    table.start(fold)
    if is_done(folder):
        steps = read_status(folder).steps
        table.update(fold, FoldProgress(step=steps, steps=steps))
        table.finish(fold, describe_result(folder), is_new=False)
        return True
    log_sizes = {log: log.stat().st_size for log in folder.root.glob("log*.txt")}
    with fold_lock(folder) as lock_fd:
        status, killed = _run_until_done(job, lock_fd, table)
    if status == 0:
        table.finish(fold, describe_result(folder))
        return True
    table.finish(fold, "failed")
    reason = killed or last_error(folder, log_sizes)
    if status == processes.EXIT_USER_ERROR:
        raise UserError(reason)
    message = f"{table.noun} {fold} failed (status {status}): {reason}; its log is {folder.log}"
    print_line(message, style="red")
    return False


def _run_until_done(job: processes.FoldJob, lock_fd: int, table: FoldTable) -> processes.RanksExit:
    """Run a fold, again after its ranks were killed, until it is done or fails."""
    restarts_left = _MAX_RESTARTS
    while True:
        if job.signals.count:
            raise processes.Interrupted("all is saved")
        if job.deadline and time.time() > job.deadline - _DEADLINE_MARGIN:
            raise processes.Interrupted(f"{TIME_IS_UP}: all is saved")
        before = _checkpoints(job.folder)
        ended = processes.run_ranks(job, lock_fd, FoldWatcher(job, table))
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
        why = f"{ended.killed or reason}; resuming from the last checkpoint"
        print_line(f"{table.noun} {job.row}: {why}")


def _checkpoints(fold: FoldDir) -> set[str]:
    return {folder.name for folder in fold.checkpoints.glob("step-*")}


class FoldWatcher:
    """Shows how far a fold is, from its ``status.json`` and ``metrics.jsonl``, when called."""

    def __init__(self, job: processes.FoldJob, table: FoldTable) -> None:
        self.job, self.fold, self.table = job, job.folder, table
        self._offset = 0  # bytes of metrics.jsonl that were read
        self._metrics = LoggedMetrics()
        self._num_earlier = len(read_status(self.fold).attempts)

    def __call__(self) -> None:
        """Read what is new and show it.

        Raises
        ------
        OSError, ValueError, UserError
            If files are missing, damaged or unreachable.
        """
        status = read_status(self.fold)
        if self.fold.metrics.exists():
            self._read_metrics()
        progress = FoldProgress()
        # until rank 0 has recorded its attempt, the files are of an earlier one
        if len(status.attempts) > self._num_earlier and status.last:
            since = unix_time(status.last.started)
            progress = FoldProgress.of(status, self._metrics, since)
            if status.last.ended:
                # its processes have not ended yet
                progress = replace(progress, phase=Phase.SAVING)
        if self.job.signals.count and progress.phase != Phase.SAVING:
            progress = replace(progress, phase="stopping")
        self.table.update(self.job.row, progress)

    def _read_metrics(self) -> None:
        """Read new lines of ``metrics.jsonl``."""
        if self.fold.metrics.stat().st_size < self._offset:
            self._restart()
        with self.fold.metrics.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        try:
            for line in complete.splitlines():
                self._metrics.add(line)
        except ValueError:
            # written anew, and longer than before: the offset was inside a line
            self._restart()

    def _restart(self) -> None:
        """Read the file from its start the next time."""
        self._offset, self._metrics = 0, LoggedMetrics()


def describe_result(fold: FoldDir) -> str:
    """Return the scores of a finished fold."""
    result = FoldResult.read(fold.result)
    return f"UAR {result.uar:.2f} WAR {result.war:.2f}"


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
