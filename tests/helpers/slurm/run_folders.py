"""Run folders as training and ``dfer crossval --cluster`` write them, without doing either."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.status import Attempt
from dfer_dist.tracking.metrics_log import MetricsLog
from dfer_dist.utils.files import write_json

HOUR_AGO = (datetime.now() - timedelta(hours=1)).isoformat(timespec="seconds")
SOON = (datetime.now() + timedelta(hours=1)).isoformat(timespec="seconds")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of three folds that was not submitted."""
    run = RunDir(tmp_path / "runs" / "demo")
    write_json(run.run, {"dataset": "demo", "folds": [1, 2, 3], "tracking": None})
    return run


@pytest.fixture
def submitted(run: RunDir) -> RunDir:
    """The same run as jobs 120_0 to 120_2, with summary job 121."""
    write_json(run.jobs, {"submissions": [submission()]})
    return run


def submission(**changes: object) -> dict[str, object]:
    """Return an entry of ``jobs.json``."""
    entry: dict[str, object] = {
        "time": HOUR_AGO,
        "cluster": "testbed",
        "settings": {},
        "folds": {str(k): f"120_{k - 1}" for k in (1, 2, 3)},
        "summary": "121",
        "folder": "slurm/1",
    }
    return entry | changes


def write_output(run: RunDir, fold: int, text: str) -> Path:
    """Write the output of a fold's job."""
    path = run.root / "slurm" / "1" / f"120_{fold - 1}_0_log.out"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_attempt(fold: FoldDir, *end: str, job: str | None = "120", begin: bool = True) -> Attempt:
    """Record an attempt in status.json as rank 0 does: from step 5 of 36, and ended by ``end``."""
    slurm = {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "n[3-4]"} if job else {}
    fold.root.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as m:
        for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST"):
            m.delenv(name, raising=False)
        for name, value in slurm.items():
            m.setenv(name, value)
        attempt = Attempt(fold, 2, True)
    if begin:
        attempt.begin(5, 36, 0)
    if end:
        attempt.end(*end)
    return attempt


def write_result(fold: FoldDir, uar: float, war: float) -> None:
    """Write the parts of result.json that ``dfer status`` shows."""
    write_json(fold.result, {"uar": uar, "war": war, "selection": "last"})


def finish_fold(run: RunDir, fold: int) -> None:
    """Record a fold as done."""
    write_attempt(run.fold(fold), "DONE", "all steps done")
    write_result(run.fold(fold), 50.0, 60.0)


LONG_ERROR = "ValueError: [red]a long line that does not fit into a hundred columns" + 20 * " word"


def fill_run(run: RunDir) -> None:
    """Record fold 1 as done, fold 2 as running and fold 3 as failed."""
    write_attempt(run.fold(1), "DONE", "all steps done")
    write_result(run.fold(1), 50.125, 60.25)
    write_attempt(run.fold(2))
    MetricsLog(run.fold(2).metrics, run.fold(2).sent, None).log(
        12, 2, {"test_uar": 41.0, "test_war": 42.0, "loss": 0.75, "clips_per_second": 120.0}
    )
    write_attempt(run.fold(3), "FAILED", LONG_ERROR)
