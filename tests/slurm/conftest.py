"""A Slurm of four nodes for the tests, and runs that are submitted to it."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster, TestbedError
from harness import SETTINGS, Trial

from dfer_dist.data.shards import Index

ROOT = Path(__file__).resolve().parents[2]
PREFIX = f"/tmp/dfer-slurm-test-{os.geteuid()}-"
ENVIRONMENT = {"DFER_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def free_ports() -> int:
    """The first of 500 ports that are below those which ranks choose, and of which none of the daemons' is taken."""
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
    """A handle that holds ``folder`` until this process ends in whatever way; None if another test run does."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    for left in Path("/tmp").glob(Path(PREFIX).name + "*"):  # of test runs that were killed
        if claim(left) is not None:
            Cluster(left).down(purge=True)
    root = Path(f"{PREFIX}{os.getpid()}")
    root.mkdir()
    assert claim(root)
    cluster = Cluster(root, free_ports())
    try:
        cluster.up()
    except TestbedError as e:
        cluster.down(purge=True)
        pytest.skip(str(e))
    yield cluster
    cluster.down(purge=True)


@dataclass
class Submitted(Trial):
    """A run that ``slurm/crossval.sbatch`` does: on two nodes, a rank on each, unless told otherwise."""

    cluster: Cluster | None = None
    job: str = ""  # of the whole array

    def ask(self, *words: str) -> str:
        assert self.cluster
        return self.cluster.ask(*words)

    def submit(self, *options: str, settings: list[str] = SETTINGS, array: str = "1") -> None:
        words = ["sbatch", "--parsable", f"--chdir={ROOT}", f"--output={self.root}/job-%a.txt", f"--array={array}", "--nodes=2"]
        words += [f"--export=ALL,{','.join(f'{k}={v}' for k, v in ENVIRONMENT.items())}", "--cpus-per-task=1", *options]
        words += [str(ROOT / "slurm" / "crossval.sbatch"), "demo", "--runs", str(self.root), f"data.shards={self.shards.root}"]
        self.job = self.ask(*words, *settings, *self.settings).strip()

    def slow(self, seconds: float) -> None:
        """Make the run's folder, with a code that takes so much longer for a step."""
        self.prepare()
        self.hook("dfer_dist.meter", f"hooks.slow(me, {seconds})")

    def state(self, fold: int = 1) -> dict[str, str]:
        """What ``scontrol`` says of the job of a fold."""
        words = self.ask("scontrol", "--oneliner", "show", "job", f"{self.job}_{fold}").split()
        return dict(w.split("=", 1) for w in words if "=" in w)

    def done(self, fold: int = 1, seconds: float = 300) -> dict[str, str]:
        """Wait for the job of a fold to end for good."""
        self.wait(lambda: self.state(fold)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"), seconds)
        return self.state(fold)

    def wait(self, seen: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not seen():
            assert time.monotonic() < deadline, "it did not come: " + self.log()
            time.sleep(0.1)

    def log(self) -> str:
        return "".join(f.read_text()[-3000:] for f in sorted(self.root.glob("job-*.txt"))) + super().log()


@pytest.fixture(scope="session")
def undisturbed(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """The same fold on two ranks of this machine, without a Slurm."""
    trial = Trial(tiny_shards, tmp_path_factory.mktemp("undisturbed"))
    trial.finish(trial.start(), again=0)
    return trial


@pytest.fixture
def trial(cluster: Cluster, tiny_shards: Index, tmp_path: Path) -> Iterator[Submitted]:
    trial = Submitted(tiny_shards, tmp_path, cluster=cluster)
    yield trial
    if trial.job:
        trial.ask("scancel", trial.job)
        trial.wait(lambda: not trial.ask("squeue", "--noheader"), 60)
