"""Real two-rank training with a server that needs a password, and with one that is dead."""

from __future__ import annotations

import base64
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from mlflow_page import browser_page

from dfer_dist.data.shards.index import Index
from dfer_dist.tracking.mlflow_runs import tracking_of
from dfer_dist.tracking.sync import sync
from launch.report import open_mlflow_runs
from tests.helpers.tracking.load import FILES, expected
from tests.helpers.tracking.proxy import DEAD, PASS, Proxy
from tests.helpers.tracking.servers import ADMIN, Site
from tests.helpers.training.trials import SETTINGS, Trial

PASSWORD = "a-Password-that-is-found-nowhere-9731"
LONG = ["train.epochs=150", "train.save_epochs=5", "train.selection=last", "train.save_steps=30"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Site]:
    site = Site.make(Path(tempfile.mkdtemp(prefix="dfer-site-")), password=PASSWORD)
    yield site
    site.end()


@pytest.fixture
def trial(
    guarded: Site, tiny_shards: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Trial:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    return Trial(tiny_shards, tmp_path, settings=[f"tracking.uri={guarded.mlflow.uri}"])


def check(site: Site, trial: Trial) -> str:
    """Assert that the fold's run has each metric once, all files and its status; return its id."""
    child = tracking_of(trial.run).folds["1"]
    assert site.postgres.metrics(child) == expected(
        [trial.fold.metrics, *trial.fold.root.glob("system-*.jsonl")]
    )
    assert site.postgres.rows("select status from runs where run_uuid = %s", child) == [
        ("FINISHED",)
    ]
    found = {Path(name).name for name in site.mlflow.files() if child in name}
    assert found >= FILES | {trial.fold.log.name}
    return child


@pytest.mark.tracking
def test_two_ranks_log_to_a_server_with_a_password(
    guarded: Site, trial: Trial, tmp_path: Path
) -> None:
    said = trial.finish(trial.start(), again=0)
    child = check(guarded, trial)
    tags = dict(guarded.postgres.rows("select key, value from tags where run_uuid = %s", child))
    assert (tags["world_size"], tags["attempts"], tags["selection"]) == ("2", "1", "best_test")
    before = guarded.mlflow.state()
    dfer = Path(sys.executable).with_name("dfer")
    again = subprocess.run(
        [dfer, "sync", trial.run.root], check=True, capture_output=True, text=True
    )
    page = subprocess.run([dfer, "ui", trial.run.root], check=True, capture_output=True, text=True)
    assert "has everything" in again.stdout and guarded.mlflow.state() == before
    assert page.stdout.startswith(f"{guarded.mlflow.uri}/#/experiments/")
    rows = [
        str(guarded.postgres.rows(f'select * from "{name}"'))
        for name in guarded.postgres.everything()
    ]
    files = [
        f for root in (tmp_path, guarded.mlflow.artifacts) for f in root.rglob("*") if f.is_file()
    ]
    assert len(files) > 30
    texts = [
        said,
        again.stdout,
        again.stderr,
        page.stdout,
        *rows,
        *(f.read_bytes().decode("latin-1") for f in files),
    ]
    coded = base64.b64encode(f"{ADMIN}:{PASSWORD}".encode()).decode()
    assert not [text[:200] for text in texts if PASSWORD in text or coded in text]


@pytest.mark.tracking
def test_wrong_password_is_reported_and_stops_nothing(
    guarded: Site, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")
    said = trial.finish(trial.start("train.epochs=1"), again=0)
    assert "dfer sync" in said and "another" not in said
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    sync(trial.run)
    check(guarded, trial)


@pytest.mark.tracking
def test_dead_server_does_not_slow_steps(guarded: Site, trial: Trial) -> None:
    """The server is alive and dead in turns of four seconds; a step counts for its turn."""
    proxy = Proxy(guarded.mlflow.uri)
    trial.settings = [f"tracking.uri={proxy.uri}"]
    trial.prepare(settings=[*SETTINGS, *LONG])
    with (trial.run.code / "dfer_dist" / "tracking" / "uploader.py").open("a") as f:
        f.write("\n_RETRY_SECONDS = 1.0  # the server has to be found dead often\n")
    turns: list[tuple[float, str]] = []
    over = threading.Event()

    def take_turns() -> None:
        while not over.is_set():
            proxy.mode = DEAD if proxy.mode == PASS else PASS
            turns.append((time.time(), proxy.mode))
            over.wait(4)

    process = trial.start(settings=[*SETTINGS, *LONG])
    trial.training(20)
    thread = threading.Thread(target=take_turns)
    thread.start()
    try:
        trial.finish(process, again=0)
    finally:
        over.set()
        thread.join()
        proxy.mode = PASS
    rates = {mode: middle(seconds) for mode, seconds in steps(trial, turns).items()}
    print(
        f"steps a second, mean of the middle half: server alive {1 / rates[PASS]:.2f}, "
        f"dead {1 / rates[DEAD]:.2f}, ratio {rates[PASS] / rates[DEAD]:.3f}"
    )
    assert rates[PASS] / rates[DEAD] > 0.98
    sync(trial.run)
    check(guarded, trial)
    before = guarded.mlflow.state()
    sync(trial.run)
    assert guarded.mlflow.state() == before
    proxy.end()


def middle(seconds: list[float]) -> float:
    """Return the mean of the middle half: times are rounded too coarsely for a median."""
    quarter = len(seconds) // 4
    return statistics.fmean(sorted(seconds)[quarter : len(seconds) - quarter])


def steps(trial: Trial, turns: list[tuple[float, str]]) -> dict[str, list[float]]:
    """Return the seconds of each step by the state of the server, without those of a change."""
    lines = [x for x in trial.lines() if "loss" in x]
    out: dict[str, list[float]] = {PASS: [], DEAD: []}
    for before, line in itertools.pairwise(lines):
        modes = [mode for at, mode in turns if at < before["time"]]
        same = modes and not any(before["time"] <= at <= line["time"] for at, _ in turns)
        if same and line["step"] == before["step"] + 1:
            out[modes[-1]].append(line["time"] - before["time"])
    assert min(map(len, out.values())) > 100
    return out


@pytest.mark.tracking
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_ui_opens_a_run_and_ends_with_its_processes(
    tiny_shards: Index, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """The page of the run is that of model training; MLflow's default is that of GenAI."""
    pytest.importorskip("playwright")
    trial = Trial(tiny_shards, tmp_path)
    trial.prepare()
    open_mlflow_runs(trial.run)
    command = [Path(sys.executable).with_name("dfer"), "ui", trial.run.root]
    # A job in the background ignores SIGINT.
    listen = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=listen,
    )
    try:
        assert process.stdout
        address = process.stdout.readline().split()[0]
        children = psutil.Process(process.pid).children(recursive=True)
        with browser_page() as page:
            page.goto(address)
            page.get_by_text("Model metrics", exact=True).wait_for(timeout=60_000)
            assert page.get_by_text(trial.run.root.name, exact=True).count()
            assert page.get_by_text("Models", exact=True).count()
            assert not page.get_by_text("Judges", exact=True).count()
    finally:
        process.send_signal(number)
        assert process.wait(60) == status
    assert len(children) > 1 and not psutil.wait_procs(children, timeout=10)[1]
