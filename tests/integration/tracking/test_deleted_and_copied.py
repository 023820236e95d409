"""MLflow runs that were deleted in MLflow, and those of a run folder that was copied."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service import utils

from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import RunDir
from dfer_dist.tracking.identity import own_tracking
from dfer_dist.tracking.metric_names import VERSION
from dfer_dist.tracking.mlflow_runs import begin, tracking_of
from dfer_dist.tracking.server import client
from dfer_dist.tracking.sync import sync
from dfer_dist.utils.files import write_json
from launch.runs import open_run


@pytest.fixture(scope="module")
def made(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return a run with the metrics of one fold, all of which its server has."""
    runs = tmp_path_factory.mktemp("made") / "runs"
    overrides = [f"data.shards={tiny_shards.root}", "train.global_batch=8"]
    run, _ = open_run(runs, None, "demo", overrides, (), None, 1)
    fold = run.fold(1)
    lines = [json.dumps({"step": k, "time": 1e9 + k, "loss": 1 / k}) for k in range(1, 9)]
    checkpoint = fold.checkpoints / "step-00000008"
    checkpoint.mkdir(parents=True)
    fold.metrics.write_text("\n".join(lines) + "\n")
    write_json(checkpoint / "state.json", {"metrics_bytes": fold.metrics.stat().st_size})
    (fold.checkpoints / "LATEST").write_text("step-00000008\n")
    begin(run)
    assert sync(run).lines == 8
    return run


def steps_at_server(run: RunDir) -> list[int]:
    tracking = tracking_of(run)
    history = client(tracking.uri).get_metric_history(tracking.folds["1"], "4_training/loss")
    return [metric.step for metric in history]


def is_complete(run: RunDir) -> bool:
    """Return whether the server has all of a run, in an active experiment and active runs."""
    tracking = tracking_of(run)
    api = client(tracking.uri)
    found = [api.get_run(r).info for r in (tracking.run_id, *tracking.folds.values())]
    assert {info.experiment_id for info in found} == {tracking.experiment_id}
    stages = {info.lifecycle_stage for info in found}
    stages.add(api.get_experiment(tracking.experiment_id).lifecycle_stage)
    again = sync(run)
    nothing_left = (again.lines, again.files, again.changes) == (0, 0, 0)
    return stages == {"active"} and nothing_left and steps_at_server(run) == [*range(1, 9)]


def digest(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.parametrize("what", ["run", "runs"])
def test_copy_leaves_the_originals_records_alone(made: RunDir, tmp_path: Path, what: str) -> None:
    source, target = made.root, tmp_path / "copied" / made.root.name
    if what == "runs":
        source, target = made.root.parent, tmp_path / "copied"
    before = digest(made.root.parent)
    shutil.copytree(source, target)
    copy = RunDir(tmp_path / "copied" / made.root.name)
    copy.config.write_text(copy.config.read_text().replace("workers: 0", "workers: 1"))
    # A command of its own would not know the places of files that MLflow remembers here.
    utils._artifact_repos_cache.clear()
    begin(copy)
    assert sync(copy).files
    assert is_complete(copy)
    assert digest(made.root.parent) == before
    sent = [*(tmp_path / "copied" / "mlartifacts").rglob("config.yaml")]
    assert copy.config.read_bytes() in {file.read_bytes() for file in sent}


def test_deleted_experiment_is_restored(made: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    tracking = tracking_of(made)
    client(tracking.uri).delete_experiment(tracking.experiment_id)
    begin(made)
    assert "restored" in caplog.text and "does not answer" not in caplog.text
    assert is_complete(made) and tracking_of(made) == tracking


def test_new_run_restores_the_deleted_experiment_of_its_name(
    made: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = tracking_of(made)
    client(tracking.uri).delete_experiment(tracking.experiment_id)
    new = RunDir(made.root.with_name("new"))
    shutil.copytree(made.root, new.root)
    begin(new)
    assert "tracking.experiment" in caplog.text
    sync(new)
    assert is_complete(new)


@pytest.mark.parametrize("exists", [True, False])
def test_new_run_is_in_the_experiment_of_an_id(
    made: RunDir, tmp_path: Path, caplog: pytest.LogCaptureFixture, exists: bool
) -> None:
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    wanted = "99"
    if exists:
        wanted = client(uri).create_experiment("another", (tmp_path / "artifacts").as_uri())
    new = RunDir(tmp_path / "new")
    shutil.copytree(made.root, new.root)
    fresh = replace(tracking_of(new), uri=uri, experiment_id=wanted)
    new.update_info(tracking=fresh)
    begin(new)
    found = client(uri).get_experiment(tracking_of(new).experiment_id)
    assert found.name == ("another" if exists else fresh.experiment)
    assert ("MLFLOW_EXPERIMENT_ID=99 is no experiment" in caplog.text) != exists
    sync(new)
    assert is_complete(new)


def test_deleted_runs_are_restored(made: RunDir) -> None:
    tracking = tracking_of(made)
    api = client(tracking.uri)
    for run_id in (tracking.run_id, tracking.folds["1"]):
        api.delete_run(run_id)
    sync(made)
    assert is_complete(made) and tracking_of(made) == tracking


def test_runs_that_were_removed_for_good_are_made_anew(made: RunDir) -> None:
    tracking = tracking_of(made)
    store = SqlAlchemyStore(tracking.uri, "unused")
    for run_id in (tracking.run_id, tracking.folds["1"]):
        # As mlflow gc does.
        store.delete_run(run_id)
        store._hard_delete_run(run_id)
    assert sync(made).lines == 8
    new = tracking_of(made)
    assert is_complete(made) and new.folds["1"] != tracking.folds["1"]
    assert new.folds["2"] == tracking.folds["2"]


def test_new_database_gets_everything(made: RunDir, tmp_path: Path) -> None:
    """The database was lost, and its experiment's id is now that of another experiment."""
    tracking, uri = tracking_of(made), f"sqlite:///{tmp_path / 'new.db'}"
    assert client(uri).create_experiment("another") == tracking.experiment_id
    made.update_info(tracking=replace(tracking, uri=uri))
    assert sync(made).lines == 8
    assert is_complete(made)
    assert tracking_of(made).experiment_id != tracking.experiment_id


def test_run_of_an_earlier_version_keeps_its_names(made: RunDir) -> None:
    """It was begun with the names of the files, some lines were sent, and it is resumed."""
    old = RunDir(made.root.with_name("old"))
    shutil.copytree(made.root, old.root)
    fold = old.fold(1)
    lines = fold.metrics.read_bytes().splitlines(keepends=True)
    state = fold.checkpoints / "step-00000008" / "state.json"
    write_json(state, {"metrics_bytes": len(b"".join(lines[:5]))})
    own = own_tracking(old)
    assert own and own.metric_names == VERSION
    old.update_info(tracking=replace(own, metric_names=1))
    begin(old)
    assert sync(old).lines == 5
    write_json(state, {"metrics_bytes": fold.metrics.stat().st_size})
    begin(old)
    assert sync(old).lines == 3
    api, child = client(tracking_of(old).uri), tracking_of(old).folds["1"]
    assert set(api.get_run(child).data.metrics) == {"loss"}
    assert [m.step for m in api.get_metric_history(child, "loss")] == [*range(1, 9)]
