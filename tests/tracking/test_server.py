"""Five folds at once to a real ``mlflow server`` on PostgreSQL, and faults of the server."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from dfer_dist.tracking.mlflow_runs import begin, tracking_of
from tests.helpers.tracking.load import Trial
from tests.helpers.tracking.proxy import BROKEN, DEAD, PASS, SLOW, Proxy
from tests.helpers.tracking.servers import Site


@pytest.fixture
def trial(site: Site, proxy: Proxy, tiny_shards: Index, tmp_path: Path) -> Trial:
    return Trial(site, tiny_shards, tmp_path, proxy.uri, f"run-{time.time_ns()}")


def same_after_sync(trial: Trial) -> None:
    """Assert that ``dfer sync`` sends everything, and that a second one changes nothing."""
    trial.sync()
    trial.check()
    before = trial.site.mlflow.state()
    sent = trial.sync()
    assert (sent.lines, sent.files, sent.changes, sent.busy) == (0, 0, 0, [])
    assert trial.site.mlflow.state() == before


def test_five_folds_log_while_the_server_is_down(trial: Trial, proxy: Proxy) -> None:
    trial.open()
    folds = trial.start(lines=200, pause=0.02)
    time.sleep(2)
    proxy.mode = DEAD
    time.sleep(1)
    proxy.mode = PASS
    trial.finish(folds)
    trial.check()
    trial.nobody_waited()
    same_after_sync(trial)


@pytest.mark.tracking
@pytest.mark.parametrize(("mode", "most"), [(DEAD, 2.0), (BROKEN, 2.0), (SLOW, 6.0)])
def test_run_starts_without_waiting_for_the_server(
    trial: Trial, proxy: Proxy, mode: str, most: float, caplog
) -> None:
    trial.open()
    proxy.mode = mode
    times = time.perf_counter()
    begin(trial.run)
    seconds = time.perf_counter() - times
    print(f"a server that is {mode} delayed the start by {seconds:.2f} s")
    assert seconds < most
    assert "dfer sync" in caplog.text


@pytest.mark.tracking
@pytest.mark.parametrize("mode", [DEAD, BROKEN, SLOW])
def test_server_is_down_from_start_to_end(
    trial: Trial, proxy: Proxy, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow server completes requests after they time out; nothing may be stored twice."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    proxy.mode = mode
    trial.open()
    said = trial.finish(trial.start(lines=200, pause=0.05), end=False)
    assert "is sent once the server takes it" in said
    trial.nobody_waited()
    assert tracking_of(trial.run).run_id is None
    with pytest.raises(Exception, match=r"refused|reset|aborted|500|timed out|Remote end"):
        trial.end()
    if mode == SLOW:
        # Until all requests are done.
        time.sleep(proxy.delay)
    proxy.mode = PASS
    same_after_sync(trial)


@pytest.mark.tracking
def test_server_is_killed_and_restarted(trial: Trial) -> None:
    trial.open()
    folds = trial.start(lines=600, pause=0.05)
    time.sleep(10)
    trial.site.mlflow.kill()
    time.sleep(3)
    trial.site.mlflow.start()
    trial.finish(folds)
    trial.check()
    same_after_sync(trial)


@pytest.mark.tracking
@pytest.mark.parametrize("mode", [BROKEN, SLOW])
def test_server_fails_during_the_run(
    trial: Trial, proxy: Proxy, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    trial.open()
    folds = trial.start(lines=400, pause=0.05)
    time.sleep(8)
    proxy.mode = mode
    trial.finish(folds, end=False)
    trial.nobody_waited()
    proxy.mode = PASS
    trial.end()
    same_after_sync(trial)


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 160 MB."""
    folder = tmp_path_factory.mktemp("disk")
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "none", str(folder)], check=False
    ).returncode:
        pytest.skip("mounting a small file system takes root")
    for parent in list(folder.parents)[:2]:
        # PostgreSQL's user must be able to enter.
        parent.chmod(0o755)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.tracking
@pytest.mark.parametrize("what", ["database", "artifacts"])
def test_disk_of_the_server_is_full(
    tiny_shards: Index, tmp_path: Path, small_disk: Path, tmp_path_factory, what: str
) -> None:
    site = Site.make(tmp_path_factory.mktemp("site"), **{what: small_disk / what})
    try:
        trial = Trial(site, tiny_shards, tmp_path, site.mlflow.uri, "run")
        trial.open()
        folds = trial.start(lines=400, pause=0.05)
        time.sleep(5)
        ballast = small_disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as f:
            while f.write(b"0" * 65536):
                pass
        trial.finish(folds, end=False)
        trial.nobody_waited()
        if what == "artifacts":
            with pytest.raises(Exception, match=r"500|No space"):
                trial.end()
        ballast.unlink()
        # It exits when it cannot write its log.
        site.postgres.start()
        trial.end()
        same_after_sync(trial)
    finally:
        site.end()
