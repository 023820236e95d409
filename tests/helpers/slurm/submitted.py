"""A run that is submitted to the cluster of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from cluster import Cluster

from dfer_dist.runs.layout import RunDir
from launch.slurm.jobs import newest_jobs
from tests.helpers.forked import Done, Forked
from tests.helpers.paths import ROOT
from tests.helpers.training.trials import DFER, FOLD, SETTINGS, Trial

ENVIRONMENT = {
    "DFER_PYTHON": sys.executable,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}
EPOCH = [
    "data.num_frames=4",
    "data.image_size=32",
    "train.epochs=1",
    "train.global_batch=8",
    "eval.batch=5",
]  # for many folds


# a busy machine is no fault
PATIENT = ["train.hang_minutes=5"]


@dataclass
class Submitted(Trial):
    """A run that ``dfer crossval --cluster testbed`` submits: by default two nodes, two ranks."""

    settings: list[str] = field(default_factory=PATIENT.copy)
    cluster: Cluster | None = None
    here: Path = ROOT  # the checkout that the command is given in
    variables: dict[str, str] = field(default_factory=dict)  # of the shell that submits

    def ask(self, *arguments: str) -> str:
        assert self.cluster
        return self.cluster.ask(*arguments)

    def dfer(self, *arguments: str) -> Done:
        """Run a command on the cluster."""
        assert self.cluster
        env = self.cluster.environment | {"PYTHONPATH": str(self.here), "COLUMNS": "160"}
        return Forked([DFER, *arguments], env | self.variables, self.here).wait(timeout=600)

    def try_to_submit(
        self, *flags: str, settings: list[str] = SETTINGS, folds: str = str(FOLD)
    ) -> Done:
        arguments = [
            "crossval",
            "demo",
            "--cluster",
            "testbed",
            "--folds",
            folds,
            "--runs",
            str(self.root),
            *flags,
        ]
        return self.dfer(*arguments, f"data.shards={self.shards.root}", *settings, *self.settings)

    def submit(self, *flags: str, settings: list[str] = SETTINGS, folds: str = str(FOLD)) -> str:
        """Submit folds and return what was printed."""
        done = self.try_to_submit(*flags, settings=settings, folds=folds)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def slow(self, seconds: float) -> None:
        """Create the run's folder with code that takes ``seconds`` longer for a step."""
        self.prepare()
        self.hook("dfer_dist.training.meters", f"hooks.slow(me, {seconds})")

    def job(self, fold: int = FOLD, run: RunDir | None = None) -> str:
        return newest_jobs(run or self.run)[fold]

    def ranks(self) -> list[int]:
        """Return the process ids of the ranks that run now, in rank order."""
        wanted = {"dfer_dist.train", str(self.run.root)}
        found = {
            process.pid: process.info
            for process in psutil.process_iter(["ppid", "cmdline", "environ"])
            if wanted <= set(process.info["cmdline"] or ())
        }
        # The children of ranks are their loader workers.
        ranks = [pid for pid in found if found[pid]["ppid"] not in found]
        return sorted(ranks, key=lambda pid: int(found[pid]["environ"]["SLURM_PROCID"]))

    def state(self, job: str = "") -> dict[str, str]:
        """Return what ``scontrol`` says of a job, by default the fold's."""
        fields = self.ask("scontrol", "--oneliner", "show", "job", job or self.job()).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def done(self, job: str = "", seconds: float = 300) -> dict[str, str]:
        """Wait for a job to end for good: while it is requeued it may look ended for a moment."""
        going = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")

        def over() -> bool:
            return self.state(job)["JobState"] not in going

        self.wait(lambda: over() and not time.sleep(1.5) and over(), seconds)
        return self.state(job)

    def all_done(self, seconds: float = 600) -> None:
        """Wait until no job is left, summaries included."""
        self.wait(lambda: not self.ask("squeue", "--noheader"), seconds)

    def wait(self, seen: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not seen():
            assert time.monotonic() < deadline, "timed out: " + self.log()
            time.sleep(0.1)

    def said(self, fold: int = FOLD) -> str:
        """Return what Slurm, the batch script and the start of rank 0 print for a fold."""
        return "".join(
            f.read_text() for f in sorted(self.run.root.glob(f"slurm/*/{self.job(fold)}_0_log.out"))
        )

    def log(self) -> str:
        outputs = sorted([*self.root.glob("job-*.txt"), *self.run.root.glob("slurm/*/*_0_log.out")])
        return "".join(f.read_text()[-3000:] for f in outputs) + super().log()


def local(trial: Trial, settings: list[str]) -> RunDir:
    """Train the same folds on two ranks of this machine, one after the other."""
    arguments = [
        "crossval",
        "demo",
        "--nproc",
        "2",
        "--name",
        "local",
        "--runs",
        str(trial.root),
        f"data.shards={trial.shards.root}",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [DFER, *arguments, *settings],
        cwd=ROOT,
        env=env,
        check=True,
        capture_output=True,
        timeout=600,
    )
    return RunDir(trial.root / "local")
