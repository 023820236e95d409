from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dfer_dist.demo.dataset import render_demo
from dfer_dist.demo.faces import FRAMES
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.process_pool import run_jobs

Advance = Callable[[int], None]


def nap(job: float, advance: Advance) -> float:
    time.sleep(job)
    advance(2)
    return job


def write(job: Path, advance: Advance) -> None:
    """Reject the job ``bad``, and write a file for others."""
    if job.name == "bad":
        raise UserError("a bad job")
    time.sleep(0.3)
    job.touch()


def die(job: int, advance: Advance) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_run_jobs_keeps_order_and_counts_progress(workers: int) -> None:
    jobs, seen = [0.3, 0.0, 0.1, 0.0], []
    assert run_jobs(nap, jobs, 8, workers, lambda done, total: seen.append((done, total))) == jobs
    assert seen == sorted(seen) and seen[-1] == (8, 8)
    assert run_jobs(nap, [], 0, workers) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_exception_of_a_job_stops_the_others(workers: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a bad job"):
        run_jobs(write, [tmp_path / "bad", *(tmp_path / str(i) for i in range(30))], 31, workers)
    assert len(list(tmp_path.iterdir())) < 10


def test_dead_worker_is_reported() -> None:
    with pytest.raises(UserError, match="a worker process died"):
        run_jobs(die, [1, 2, 3], 3, 2)


def test_two_workers_and_one_render_the_same_demo(tmp_path: Path) -> None:
    for workers in (1, 2):
        render_demo(tmp_path / str(workers), clips=35, size=32, workers=workers)
    files = [p.relative_to(tmp_path / "1") for p in (tmp_path / "1").rglob("*") if p.is_file()]
    assert len(files) > 35 * FRAMES[0]
    for file in files:
        assert (tmp_path / "2" / file).read_bytes() == (tmp_path / "1" / file).read_bytes()
