"""A sweep at MLflow: one run with the runs of its settings and seeds under it, in a SQLite file."""

from __future__ import annotations

import pytest

from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.sweep import SweepDir
from dfer_dist.tracking.mlflow_runs import begin, make_runs, tracking_of
from dfer_dist.tracking.server import client
from dfer_dist.tracking.sweeps import sweep_status
from dfer_dist.tracking.sync import end_run
from dfer_dist.tracking.sync_sweep import sync_sweep
from dfer_dist.utils.files import write_json
from launch.runs import remove_run
from launch.sweeps.local import open_sweep
from launch.sweeps.variants import JobRequest

COMPARISON = {
    "settings": [
        {"name": "train.epochs=1", "scores": {"uar": {"by_seed_and_fold": [], "value": 41}}}
    ],
    "comparisons": [],
}


@pytest.fixture(scope="module")
def opened(
    tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SweepDir, list[RunDir]]:
    """Two settings with a seed, opened and not trained."""
    settings = [f"data.shards={tiny_shards.root}", "train.global_batch=8"]
    runs = tmp_path_factory.mktemp("runs")
    sweep = ["train.epochs=1,2"]
    request = JobRequest("demo", settings, None, runs, None, (), sweep, "3")
    folder, found = open_sweep(request, 1)
    return folder, [run for run, _ in found]


def test_runs_are_children_of_the_sweep(opened: tuple[SweepDir, list[RunDir]]) -> None:
    sweep, runs = opened
    for run in runs:
        begin(run)
    api, tracking = client(tracking_of(runs[0]).uri), tracking_of(runs[0])
    found = api.search_runs([str(tracking.experiment_id)], max_results=100)
    by_id = {r.info.run_id: r for r in found}
    assert len(found) == 1 + 2 * (1 + 5)
    root = by_id[str(sweep.info().run_id)]
    assert (root.info.run_name, root.info.status) == ("demo.sweep", "RUNNING")
    assert "mlflow.parentRunId" not in root.data.tags
    parents = [r for r in found if r.data.tags.get("mlflow.parentRunId") == root.info.run_id]
    assert {(r.data.tags["setting"], r.data.tags["seed"]) for r in parents} == {
        (f"train.epochs={n}", "3") for n in (1, 2)
    }
    assert {r.info.run_name for r in parents} == {run.root.name for run in runs}
    folds = [r for r in found if "fold" in r.data.tags]
    assert len(folds) == 10 and {r.data.tags["sweep"] for r in folds} == {"demo"}
    assert {r.data.tags["dfer.sweep"] for r in found} == {sweep.info().key}


def test_sweep_ends_with_its_runs(opened: tuple[SweepDir, list[RunDir]]) -> None:
    sweep, runs = opened
    api = client(tracking_of(runs[0]).uri)
    end_run(runs[0], "FINISHED")
    assert sweep_status(sweep) is None
    (sweep.root / "comparison.md").write_text("# A comparison\n")
    write_json(sweep.root / "comparison.json", COMPARISON)
    assert sync_sweep(sweep) and sync_sweep(sweep) == 0
    end_run(runs[1], "FAILED")
    assert sync_sweep(sweep) == 1
    root = api.get_run(str(sweep.info().run_id))
    assert root.info.status == "FAILED"
    assert root.data.metrics == {"1_scores/uar train.epochs_1": 41}
    assert root.data.tags["mlflow.note.content"].startswith("# A comparison")
    names = {f.path for f in api.list_artifacts(root.info.run_id)}
    assert names == {"comparison.md", "comparison.json", "sweep.json"}
    # given again
    begin(runs[1])
    assert api.get_run(root.info.run_id).info.status == "RUNNING"


def test_deleted_run_of_a_sweep_is_made_again(opened: tuple[SweepDir, list[RunDir]]) -> None:
    sweep, runs = opened
    api = client(tracking_of(runs[0]).uri)
    before = make_runs(runs[0], api, check=True) and sweep.info().run_id
    api.delete_run(str(before))
    make_runs(runs[0], api, check=True)
    assert sweep.info().run_id != before
    parent = api.get_run(str(tracking_of(runs[0]).run_id))
    assert parent.data.tags["mlflow.parentRunId"] == sweep.info().run_id


def test_sweep_survives_a_silent_server(
    opened: tuple[SweepDir, list[RunDir]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The report is written; dfer sync sends the rest."""
    from launch import report

    def refuse(sweep: SweepDir) -> int:
        raise ConnectionError("refused")

    monkeypatch.setattr("dfer_dist.tracking.sync_sweep.sync_sweep", refuse)
    report.update_mlflow_sweep(opened[0])
    assert f"run dfer sync {opened[0].root} to send what is missing" in capsys.readouterr().err


def test_sweep_is_deleted_with_its_last_run(opened: tuple[SweepDir, list[RunDir]]) -> None:
    sweep, runs = opened
    api, root = client(tracking_of(runs[0]).uri), str(sweep.info().run_id)
    remove_run(runs[0])
    assert api.get_run(root).info.lifecycle_stage == "active" and sweep.root.exists()
    remove_run(runs[1])
    assert api.get_run(root).info.lifecycle_stage == "deleted" and not sweep.root.exists()
