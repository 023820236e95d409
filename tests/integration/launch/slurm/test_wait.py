"""``dfer crossval --wait`` with a fake ``squeue``."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

import launch.console
from dfer_dist.runs.layout import RunDir
from dfer_dist.tracking.metrics_log import MetricsLog
from dfer_dist.utils.files import write_json
from launch.slurm import status, watch
from tests.helpers.slurm.fake_clients import FakeSlurm, fold_row
from tests.helpers.slurm.run_folders import HOUR_AGO, finish_fold, submission, write_attempt


def run_wait(
    run: RunDir, steps: list[Callable[[], None]], terminal: bool = False
) -> tuple[int, str]:
    """Return what wait returns and prints; one of ``steps`` happens before each ``squeue``."""
    left = iter(steps)
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as m:

        def sleep(_: float) -> None:
            next(left, nothing)()

        # not the real module: subprocess sleeps with that
        m.setattr(watch, "time", SimpleNamespace(sleep=sleep, strftime=time.strftime))
        console = Console(file=out, width=120, force_terminal=terminal, highlight=False)
        for module in (launch.console, status, watch):
            m.setattr(module, "console", console)
        return watch.wait([run]), out.getvalue()


def nothing() -> None:
    pass


@pytest.mark.parametrize("terminal", [False, True])
def test_wait_ends_after_the_summary(slurm: FakeSlurm, submitted: RunDir, terminal: bool) -> None:
    summary = "121 PENDING - 5:00 N/A Dependency"

    def log(step: int, epoch: int) -> None:
        metrics = {"loss": 0.5, "clips_per_second": 12.0}
        fold = submitted.fold(1)
        MetricsLog(fold.metrics, fold.sent, None).log(step, epoch, metrics)

    steps: list[Callable[[], None]] = [
        nothing,  # not in the queue yet
        lambda: slurm.set_queue("120_0 PENDING - 5:00 N/A Priority", summary),
        lambda: slurm.set_queue(status=1),
        lambda: slurm.set_queue(f"120_0 RUNNING n1 5:00 {HOUR_AGO} None", summary),
        lambda: log(6, 1) if write_attempt(submitted.fold(1)) else None,
        lambda: log(7, 1),
        lambda: log(12, 2),
        lambda: [finish_fold(submitted, k) for k in (1, 2, 3)] and slurm.set_queue(summary),
        nothing,
        nothing,
        nothing,
        lambda: (submitted.root / "late").touch(),
        slurm.set_queue,
    ]
    status, text = run_wait(submitted, steps, terminal)
    assert status == 0
    assert (submitted.root / "late").exists()
    assert "3 of 3 folds done" in text
    if not terminal:
        lines = [
            re.sub(r"\d:\d\d:\d\d left", "LEFT left", line.partition(" ")[2])
            for line in text.splitlines()
            if " fold 1" in line or "answer" in line
        ]
        assert lines == [
            "demo fold 1 CANCELLED: before it began",
            "demo fold 1 PENDING: other jobs go first (Priority)",
            "Slurm does not answer: waiting",
            "Slurm answers again",
            "demo fold 1 RUNNING on n1: starting",
            "demo fold 1: training, step 12 of 36, epoch 2 done, loss 0.500, 12 clips/s, LEFT left",
            "demo fold 1 DONE on n[3-4]",
        ]


def test_wait_returns_1_for_unfinished_folds(slurm: FakeSlurm, submitted: RunDir) -> None:
    finish_fold(submitted, 1)
    assert run_wait(submitted, [])[0] == 1
    only = submission(folds={"1": "120_0"})
    write_json(submitted.jobs, {"submissions": [only]})
    assert run_wait(submitted, [])[0] == 0


def test_ctrl_c_leaves_the_jobs_alone(slurm: FakeSlurm, submitted: RunDir) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    slurm.set_queue(fold_row(1, "Priority"))
    status, text = run_wait(submitted, [interrupt])
    assert (status, slurm.cancelled) == (130, [])
    assert "the jobs continue" in text
