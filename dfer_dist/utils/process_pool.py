"""Run jobs in worker processes, with progress that is finer than a job."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from dfer_dist.utils.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Advance = Callable[[int], None]
Progress = Callable[[int, int], None]

_POLL_SECONDS = 0.5

# In a worker process: number of clips done by all workers.
_num_done: Any = None


def run_jobs(
    work: Callable[[Job, Advance], Result],
    jobs: Sequence[Job],
    total: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Return the results of jobs, in their order.

    Parameters
    ----------
    work : callable
        Function of a module. It gets a job, and a function to call with numbers of clips done.
    jobs : sequence
        Picklable. They have ``total`` clips.
    workers : int, optional
        Number of processes; by default one per available core. With 1, jobs run in this process.
    progress : callable, optional
        Called with the numbers of clips done and of all clips.

    Raises
    ------
    UserError
        If a worker process dies. An exception in ``work`` is raised once the running jobs have
        ended; no other job is started.
    """
    report = progress or (lambda done, total: None)
    num_workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if num_workers <= 1:
        return _run_in_this_process(work, jobs, total, report)
    # spawned: this process may have threads (progress bars), whose locks a fork would copy
    context = get_context("spawn")
    num_done = context.Value("Q")
    with ProcessPoolExecutor(num_workers, context, _start_worker, (num_done,)) as pool:
        futures = [pool.submit(work, job, _advance) for job in jobs]
        try:
            pending = set(futures)
            while pending:
                done, pending = wait(pending, _POLL_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                report(num_done.value, total)
        except BrokenProcessPool as e:
            raise UserError(
                "a worker process died, perhaps out of memory: resume with fewer --workers"
            ) from e
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _run_in_this_process(
    work: Callable[[Job, Advance], Result], jobs: Sequence[Job], total: int, report: Progress
) -> list[Result]:
    num_done = 0

    def advance(clips: int) -> None:
        nonlocal num_done
        num_done += clips
        report(num_done, total)

    return [work(job, advance) for job in jobs]


def _start_worker(num_done: Any) -> None:
    """Initialize a worker process."""
    global _num_done
    _num_done = num_done
    # Ctrl-C reaches all processes: workers exit silently, and the parent reports it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # a worker whose parent was killed would wait for jobs forever
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _advance(clips: int) -> None:
    with _num_done.get_lock():
        _num_done.value += clips
