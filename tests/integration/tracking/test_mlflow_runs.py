"""MLflow runs of a run, in a SQLite file: creation, status, metrics, files and registry."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.config.load import load_config
from dfer_dist.data.shards.index import Index
from dfer_dist.inference.exported import load as load_exported
from dfer_dist.inference.register import register
from dfer_dist.runs.layout import RunDir
from dfer_dist.tracking import mlflow_runs
from dfer_dist.tracking.identity import fresh_tracking
from dfer_dist.tracking.mlflow_runs import begin, delete_runs, make_runs, tracking_of
from dfer_dist.tracking.server import client
from dfer_dist.tracking.sync import committed_bytes, end_run, recall_table, send_files, sync
from dfer_dist.utils.errors import UserError
from dfer_dist.utils.files import read_json, write_json
from dfer_dist.utils.locks import file_lock
from launch.report import opening_mlflow_runs
from launch.runs import open_run
from tests.helpers.forked import Forked
from tests.helpers.training.commands import wait_for

SETTINGS = ["train.selection=best_val", "tracking.experiment=an experiment"]


@pytest.fixture(scope="module")
def made(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return an opened, untrained run; every test leaves its MLflow runs complete."""
    runs = tmp_path_factory.mktemp("runs")
    run, _ = open_run(
        runs,
        None,
        "demo",
        [f"data.shards={tiny_shards.root}", "train.global_batch=8", *SETTINGS],
        (),
        None,
        1,
    )
    begin(run)
    return run


def test_ranks_start_while_mlflow_runs_are_created(
    made: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, seen = threading.Event(), []
    monkeypatch.setattr(mlflow_runs, "begin", lambda run: seen.append((run, started.wait(10))))
    with opening_mlflow_runs(made):
        # As the block starts its ranks.
        started.set()
    assert seen == [(made, True)]


def test_hanging_server_does_not_delay_the_end(
    made: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(mlflow_runs, "begin", lambda run: over.wait(10))
    monkeypatch.setattr("launch.report._OPEN_TIMEOUT", 0.1)
    times = time.perf_counter()
    with pytest.raises(UserError, match="of the block's own"), opening_mlflow_runs(made):
        raise UserError("of the block's own")
    assert time.perf_counter() - times < 5
    over.set()


OPEN = """
import mlflow.store.tracking.sqlalchemy_store, sys, time
from pathlib import Path
from dfer_dist.tracking.server import client
ready, start = map(Path, sys.argv[2:])
ready.touch()
while not start.exists():
    time.sleep(0.001)
print(client(sys.argv[1]).search_experiments()[0].name)
"""


@pytest.mark.tracking
def test_processes_create_one_database_at_the_same_time(tmp_path: Path) -> None:
    """A command and its ranks may all open it first."""
    script, start = tmp_path / "open.py", tmp_path / "start"
    script.write_text(OPEN)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    ready = [tmp_path / f"ready-{i}" for i in range(3)]
    those = [Forked([str(script), uri, str(mark), str(start)], os.environ) for mark in ready]
    for mark in ready:
        wait_for(mark)
    start.touch()
    said = [process.wait(timeout=60) for process in those]
    assert [done.stdout for done in said] == ["Default\n"] * 3, said


@pytest.mark.parametrize("name", ["50%accurate", "why?", "100%"])
def test_store_is_in_the_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """SQLAlchemy takes ``%ac`` for an encoded byte, and what follows ``?`` for its own."""
    (tmp_path / name).mkdir()
    api = client(f"sqlite:///{tmp_path / name / 'mlflow.db'}")
    assert api.search_experiments()[0].name == "Default"
    with closing(sqlite3.connect(tmp_path / name / "mlflow.db")) as store:
        assert store.execute("SELECT name FROM experiments").fetchall() == [("Default",)]


KILLED_WHILE_IT_CREATES = """
import os, signal, sys
from sqlalchemy import Engine, event
from dfer_dist.tracking.server import client

@event.listens_for(Engine, "after_cursor_execute")
def kill(connection, cursor, statement, *more):
    if "CREATE TABLE registered_model_tags" in statement:
        os.kill(os.getpid(), signal.SIGKILL)

client(sys.argv[1])
"""


def test_kill_while_tables_are_created_leaves_no_database(tmp_path: Path) -> None:
    script, uri = tmp_path / "create.py", f"sqlite:///{tmp_path / 'mlflow.db'}"
    script.write_text(KILLED_WHILE_IT_CREATES)
    done = Forked([str(script), uri], os.environ).wait(timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert client(uri).search_experiments()[0].name == "Default"


def test_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Loader workers may be forked while another thread of their rank changes ``run.json``."""
    with file_lock(tmp_path / "lock"):
        worker = os.fork()
        if not worker:
            time.sleep(60)
            os._exit(0)
    try:
        with (tmp_path / "lock").open() as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def at_server(run: RunDir) -> dict[str, str]:
    """Return the ids of the MLflow runs with the run's key, by name."""
    tracking = tracking_of(run)
    found = client(tracking.uri).search_runs(
        [tracking.experiment_id], f"tags.`dfer.run` = '{tracking.key}'"
    )
    assert len(found) == len({r.info.run_name for r in found})
    return {r.info.run_name: r.info.run_id for r in found}


def test_mlflow_runs_have_parameters_tags_and_data(made: RunDir) -> None:
    tracking, origin = tracking_of(made), read_json(made.provenance)
    api = client(tracking.uri)
    assert api.get_experiment(tracking.experiment_id).name == "an experiment"
    assert set(at_server(made)) == {"demo", *(f"demo-fold{k}" for k in range(1, 6))}
    for run_id in (tracking.run_id, *tracking.folds.values()):
        run = api.get_run(run_id)
        params = run.data.params
        assert (params["train.selection"], params["train.val_fraction"]) == ("best_val", "0.1")
        # the demo has AdamW and the cosine schedule
        assert "optim.lr_image" in params and "optim.momentum" not in params
        assert "optim.milestones" not in params
        tags = {
            key: run.data.tags[key]
            for key in ("dataset", "index_hash", "code_hash", "selection", "precision")
        }
        assert tags == {
            "dataset": "dfew",
            "index_hash": made.info().index_hash,
            "code_hash": origin["code_hash"],
            "selection": "best_val",
            "precision": "bf16",
        }
        data = run.inputs.dataset_inputs[0].dataset
        assert (data.name, data.digest) == ("dfew", origin["data"]["hash"][:32])
        assert json.loads(data.source) == {"uri": origin["data"]["shards"]}
    assert {api.get_run(r).info.status for r in tracking.folds.values()} == {"SCHEDULED"}


def test_crash_before_ids_are_written_makes_no_second_runs(made: RunDir) -> None:
    tracking, there = tracking_of(made), at_server(made)
    api = client(tracking.uri)
    # As if the crash came between two tags.
    api.delete_tag(tracking.folds["2"], "selection")
    made.update_info(tracking=replace(tracking, experiment_id=None, run_id=None, folds={}))
    assert make_runs(made, api) == tracking
    assert at_server(made) == there
    assert api.get_run(tracking.folds["2"]).data.tags["selection"] == "best_val"


def test_duplicate_of_a_late_request_is_deleted(made: RunDir) -> None:
    tracking, there = tracking_of(made), at_server(made)
    api = client(tracking.uri)
    for tags in ({}, {"fold": "3"}):
        api.create_run(
            tracking.experiment_id,
            tags={"dfer.run": tracking.key, **tags},
            start_time=1,
            run_name="late",
        )
    assert make_runs(made, api, check=True) == tracking
    assert at_server(made) == there


def test_mlflow_runs_of_earlier_version_are_kept(made: RunDir) -> None:
    tracking = tracking_of(made)
    older = {
        k: v
        for k, v in asdict(tracking).items()
        if k in ("uri", "experiment_id", "run_id", "folds")
    }
    write_json(made.run, {**read_json(made.run), "tracking": older})
    sync(made)
    assert older.items() <= asdict(tracking_of(made)).items()
    made.update_info(tracking=tracking)
    sync(made)


def test_statuses_are_sent_again_when_the_run_resumes(made: RunDir) -> None:
    tracking = tracking_of(made)
    api = client(tracking.uri)
    for fold, state in (("1", "DONE"), ("2", "FAILED"), ("3", "PREEMPTED"), ("4", "RUNNING")):
        where = made.fold(int(fold))
        where.root.mkdir(exist_ok=True)
        attempt = {
            "job": "17_1",
            "array": "17",
            "nodes": "n[1-2]",
            "world_size": 4,
            "device": "a GPU",
        }
        write_json(where.status, {"state": state, "attempts": [attempt, attempt]})
    sent = end_run(made, "FAILED", [5])
    assert sent and sent.changes
    want = {"1": "FINISHED", "2": "FAILED", "3": "KILLED", "4": "KILLED", "5": "FAILED"}
    assert {k: api.get_run(r).info.status for k, r in tracking.folds.items()} == want
    assert api.get_run(tracking.run_id).info.status == "FAILED"
    tags = api.get_run(tracking.folds["1"]).data.tags
    job = {
        "slurm.array": "17",
        "slurm.job": "17_1",
        "nodes": "n[1-2]",
        "world_size": "4",
        "device": "a GPU",
        "attempts": "2",
    }
    assert {k: tags[k] for k in job} == job
    again = sync(made)
    assert (again.lines, again.files, again.changes) == (0, 0, 0)
    begin(made)
    assert api.get_run(tracking.run_id).info.status == "RUNNING"
    assert (tracking_of(made).closed, tracking_of(made).given_up) == (None, [])


def test_metrics_are_sent_up_to_the_last_checkpoint(made: RunDir) -> None:
    tracking, fold = tracking_of(made), made.fold(2)
    api = client(tracking.uri)
    lines = [
        json.dumps({"step": k, "epoch": 0, "time": 1e9 + k, "loss": 1 / k}) + "\n"
        for k in range(1, 9)
    ]
    fold.metrics.write_text("".join(lines) + '{"step": 9, "lo')
    assert committed_bytes(fold) == 0
    (fold.checkpoints / "step-00000005").mkdir(parents=True)
    write_json(
        fold.checkpoints / "step-00000005" / "state.json",
        {"metrics_bytes": len("".join(lines[:5]))},
    )
    (fold.checkpoints / "LATEST").write_text("step-00000005\n")
    assert sync(made).lines == 5
    assert [m.step for m in api.get_metric_history(tracking.folds["2"], "4_training/loss")] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert sync(made).lines == 0


def test_files_are_sent_when_they_change(made: RunDir, tmp_path: Path) -> None:
    tracking = tracking_of(made)
    api, child = client(tracking.uri), tracking.folds["5"]
    a, mark = tmp_path / "a.txt", tmp_path / "mark"
    a.write_text("one")
    files: dict[str, Path | str] = {"a.txt": a, "b.csv": "x,y\n"}
    assert [send_files(api, child, mark, files) for _ in range(2)] == [2, 0]
    a.write_text("two")
    assert send_files(api, child, mark, files) == 1
    place = Path(api.get_run(child).info.artifact_uri.removeprefix("file://"))
    assert ((place / "a.txt").read_text(), (place / "b.csv").read_text()) == ("two", "x,y\n")
    (place / "b.csv").unlink()
    assert send_files(api, child, mark, files) == 1


def test_recall_of_an_absent_class_is_empty() -> None:
    table = recall_table(
        {"recall": {"anger, hot": 12.345, "fear": None}, "support": {"anger, hot": 3, "fear": 0}}
    )
    assert table == 'class,clips,recall\n"anger, hot",3,12.35\nfear,0,\n'


def test_registry_has_the_model_once(
    exported, made: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, old = RunDir(tmp_path / "small"), exported.fold.root.parent
    shutil.copytree(old, run.root)
    settings = load_config(
        str(run.config), ["tracking.enabled=true", f"tracking.uri={tracking_of(made).uri}"]
    )
    run.update_info(tracking=fresh_tracking(run, settings, "dfew"))
    with pytest.raises(UserError, match="fold 1 has no result"):
        register(run, 1, "faces", "candidate")
    version = register(run, None, "faces", "candidate")
    assert (version.number, version.fold, version.known) == ("1", 2, False)
    assert register(run, 2, "faces", "champion").known
    tracking = tracking_of(run)
    api = client(tracking.uri)
    assert [v.version for v in api.search_model_versions("name = 'faces'")] in ([1], ["1"])
    logged = api.get_run(tracking.folds["2"]).outputs.model_outputs
    assert len(logged) == 1 and api.get_logged_model(logged[0].model_id).status == "READY"
    import mlflow

    # MLflow sets the variable, too
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    mlflow.set_tracking_uri(tracking.uri)
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 40, 30, 3), dtype=np.uint8)
    for alias in ("candidate", "champion"):
        got = mlflow.pyfunc.load_model(f"models:/faces@{alias}").predict(frames)
        np.testing.assert_allclose(
            got.to_numpy(), load_exported(exported.out).probabilities(frames), atol=1e-5
        )


def test_delete_runs_removes_an_untrained_run(made: RunDir) -> None:
    delete_runs(made)
    assert at_server(made) == {}


@pytest.mark.parametrize(
    "uri", ["http://me:secret@host/x", "https://me@host", "postgresql://me:secret@host/db"]
)
def test_password_in_uri_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as e:
        load_config("demo", ["data.shards=x", f"tracking.uri={uri}"])
    assert "secret" not in str(e.value) and "host" not in str(e.value)


@pytest.mark.parametrize(
    "uri", ["postgresql://host/db", "file:///tmp/mlruns", "databricks", "sqlite:mlflow.db"]
)
def test_other_stores_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match="mlflow server"):
        load_config("demo", ["data.shards=x", f"tracking.uri={uri}"])
