from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dfer_dist.utils.errors import UserError
from dfer_dist.utils.process_pool import run_jobs

Tick = Callable[[int], None]


def nap(job: float, tick: Tick) -> float:
    time.sleep(job)
    tick(2)
    return job


def write(job: Path, tick: Tick) -> None:
    """Refuses the job ``bad``, and writes a file for another."""
    if job.name == "bad":
        raise UserError("a bad job")
    time.sleep(0.3)
    job.touch()


def die(job: int, tick: Tick) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_and_progress_is_counted(workers: int) -> None:
    jobs, seen = [0.3, 0.0, 0.1, 0.0], []
    assert run_jobs(nap, jobs, 8, workers, lambda done, total: seen.append((done, total))) == jobs
    assert seen == sorted(seen) and seen[-1] == (8, 8)
    assert run_jobs(nap, [], 0, workers) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_stops_the_others(workers: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a bad job"):
        run_jobs(write, [tmp_path / "bad", *(tmp_path / str(i) for i in range(30))], 31, workers)
    assert len(list(tmp_path.iterdir())) < 10


def test_a_worker_that_dies_is_told() -> None:
    with pytest.raises(UserError, match="a worker died"):
        run_jobs(die, [1, 2, 3], 3, 2)
