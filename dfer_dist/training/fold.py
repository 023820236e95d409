"""One rank's work on a fold, from the process group to the exit status."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING

import torch

from dfer_dist.config.load import read_config
from dfer_dist.config.schema import Precision
from dfer_dist.distributed.preemption import EXIT_PREEMPTED, Preempted, PreemptionHandler
from dfer_dist.distributed.process_group import (
    Ranks,
    device_name,
    init_distributed,
    peak_memory,
    precision_fault,
)
from dfer_dist.distributed.watchdog import Watchdog
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.status import Attempt, package_mismatch
from dfer_dist.tracking.metrics_log import FAILED, FINISHED, KILLED
from dfer_dist.tracking.mlflow_runs import close_early
from dfer_dist.utils.errors import UserError, is_disk_full

if TYPE_CHECKING:
    from dfer_dist.training.trainer import Trainer

logger = logging.getLogger(__name__)

_ERROR, _USER_ERROR = 1, 2  # exit statuses


def run_fold(run: RunDir, fold: int, preemption: PreemptionHandler) -> int:
    """Train and test fold ``fold`` of a run as one of its ranks; return the exit status.

    It is 0 when the fold is done, 75 when it was preempted and its state is saved, 2 for an error
    that the user can fix, 1 for any other error.
    """
    try:
        is_done = train_fold(run, fold, preemption)
    except BaseException as e:
        return _exit_status(e)
    torch.distributed.destroy_process_group()
    return 0 if is_done else EXIT_PREEMPTED


def train_fold(run: RunDir, fold: int, preemption: PreemptionHandler) -> bool:
    """Train and test a fold; return False if it was preempted. Collective."""
    config = read_config(run.config)
    hang_seconds = 60 * config.train.hang_minutes
    ranks = init_distributed(config.train.device, hang_seconds)
    _import_deepspeed()
    from dfer_dist.training.build import build_trainer

    # What was imported stays until the process ends.
    gc.freeze()
    gc.enable()
    _check_nodes(run, config.train.precision, ranks)
    folder = run.fold(fold)
    device = device_name(ranks.device), ranks.device.type
    attempt = Attempt(folder, ranks.world_size, ranks.is_main, *device)
    watchdog = _start_watchdog(folder, ranks, hang_seconds, attempt)
    trainer: Trainer | None = None
    state, reason, run_status = "DONE", "all steps done", FINISHED
    try:
        trainer = build_trainer(
            run=run,
            fold=fold,
            config=config,
            ranks=ranks,
            preemption=preemption,
            watchdog=watchdog,
            enter_phase=attempt.enter,
        )
        step = trainer.state.step
        num_rolled_back = trainer.tracking.num_rolled_back(step)
        attempt.begin(step, trainer.engine.total_steps, num_rolled_back)
        trainer.fit()
        trainer.finish()
    except Preempted:
        # Any rank may have received the signal, or found that time is up.
        reasons = ranks.gather_objects(preemption.reason) or []
        state, run_status = "PREEMPTED", KILLED
        reason = next(filter(None, reasons), "preempted")
    except BaseException as e:
        attempt.end("FAILED", _describe(e))
        _close_failed(run, fold, ranks, trainer)
        raise
    watchdog.stop()
    if trainer:
        trainer.tracking.close(run_status)
    # Written last: DONE means that all of it is done.
    attempt.end(state, reason, peak_memory(ranks.device))
    return state == "DONE"


def _import_deepspeed() -> None:
    """Import DeepSpeed, which reads DS_ACCELERATOR as set by :func:`init_distributed`.

    It imports MLflow for its autotuner if it can, which takes half a second.
    """
    is_hidden = "mlflow" not in sys.modules
    if is_hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    import deepspeed  # noqa: F401

    if is_hidden:
        del sys.modules["mlflow"]


def _start_watchdog(folder: FoldDir, ranks: Ranks, seconds: float, attempt: Attempt) -> Watchdog:
    nccl_trace = None
    if ranks.device.type == "cuda":
        nccl_trace = folder.nccl_trace(ranks.rank)
    stacks = folder.stacks(ranks.rank)
    return Watchdog(stacks, seconds, lambda reason: attempt.end("FAILED", reason), nccl_trace)


def _check_nodes(run: RunDir, precision: Precision, ranks: Ranks) -> None:
    """Log a warning for each node with other packages than the run. Collective.

    Raises
    ------
    UserError
        If the device of a node cannot train in ``precision``.
    """
    own: list[str | None] = [None, None]
    if ranks.local_rank == 0:
        own = [precision_fault(precision, ranks.device), package_mismatch(run)]
    faults, warnings = zip(*(ranks.gather_objects(own) or [own]), strict=True)
    for line in dict.fromkeys(filter(None, warnings)):
        logger.warning(line)
    fault = ranks.broadcast_object(next(filter(None, faults), None))
    if fault:
        raise UserError(fault)


def _close_failed(run: RunDir, fold: int, ranks: Ranks, trainer: Trainer | None) -> None:
    """Close the tracking run of a fold that failed. Not collective."""
    if trainer:
        # A checkpoint that is being written is worth having.
        trainer.checkpointer.join()
        trainer.tracking.close(FAILED)
    elif ranks.is_main:
        close_early(run, fold, FAILED)


def _exit_status(error: BaseException) -> int:
    """Report an error; return the exit status of the rank."""
    is_user_error = isinstance(error, UserError) or is_disk_full(error)
    if os.environ.get("DFER_DEBUG") or not is_user_error:
        traceback.print_exc()
        sys.stderr.flush()
    if is_user_error:
        logger.error(_last_line(error))
        return _USER_ERROR
    if isinstance(error, RuntimeError) and "is killed by signal" in str(error):
        # A loader worker was killed, as when memory runs out. Die in the same way, so that the
        # job is started again.
        os.kill(os.getpid(), signal.SIGKILL)
    return _ERROR


def _describe(error: BaseException) -> str:
    if isinstance(error, UserError):
        return _last_line(error)
    return f"{type(error).__name__}: {error}"


def _last_line(error: BaseException) -> str:
    """Return the error's own message, which a loader worker wraps in its traceback."""
    prefix = f"{UserError.__module__}.{UserError.__name__}: "
    return str(error).strip().splitlines()[-1].removeprefix(prefix)
