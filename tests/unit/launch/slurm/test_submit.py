"""What is submitted: runs of a sweep, and what ``jobs.json`` keeps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dfer_dist.config.load import load_config
from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import write_json
from launch.slurm import submit
from launch.slurm.batch import ArrayTask, ClusterTarget
from launch.slurm.cluster import Cluster, load_cluster, restore_cluster
from launch.slurm.jobs import (
    Submission,
    all_jobs,
    newest_jobs,
    queued_folds,
    submissions,
    write_submissions,
)
from launch.slurm.submit import _check_queue, _print_submitted, _variants, resume
from launch.sweeps.variants import JobRequest
from tests.helpers.slurm.fake_clients import parse_rows
from tests.helpers.slurm.run_folders import HOUR_AGO, finish_fold, submission


@pytest.mark.parametrize(
    ("scratch", "cache"),
    [
        ("${SLURM_TMPDIR}/$USER", "$SLURM_TMPDIR/$USER"),
        ("${SLURM_TMPDIR:-/tmp}/${USER}", "$DFER_SCRATCH"),
        ("/local/${USER}s", "$DFER_SCRATCH"),
        ("/local/scratch", "/local/scratch"),
    ],
)
def test_scratch_stages_the_shards(tiny_shards: Index, scratch: str, cache: str) -> None:
    settings = [f"data.shards={tiny_shards.root}"]
    cluster = load_cluster("gpus8", [f"cluster.scratch={scratch}"])
    staged = cluster.all_settings("demo", settings)
    assert staged == [
        *settings,
        f"data.shards={tiny_shards.root.as_uri()}",
        f"data.cache={cache}",
    ]
    assert load_config("demo", staged).data.cache == cache
    shell = {"DFER_SCRATCH": scratch} if cache == "$DFER_SCRATCH" else {}
    assert cluster.variables == cluster.environment | shell
    assert load_cluster("gpus8").all_settings("demo", settings) == settings


def test_scratch_stages_each_of_several_sets(tiny_shards: Index) -> None:
    settings = [f"data.shards=[{tiny_shards.root},s3://bucket/b]"]
    staged = load_cluster("gpus8", ["cluster.scratch=/local"]).all_settings("demo", settings)
    data = load_config("demo", staged).data
    assert data.locations == [tiny_shards.root.as_uri(), "s3://bucket/b"]
    assert data.cache == "/local"


def test_settings_of_the_command_win_over_those_of_the_cluster() -> None:
    """The last one counts; a value of a sweep is the last of all."""
    cluster = Cluster(settings=["train.device=cpu"])
    settings = ["train.epochs=1", "train.device=auto"]
    sweep = ["train.epochs=2,3"]
    request = JobRequest("demo", settings, None, Path("runs"), None, (), sweep)
    asked = _variants(request, ClusterTarget("testbed", cluster))
    before = ["train.device=cpu", "train.epochs=1", "train.device=auto"]
    assert [variant.settings for variant in asked] == [
        [*before, "train.epochs=2"],
        [*before, "train.epochs=3"],
    ]


def test_submissions_are_stored_as_before(run: RunDir) -> None:
    entry = submission(max_parallel=2, settings={"nodes": 2})
    write_submissions(run, [Submission(**entry)])  # type: ignore[arg-type]
    assert json.loads(run.jobs.read_text())["submissions"] == [{**entry, "root": ""}]
    write_submissions(run, [])
    assert not run.jobs.exists()


def test_submission_of_an_older_version_is_read(submitted: RunDir) -> None:
    (entry,) = submissions(submitted)
    assert entry.folds == {"1": "120_0", "2": "120_1", "3": "120_2"}
    assert (entry.summary, entry.max_parallel) == ("121", None)
    assert restore_cluster(entry.settings, submitted.jobs).nodes == 1


def test_jobs_of_the_original_are_not_those_of_its_copy(run: RunDir, tmp_path: Path) -> None:
    entry = Submission(**submission(root=str(run.root)))  # type: ignore[arg-type]
    write_submissions(run, [entry])
    (tmp_path / "other name").symlink_to(run.root)
    assert submissions(RunDir(tmp_path / "other name")) == [entry]
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.root, copy.root)
    assert (newest_jobs(copy), all_jobs(copy)) == ({}, set())
    assert submissions(copy)[0].cluster == entry.cluster


@pytest.fixture
def resumed(submitted: RunDir, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Return a function that resumes the submitted run and returns the folds it would submit."""
    job_script = submitted.code / "launch" / "slurm" / "job.sh"
    job_script.parent.mkdir(parents=True)
    job_script.touch()
    tasks: list[ArrayTask] = []
    monkeypatch.setattr(submit, "_submit_tasks", lambda new, *_: tasks.extend(new))

    def resumed(*rows: str) -> list[int]:
        tasks.clear()
        monkeypatch.setattr("launch.slurm.jobs.query_squeue", lambda: parse_rows(*rows))
        resume(submitted)
        return [task.fold for task in tasks]

    return resumed


def test_resume_submits_the_folds_that_were_asked_for(
    submitted: RunDir, resumed: Callable[..., list[int]]
) -> None:
    submitted.update_info(folds=[1, 2, 3, 4, 5])
    # an earlier version recorded them only as jobs
    assert resumed() == [1, 2, 3]
    submitted.update_info(requested=[2, 5])
    assert resumed() == [2, 5]
    finish_fold(submitted, 2)
    assert resumed() == [5]


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING", "RUNNING", "REQUEUED"])
def test_fold_whose_job_is_in_the_queue_is_not_submitted_again(
    submitted: RunDir, resumed: Callable[..., list[int]], state: str
) -> None:
    row = f"120_0 {state} n1 1:00 {HOUR_AGO} None"
    assert resumed(row) == [2, 3]
    assert _check_queue(submitted, resume=True) == {1: "120_0"}
    with pytest.raises(UserError, match="in the queue already"):
        _check_queue(submitted, resume=False)
    # the summary of the other folds does not wait for it
    assert (queued_folds(submitted) == {}) == (state == "COMPLETING")
    finish_fold(submitted, 1)
    assert _check_queue(submitted, resume=False) == {}


def test_resume_of_an_older_version_names_the_remedy(submitted: RunDir) -> None:
    with pytest.raises(UserError, match="--allow-drift code"):
        resume(submitted)


@pytest.mark.parametrize(
    ("uris", "named"),
    [
        (["sqlite:////shared/mlflow.db"] * 2, 1),
        (["sqlite:////a.db", "sqlite:////b.db"], 2),
        (["http://server:5000", None], 0),
        (["postgresql://server/mlflow"], 0),
    ],
)
def test_submission_says_who_writes_to_sqlite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], uris: list[str | None], named: int
) -> None:
    """Once for each file, whatever the number of runs."""
    runs = [RunDir(tmp_path / str(number)) for number in range(len(uris))]
    for run, uri in zip(runs, uris, strict=True):
        tracking = uri and {"uri": uri, "key": "k", "experiment": "demo"}
        write_json(run.run, {"folds": [1], "tracking": tracking})
    _print_submitted(runs, ["120_0", "120_1"], "121")
    submitted, *lines = capsys.readouterr().out.splitlines()
    assert submitted.startswith("submitted 2 folds as job 120, their summary as 121; follow them")
    assert len(lines) == named
    for line, uri in zip(lines, sorted({str(uri) for uri in uris}), strict=False):
        assert f"the folds do not write to {uri}" in line and "set tracking.uri=http" in line
