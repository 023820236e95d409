"""A run that is submitted to the cluster of the tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster
from harness import SETTINGS, Trial

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"DFER_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


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
