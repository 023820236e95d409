"""A fault of each kind at a random moment, on a real Slurm; ``make test-chaos``.

Each round trains a fold on two nodes. It ends with the results of an undisturbed run, or fails for
the true reason and is resumed. All the while ``dfer status`` has to say what is true.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from cluster import Cluster

from dfer_dist.checkpoints import portable
from dfer_dist.data.shards.index import Index
from launch.slurm.jobs import submissions
from launch.slurm.state import CANCELLED, DONE, FAILED, LOST
from tests.helpers.slurm.chaos_table import Table
from tests.helpers.slurm.submitted import PATIENT, Submitted
from tests.helpers.slurm.truth import Watcher
from tests.helpers.training.trials import Trial, same, same_in_mlflow, signal_all

pytestmark = pytest.mark.chaos
SEED = int(os.environ.get("DFER_CHAOS_SEED", "0"))
SAVE_OFTEN = [*PATIENT, "train.save_minutes=0.01", "train.save_steps=1"]


@dataclass
class Round:
    """A run, the moment and the victim of its fault, and how it should end at first."""

    trial: Submitted
    cluster: Cluster
    rng: np.random.Generator
    disk: Path | None
    watcher: Watcher = field(init=False)
    ends: str = DONE
    reason: str = ""

    def __post_init__(self) -> None:
        self.watcher = Watcher(self.trial)

    @property
    def node(self) -> str:
        """One of the two nodes on which a fold starts."""
        return str(self.rng.choice(["n1", "n2"]))

    def train(self, first: int = 2) -> None:
        """Submit the fold and wait for a moment in a random step from ``first`` on."""
        if not self.trial.run.run.exists():
            self.trial.slow(0.3)
        self.trial.submit()
        self.trial.training(int(self.rng.integers(first, 30)))
        time.sleep(self.rng.uniform(0, 0.5))

    def srun(self) -> psutil.Process:
        """Return the ``srun`` of the ranks."""
        conf = str(self.cluster.root / "slurm.conf")
        for process in psutil.process_iter(["name"]):
            if process.info["name"] != "srun":
                continue
            with suppress(psutil.Error):
                parent = process.parent()
                is_ours = process.environ().get("SLURM_CONF") == conf
                if is_ours and parent and parent.name() != "srun":
                    return process
        raise AssertionError("no srun runs")

    def job(self) -> str:
        return self.trial.job()

    def summary_output(self) -> str:
        """Return what the newest summary job has printed."""
        newest = submissions(self.trial.run)[-1]
        folder = self.trial.run.root / newest.folder
        return (folder / f"{newest.summary}_0_log.out").read_text()


def kill_a_rank(r: Round) -> None:
    r.train()
    os.kill(r.trial.ranks()[r.rng.integers(2)], signal.SIGKILL)


def kill_srun(r: Round) -> None:
    r.train()
    r.srun().kill()


def kill_the_batch_shell(r: Round) -> None:
    """Nothing is left that could requeue the job."""
    r.train()
    r.srun().parent().kill()
    r.ends, r.reason = LOST, "its job ended without a word"


def kill_slurmd(r: Round) -> None:
    r.train()
    r.cluster.kill(f"slurmd-{r.node}")
    time.sleep(r.rng.uniform(2, 30))
    r.cluster.up()


def kill_slurmctld(r: Round) -> None:
    r.train()
    r.cluster.kill("slurmctld")
    time.sleep(r.rng.uniform(2, 15))
    r.cluster.up()


def crash_a_node(r: Round) -> None:
    r.train()
    r.cluster.crash(r.node)


def requeue(r: Round) -> None:
    r.train()
    r.trial.ask("scontrol", "requeue", r.job())


def preempt(r: Round) -> None:
    r.train()
    job = ["--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null"]
    r.trial.ask("sbatch", *job, "--wrap", "sleep 3")


def hold(r: Round) -> None:
    r.train()
    r.trial.ask("scontrol", "requeuehold", r.job())
    r.trial.wait(lambda: "held: scontrol release" in r.watcher.poll().shown.why, 60)
    time.sleep(r.rng.uniform(0, 3))
    r.trial.ask("scontrol", "release", r.job())


def suspend(r: Round) -> None:
    r.train()
    r.trial.ask("scontrol", "suspend", r.job())
    time.sleep(r.rng.uniform(2, 8))
    assert "SUSPENDED" in r.watcher.poll().shown.why
    r.trial.ask("scontrol", "resume", r.job())


def cancel(r: Round) -> None:
    r.train()
    r.trial.ask("scancel", r.job())
    r.ends = CANCELLED


def fill_the_disk_for_a_while(r: Round) -> None:
    filler = fill_the_disk(r)
    time.sleep(r.rng.uniform(2, 4))
    filler.unlink()


def fill_the_disk_for_good(r: Round) -> None:
    filler = fill_the_disk(r)
    r.trial.done()
    r.ends, r.reason = FAILED, "free some space"
    assert r.watcher.poll().shown.state == FAILED
    filler.unlink()


def fill_the_disk(r: Round) -> Path:
    """Fill the disk of a run that saves at each step; return the file to remove."""
    if r.disk is None:
        pytest.skip("mounting a small file system needs root")
    # MLflow keeps files of a store open in this process: each round has a store of its own
    r.trial.root = Path(tempfile.mkdtemp(dir=r.disk))
    r.trial.settings = SAVE_OFTEN
    r.train()
    filler = r.disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


def truncate_the_newest_checkpoint(r: Round) -> None:
    """The ranks die as well; they resume from the checkpoint before."""
    r.train(first=12)
    signal_all(r.trial.ranks(), signal.SIGKILL)
    newest = portable.complete(r.trial.fold.checkpoints)[-1]
    file = newest / str(r.rng.choice(sorted(f.name for f in newest.glob("*.safetensors"))))
    os.truncate(file, int(r.rng.integers(file.stat().st_size)))


def submit_to_a_dead_node(r: Round) -> None:
    r.trial.slow(0.3)
    r.cluster.crash(r.node)
    r.trial.submit()


def fail_to_import_on_a_node(r: Round) -> None:
    r.trial.slow(0.3)
    r.trial.hook("dfer_dist.training.trainer", f"hooks.fail_to_import({r.node!r})")
    r.trial.submit()


KINDS: list[Callable[[Round], None]] = [
    kill_a_rank,
    kill_srun,
    kill_the_batch_shell,
    kill_slurmd,
    kill_slurmctld,
    crash_a_node,
    requeue,
    preempt,
    hold,
    suspend,
    cancel,
    truncate_the_newest_checkpoint,
    submit_to_a_dead_node,
    fail_to_import_on_a_node,
]
# the disk is full for a while in one round and for good in the other
ROUNDS = [*KINDS, *KINDS, fill_the_disk_for_a_while, fill_the_disk_for_good]


def rounds() -> list[object]:
    """Return all rounds in random order."""
    order = np.random.default_rng(SEED).permutation(len(ROUNDS))
    return [pytest.param(ROUNDS[i], i, id=f"{ROUNDS[i].__name__}-{i}") for i in order.tolist()]


@pytest.fixture
def submitted(
    chaos_cluster: Cluster,
    tiny_shards: Index,
    tmp_path: Path,
    small_disk: Path | None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Submitted]:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, chaos_cluster.environment[name])
    trial = Submitted(tiny_shards, tmp_path, cluster=chaos_cluster)
    yield trial
    chaos_cluster.up()
    trial.ask("scancel", "--me")
    trial.wait(lambda: not trial.ask("squeue", "--noheader"), 90)
    if small_disk:
        for entry in small_disk.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


@pytest.mark.parametrize(("fault", "number"), rounds())
def test_round(
    submitted: Submitted,
    undisturbed: Trial,
    chaos_cluster: Cluster,
    small_disk: Path | None,
    table: Table,
    fault: Callable[[Round], None],
    number: int,
) -> None:
    rng = np.random.default_rng([SEED, number])
    r = Round(submitted, chaos_cluster, rng, small_disk)
    begin = time.monotonic()
    with r.watcher.watching():
        fault(r)
        job = submitted.done(seconds=900)
        ended = r.watcher.poll()
        assert ended.shown.state == r.ends, (ended, submitted.log())
        assert r.reason in ended.shown.why + ended.shown.error
        restarts = int(job["Restarts"])
        chaos_cluster.up()
        if r.ends != DONE:
            done = submitted.dfer("resume", str(submitted.run.root))
            assert done.returncode == 0, done.stderr
            submitted.done(seconds=900)
        submitted.all_done()
    if submitted.root.parent == small_disk and "run dfer sync" in r.summary_output():
        # the summary job says that the full disk kept it from MLflow's database
        done = submitted.dfer("sync", str(submitted.run.root))
        assert done.returncode == 0, done.stderr
    same(submitted, undisturbed)
    same_in_mlflow(submitted)
    row = table[fault.__name__.replace("_", " ")]
    row.ended.add(DONE if r.ends == DONE else f"{r.ends}, then resumed: DONE")
    row.restarts.append(restarts)
    row.repeated.append(submitted.num_rolled_back)
    row.seconds.append(time.monotonic() - begin)
    row.polls += len(r.watcher.polls)
