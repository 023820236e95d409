"""A Slurm of four nodes for the tests."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import Cluster, TestbedError

from dfer_dist.data.shards.index import Index
from tests.helpers.slurm.chaos_table import Table
from tests.helpers.slurm.submitted import PATIENT, Submitted
from tests.helpers.training.trials import Trial

PREFIX = f"/tmp/dfer-slurm-test-{os.geteuid()}-"


def free_ports() -> int:
    """Return the first of 500 ports, below those of ranks, of which the daemons' are free."""
    bases = list(range(10000, 20000, 500))
    random.shuffle(bases)
    for base in bases:
        try:
            for port in (0, 1, 10, 11, 12, 13, 14):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", base + port))
        except OSError:
            continue
        return base
    pytest.fail("no free ports for a Slurm")


def claim(folder: Path) -> int | None:
    """Lock ``folder`` until this process ends; None if another test run holds it."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


@contextmanager
def running(kind: str, accounting: bool, kill_wait: int) -> Iterator[Cluster]:
    """Run a cluster until the tests end, and purge first what killed test runs left."""
    for left in Path("/tmp").glob(Path(PREFIX).name + "*"):
        if claim(left) is not None:
            Cluster(left).down(purge=True)
    root = Path(f"{PREFIX}{os.getpid()}{kind}")
    root.mkdir()
    assert claim(root)
    cluster = Cluster(root, free_ports(), accounting=accounting, kill_wait=kill_wait)
    try:
        cluster.up()
    except TestbedError as e:
        cluster.down(purge=True)
        pytest.skip(str(e))
    yield cluster
    cluster.down(purge=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running("a", accounting=True, kill_wait=15) as found:
        yield found


@pytest.fixture(scope="session")
def bare_cluster() -> Iterator[Cluster]:
    """A cluster without accounting, and so without sacct."""
    with running("b", accounting=False, kill_wait=5) as found:
        yield found


@pytest.fixture(scope="session")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A file system of 64 MiB, which nodes see that start after it was mounted."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def chaos_cluster(small_disk: Path | None) -> Iterator[Cluster]:
    with running("c", accounting=True, kill_wait=5) as found:
        yield found


TABLE = Table()


@pytest.fixture
def table() -> Table:
    return TABLE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TABLE:
        terminalreporter.section("chaos")
        for line in TABLE.lines():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def undisturbed(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Return the same fold, trained on two ranks of this machine without a Slurm."""
    trial = Trial(tiny_shards, tmp_path_factory.mktemp("undisturbed"), settings=PATIENT)
    trial.finish(trial.start(), again=0)
    return trial


def submitted(cluster: Cluster, shards: Index, root: Path) -> Iterator[Submitted]:
    trial = Submitted(shards, root, cluster=cluster)
    yield trial
    trial.ask("scancel", "--me")
    trial.wait(lambda: not trial.ask("squeue", "--noheader"), 60)


@pytest.fixture
def trial(cluster: Cluster, tiny_shards: Index, tmp_path: Path) -> Iterator[Submitted]:
    yield from submitted(cluster, tiny_shards, tmp_path)


@pytest.fixture
def bare(bare_cluster: Cluster, tiny_shards: Index, tmp_path: Path) -> Iterator[Submitted]:
    yield from submitted(bare_cluster, tiny_shards, tmp_path)
