"""Five folds at once through a real ``mlflow server`` on a real PostgreSQL, and all that can befall it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from load import Trial
from proxy import DEAD, PASS, Proxy
from servers import Site

from dfer_dist.data.shards import Index


@pytest.fixture
def trial(site: Site, proxy: Proxy, tiny_shards: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    return Trial(site, tiny_shards, tmp_path, proxy.uri, f"run-{time.time_ns()}")


def test_five_folds_log_at_once_and_the_server_is_away_for_a_while(trial: Trial, proxy: Proxy) -> None:
    trial.open()
    folds = trial.start(lines=300, pause=0.02)
    time.sleep(4)
    proxy.mode = DEAD
    time.sleep(2)
    proxy.mode = PASS
    trial.finish(folds)
    trial.check()
    assert trial.longest < 0.5  # on busy cores; nobody waits for the server
    before = trial.site.mlflow.state()
    sent = trial.sync()
    assert (sent.lines, sent.files, sent.changes, sent.busy) == (0, 0, 0, [])
    assert trial.site.mlflow.state() == before
