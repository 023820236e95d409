"""Running jobs in processes, with progress finer than a job."""

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

_POLL = 0.5  # seconds between two looks at the counter

_counter: Any = None  # in a worker: clips done by all workers


def run_jobs(
    work: Callable[[Job, Callable[[int], None]], Result],
    jobs: Sequence[Job],
    total: int,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Results in the order of ``jobs``.

    Parameters
    ----------
    work : callable
        A module's function of a job and of what it is to call with the number of clips it has done since it last did.
    jobs : sequence
        What it is called with; picklable.
    total : int
        Clips in all.
    workers : int, optional
        Processes; all cores that this one may use by default, none beside this one if 1.
    progress : callable, optional
        Called with clips done and clips in all.

    Raises
    ------
    UserError
        If a worker dies. What ``work`` raises is raised here, once the jobs that run have ended; none is begun after it.
    """
    report = progress or (lambda done, total: None)
    count = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if count <= 1:
        return _run_here(work, jobs, total, report)
    context = get_context(
        "spawn"
    )  # the caller may run threads (progress bars), and a fork would copy their locks
    counter = context.Value("Q")
    with ProcessPoolExecutor(count, context, _begin, (counter,)) as pool:
        futures = [pool.submit(_run, work, job) for job in jobs]
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, _POLL, FIRST_EXCEPTION)
                for future in done:
                    future.result()  # a fault is told now, not after the other jobs
                report(counter.value, total)
        except BrokenProcessPool as e:
            raise UserError(
                "a worker died, perhaps for lack of memory: the same command goes on (fewer --workers need less)"
            ) from e
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _run_here(
    work: Callable[[Job, Callable[[int], None]], Result],
    jobs: Sequence[Job],
    total: int,
    report: Callable[[int, int], None],
) -> list[Result]:
    done = 0

    def tick(clips: int) -> None:
        nonlocal done
        done += clips
        report(done, total)

    return [work(job, tick) for job in jobs]


def _begin(counter: Any) -> None:
    """Make this process a worker. One whose parent was killed would wait for work for ever: it leaves with it."""
    global _counter
    _counter = counter
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C reaches all: workers leave without a word, the parent tells
    parent = parent_process()
    assert parent is not None  # the pool started this process

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _run(work: Callable[[Any, Callable[[int], None]], Any], job: Any) -> Any:
    return work(job, _add)


def _add(clips: int) -> None:
    with _counter.get_lock():
        _counter.value += clips
