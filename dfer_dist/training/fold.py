"""One rank's work on a fold, from the process group to the exit status."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING

import torch

from dfer_dist.config.load import read_config
from dfer_dist.distributed.preemption import EXIT_PREEMPTED, Preempted, PreemptionHandler
from dfer_dist.distributed.process_group import (
    Ranks,
    device_name,
    init_distributed,
    peak_memory,
)
from dfer_dist.distributed.watchdog import Watchdog
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.status import Attempt, package_mismatch
from dfer_dist.utils.errors import UserError

if TYPE_CHECKING:
    from dfer_dist.training.trainer import Trainer

logger = logging.getLogger(__name__)

DONE, PREEMPTED, FAILED = "DONE", "PREEMPTED", "FAILED"  # states in status.json
_ERROR, _USER_ERROR = 1, 2  # exit statuses


def run_fold(run: RunDir, fold: int, preemption: PreemptionHandler) -> int:
    """Train and test fold ``fold`` of a run as one of its ranks; return the exit status.

    It is 0 when the fold is done, 75 when it was preempted and its state is saved, 2 for an error
    that the user can fix, 1 for any other error.
    """
    try:
        state = train_fold(run, fold, preemption)
    except Exception as e:
        return _exit_status(e)
    except BaseException:
        traceback.print_exc()
        return _ERROR
    torch.distributed.destroy_process_group()
    return {DONE: 0, PREEMPTED: EXIT_PREEMPTED}[state]


def train_fold(run: RunDir, fold: int, preemption: PreemptionHandler) -> str:
    """Train and test a fold; return its state, :data:`DONE` or :data:`PREEMPTED`. Collective."""
    config = read_config(run.config)
    hang_seconds = 60 * config.train.hang_minutes
    ranks = init_distributed(config.train.device, hang_seconds)
    # Imports DeepSpeed, which reads DS_ACCELERATOR as set by init_distributed.
    from dfer_dist.training.build import build_trainer

    _warn_of_other_packages(run, ranks)
    folder = run.fold(fold)
    attempt = Attempt(folder, ranks.world_size, ranks.is_main, device_name(ranks.device))
    watchdog = Watchdog(
        folder.stacks(ranks.rank), hang_seconds, lambda reason: attempt.end(FAILED, reason)
    )
    trainer: Trainer | None = None
    state, reason = DONE, "all steps done"
    try:
        trainer = build_trainer(
            run=run,
            fold=fold,
            config=config,
            ranks=ranks,
            preemption=preemption,
            watchdog=watchdog,
        )
        step = trainer.state.step
        num_rolled_back = trainer.tracking.num_rolled_back(step)
        attempt.begin(step, trainer.engine.total_steps, num_rolled_back)
        trainer.fit()
        trainer.finish()
    except Preempted:
        state = PREEMPTED
    except BaseException as e:
        attempt.end(FAILED, _describe(e))
        _close_failed(run, fold, ranks, trainer)
        raise
    watchdog.stop()
    if state == PREEMPTED:
        # Any rank may have received the signal, or found that time is up.
        reasons = ranks.gather_objects(preemption.reason) or []
        reason = next(filter(None, reasons), "preempted")
    _close_tracking(trainer, state)
    # Written last: DONE means that all of it is done.
    attempt.end(state, reason, peak_memory(ranks.device))
    return state


def _warn_of_other_packages(run: RunDir, ranks: Ranks) -> None:
    """Log a warning for each node whose packages are not those of the run. Collective."""
    mismatch = package_mismatch(run) if ranks.local_rank == 0 else None
    for line in filter(None, ranks.gather_objects(mismatch) or []):
        logger.warning(line)


def _close_tracking(trainer: Trainer | None, state: str) -> None:
    from dfer_dist.tracking.metrics_log import FINISHED, KILLED

    if trainer:
        trainer.tracking.commit()
        trainer.tracking.close({DONE: FINISHED, PREEMPTED: KILLED}[state])


def _close_failed(run: RunDir, fold: int, ranks: Ranks, trainer: Trainer | None) -> None:
    """Close the tracking run of a fold that failed. Not collective."""
    from dfer_dist.tracking.metrics_log import FAILED as RUN_FAILED
    from dfer_dist.tracking.mlflow_runs import close_early

    if trainer:
        # A checkpoint that is being written is worth having.
        trainer.checkpointer.join()
        trainer.tracking.close(RUN_FAILED)
    elif ranks.is_main:
        close_early(run, fold, RUN_FAILED)


def _exit_status(error: Exception) -> int:
    """Report an error; return the exit status of the rank."""
    is_user_error = isinstance(error, UserError) or _is_disk_full(error)
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


def _is_disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _describe(error: BaseException) -> str:
    if isinstance(error, UserError):
        return _last_line(error)
    return f"{type(error).__name__}: {error}"


def _last_line(error: Exception) -> str:
    """Return the error's own message, which a loader worker wraps in its traceback."""
    prefix = f"{UserError.__module__}.{UserError.__name__}: "
    return str(error).strip().splitlines()[-1].removeprefix(prefix)
