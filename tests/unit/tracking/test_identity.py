"""Which MLflow runs belong to a run's folder after it was copied, renamed or moved."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from dfer_dist.config.load import dump_config
from dfer_dist.config.schema import Config
from dfer_dist.runs.layout import RunDir
from dfer_dist.runs.records import RunInfo, TrackingInfo
from dfer_dist.tracking.identity import environment_settings, fresh_tracking, own_tracking
from dfer_dist.tracking.mlflow_runs import job_connection, tracking_of
from dfer_dist.utils.errors import UserError

SERVER = "http://tracking.example.org:5000"
IDS = {"experiment_id": "1", "run_id": "abc", "folds": {"1": "def"}, "closed": "FINISHED"}


def make(root: Path, uri: str | None = None) -> RunDir:
    """Write a run that its server knows, and has all of."""
    run, config = RunDir(root), Config()
    (root / "fold-1").mkdir(parents=True)
    config.data.shards, config.tracking.uri = "/shards", uri
    run.config.write_text(dump_config(config))
    tracking = fresh_tracking(run, config, "dfew")
    assert tracking
    known = replace(tracking, **IDS)
    RunInfo([1], name=root.name, dataset="dfew", tracking=known).write(run.run)
    for file in (run.files_sent, run.fold(1).sent, run.fold(1).root / "system-n1.sent"):
        file.write_text("{}")
    return run


def make_store(file: Path, run_id: str = "abc") -> None:
    """Write the parts of MLflow's tables that hold the place of artifacts."""
    place = (file.parent / "mlartifacts").resolve().as_uri()
    with closing(sqlite3.connect(file)) as store, store:
        store.execute("CREATE TABLE experiments (artifact_location)")
        store.execute("CREATE TABLE runs (run_uuid, artifact_uri)")
        store.execute("CREATE TABLE logged_models (artifact_location)")
        store.execute("CREATE TABLE model_versions (source, storage_location)")
        store.execute("INSERT INTO experiments VALUES (?), ('s3://b/x')", [f"{place}"])
        store.execute("INSERT INTO runs VALUES (?, ?)", [run_id, f"{place}/{run_id}/artifacts"])


def places(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as store:
        rows = store.execute(
            "SELECT artifact_location FROM experiments UNION ALL SELECT artifact_uri FROM runs"
        ).fetchall()
    return [place for (place,) in rows]


def tracking(run: RunDir) -> TrackingInfo:
    own = own_tracking(run)
    assert own and own == run.info().tracking and own.root == str(run.root)
    return own


def is_own(run: RunDir, original: TrackingInfo) -> bool:
    """Return whether a run has a new key, and nothing of it is at the server yet."""
    own = tracking(run)
    is_new = own.key != original.key and not (own.run_id or own.folds or own.experiment_id)
    assert is_new == (not list(run.root.rglob("*.sent")))
    assert own.closed == "FINISHED"
    return is_new


def copy(old: Path, new: Path) -> None:
    shutil.copytree(old, new)


def archive(old: Path, new: Path) -> None:
    """Copy a folder, and remove the original later."""
    shutil.copytree(old, new)
    shutil.rmtree(old)


@pytest.mark.parametrize(
    ("place", "uri", "how"),
    [("B/r", None, copy), ("A/r2", None, copy), ("A/r2", SERVER, copy), ("B/r", SERVER, archive)],
)
def test_copied_run_gets_its_own(
    tmp_path: Path, place: str, uri: str | None, how: Callable[[Path, Path], None]
) -> None:
    run = make(tmp_path / "A" / "r", uri)
    make_store(tmp_path / "A" / "mlflow.db")
    original, new = tracking(run), RunDir(tmp_path / place)
    how(run.root, new.root)
    assert is_own(new, original)
    assert tracking(new).uri == (uri or f"sqlite:///{new.root.parent / 'mlflow.db'}")
    if run.root.exists():
        assert tracking(run) == original and run.fold(1).sent.exists()


@pytest.mark.parametrize("uri", [None, SERVER])
def test_renamed_run_keeps_its_own(tmp_path: Path, uri: str | None) -> None:
    run = make(tmp_path / "A" / "r", uri)
    make_store(tmp_path / "A" / "mlflow.db")
    original = tracking(run)
    new = RunDir(run.root.rename(tmp_path / "renamed"))
    # A new run of the same name has taken its place.
    other = make(run.root, uri)
    assert tracking(new) == replace(original, root=str(new.root))
    assert new.fold(1).sent.exists()
    assert tracking(other).key != original.key


@pytest.mark.parametrize("uri", [None, SERVER])
def test_renamed_run_with_a_copy_in_its_place_gets_its_own(tmp_path: Path, uri: str | None) -> None:
    run = make(tmp_path / "A" / "r", uri)
    make_store(tmp_path / "A" / "mlflow.db")
    original = tracking(run)
    renamed = RunDir(run.root.rename(tmp_path / "A" / "r.bak"))
    shutil.copytree(renamed.root, run.root)
    assert is_own(renamed, original)
    assert tracking(run) == original and run.fold(1).sent.exists()


def test_run_under_another_path_keeps_its_own(tmp_path: Path) -> None:
    run = make(tmp_path / "A" / "r", SERVER)
    original = tracking(run)
    (tmp_path / "home").symlink_to(tmp_path / "A")
    assert tracking(RunDir(tmp_path / "home" / "r")).key == original.key


@pytest.mark.parametrize("how", [shutil.copytree, Path.rename], ids=["copied", "renamed"])
def test_folder_of_runs_takes_its_store_along(
    tmp_path: Path, how: Callable[[Path, Path], object]
) -> None:
    run = make(tmp_path / "A" / "r")
    make_store(tmp_path / "A" / "mlflow.db")
    before, original = places(tmp_path / "A" / "mlflow.db"), tracking(run)
    how(tmp_path / "A", tmp_path / "B ü")
    new, store = RunDir(tmp_path / "B ü" / "r"), tmp_path / "B ü" / "mlflow.db"
    own = tracking(new)
    assert (own.key, own.run_id, own.uri) == (original.key, "abc", f"sqlite:///{store}")
    assert new.fold(1).sent.exists()
    own_place = (tmp_path / "B ü" / "mlartifacts").as_uri()
    assert places(store) == [own_place, "s3://b/x", f"{own_place}/abc/artifacts"]
    if (tmp_path / "A").exists():
        assert places(tmp_path / "A" / "mlflow.db") == before
    # The store that came along knows the first run of this name, not a second copy.
    copy(new.root, tmp_path / "B ü" / "r2")
    assert is_own(RunDir(tmp_path / "B ü" / "r2"), own)


def test_folder_of_runs_moved_without_its_store_gets_a_new_one(tmp_path: Path) -> None:
    run = make(tmp_path / "A" / "r")
    original = tracking(run)
    (tmp_path / "A").rename(tmp_path / "B")
    new = RunDir(tmp_path / "B" / "r")
    assert is_own(new, original)
    assert tracking(new).uri == f"sqlite:///{tmp_path / 'B' / 'mlflow.db'}"


def test_copy_of_a_run_of_an_earlier_version_gets_its_own(tmp_path: Path) -> None:
    run = make(tmp_path / "A" / "r")
    earlier = replace(tracking(run), root="", inode=None)
    run.update_info(tracking=earlier)
    copy(run.root, tmp_path / "B" / "r")
    assert is_own(RunDir(tmp_path / "B" / "r"), earlier)
    assert tracking(run).key == earlier.key


def test_variables_count_where_settings_are_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = RunDir(tmp_path / "r"), Config()

    def found() -> tuple[str, str]:
        tracking = fresh_tracking(run, config, "dfew")
        assert tracking
        return tracking.uri, tracking.experiment

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert found() == (f"sqlite:///{tmp_path / 'mlflow.db'}", "dfew")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "  ")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{SERVER}/")
    assert found() == (SERVER, "dfew")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f" {SERVER}\r\n")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert found() == (SERVER, "mine")
    config.tracking.experiment = "set"
    assert found() == (SERVER, "set")
    assert "MLFLOW_EXPERIMENT_NAME" not in environment_settings(config.tracking)
    config.tracking.uri = "sqlite:///relative.db"
    assert found() == (f"sqlite:///{os.getcwd()}/relative.db", "set")
    monkeypatch.setenv("HOME", "/home/ada")
    config.tracking.uri = "sqlite:///~/own.db"
    assert found() == ("sqlite:////home/ada/own.db", "set")


def test_id_of_an_experiment_counts_where_nothing_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = RunDir(tmp_path / "r"), Config()

    def found() -> str | None:
        tracking = fresh_tracking(run, config, "dfew")
        assert tracking
        assert ("MLFLOW_EXPERIMENT_ID" in environment_settings(config.tracking)) == bool(
            tracking.experiment_id
        )
        return tracking.experiment_id

    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    assert found() == "7"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert found() is None
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    config.tracking.experiment = "set"
    assert found() is None


@pytest.mark.parametrize(
    "uri", ["databricks", "./mlruns", "http://", "sqlite:///", "http://me:secret@host"]
)
def test_variable_with_another_store_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as e:
        fresh_tracking(RunDir(tmp_path / "r"), Config(), "dfew")
    assert "secret" not in str(e.value)


@pytest.mark.parametrize(
    ("uri", "job", "connects"),
    [(None, "", True), (None, "7", False), ("sqlite:////a/b.db", "7", False), (SERVER, "7", True)],
)
def test_jobs_of_a_cluster_do_not_write_to_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None, job: str, connects: bool
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    run = make(tmp_path / "r", uri)
    assert (job_connection(run, 1, running=True) is not None) == connects
    run.update_info(tracking=None)
    assert job_connection(run, 1, running=True) is None


def test_run_without_tracking_says_which_runs_have_none(tmp_path: Path) -> None:
    run = make(tmp_path / "r", None)
    run.update_info(tracking=None)
    with pytest.raises(UserError, match=r"by dfer eval --endpoint, or with tracking.enabled=false"):
        tracking_of(run)
