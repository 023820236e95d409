"""The job of a fold closes the run if it ends last and there is no summary job."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import write_json
from launch.slurm import job
from tests.helpers.slurm.fake_clients import FakeSlurm, fold_row
from tests.helpers.slurm.run_folders import (
    finish_fold,
    submission,
    write_attempt,
    write_output,
)


@pytest.fixture
def without_summary_job(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    write_json(run.jobs, {"submissions": [submission(summary=None)]})
    monkeypatch.setenv("SLURM_JOB_ID", "120")
    return run


def close(run: RunDir, capsys: pytest.CaptureFixture[str]) -> str:
    """Close fold 3, as its job does, and return what is printed."""
    job.close_fold(run.root, 3, 0)
    return "".join(capsys.readouterr())


@pytest.mark.parametrize(("others", "ends_last"), [([], True), ([2], False), ([1, 2], False)])
def test_last_fold_closes_the_run(
    without_summary_job: RunDir,
    slurm: FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    others: list[int],
    ends_last: bool,
) -> None:
    slurm.set_queue(*(fold_row(fold) for fold in [*others, 3]))
    assert ("no fold is done" in close(without_summary_job, capsys)) == ends_last


def test_folds_that_end_together_close_the_run(
    without_summary_job: RunDir, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """The jobs of the others are in the queue until they have written the summary so far."""
    slurm.set_queue(*(fold_row(fold) for fold in (1, 2, 3)))
    for fold in (1, 2, 3):
        without_summary_job.fold(fold).root.mkdir(exist_ok=True)
    write_output(without_summary_job, 1, "fold 1 failed (status 1): ImportError: x\n")
    write_attempt(without_summary_job.fold(2))
    assert "no fold is done" not in close(without_summary_job, capsys)
    write_output(without_summary_job, 2, "fold 2 failed (status 2): no data\n")
    assert "no fold is done" in close(without_summary_job, capsys)
    finish_fold(without_summary_job, 2)
    assert job._ends_last(without_summary_job, 3)


def test_last_fold_waits_for_a_controller_that_is_restarted(
    without_summary_job: RunDir,
    slurm: FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = iter(range(3))

    def sleep(_: float) -> None:
        if next(pauses) == 2:
            slurm.set_queue(fold_row(3))

    slurm.set_queue(status=1)
    # not the real module: subprocess sleeps with that
    monkeypatch.setattr(job, "time", SimpleNamespace(sleep=sleep))
    assert "no fold is done" in close(without_summary_job, capsys)
