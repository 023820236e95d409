"""Real two-rank training of one fold with faults, compared with an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.utils.files import read_json
from tests.helpers.forked import Forked
from tests.helpers.paths import DFER, HELPERS

FOLD = 1
SETTINGS = [
    "data.num_frames=4",
    "data.image_size=32",
    "train.epochs=6",
    "train.global_batch=8",
    "train.save_steps=5",
    "eval.batch=5",
]
SETTINGS += [
    "eval.shuffle_frames=false",
    "train.selection=best_test",
    "data.workers=1",
    "train.hang_minutes=0.5",
]


class Logging(NamedTuple):
    """A process that writes to a rank's log."""

    pid: int
    rank: int


@dataclass
class Trial:
    """One run: its command, its files and its processes."""

    shards: Index
    root: Path
    nproc: int = 2
    settings: list[str] = field(default_factory=list)
    begun: float = 0.0
    seconds: float = 0.0  # from the start of the first command to the end of the last
    fault: str = ""  # for the table

    @property
    def run(self) -> RunDir:
        return RunDir(self.root / "demo")

    @property
    def fold(self) -> FoldDir:
        return self.run.fold(FOLD)

    def start(self, *more: str, settings: list[str] = SETTINGS) -> Forked:
        """Start the command."""
        self.begun = self.begun or time.monotonic()
        arguments = [
            "train",
            "demo",
            "--fold",
            str(FOLD),
            "--nproc",
            str(self.nproc),
            "--runs",
            str(self.root),
            *more,
        ]
        arguments += [f"data.shards={self.shards.root}", *settings, *self.settings]
        return Forked([DFER, *arguments], os.environ, forks_ranks=True)

    def prepare(self, settings: list[str] = SETTINGS) -> None:
        """Create the run's folder and nothing else: time is up before the fold starts."""
        assert self.start("--max-minutes", "0.01", settings=settings).wait(60).returncode == 75
        self.begun = 0.0

    def hook(self, module: str, call: str) -> None:
        """Append a call of :mod:`hooks` to a module, ``me``, of the run's own code."""
        lines = [
            "",
            "import sys as _sys",
            f"_sys.path.append({str(HELPERS / 'training')!r})",
            "import hooks",
        ]
        lines += ["me = _sys.modules[__name__]", call, ""]
        with (self.run.code / f"{module.replace('.', '/')}.py").open("a") as f:
            f.write("\n".join(lines))

    def finish(self, process: Forked | None = None, status: int = 0, again: int = 2) -> str:
        """Wait for the command, repeat it until it ends with ``status``, and return its output."""
        said = ""
        for _ in range(again + 1):
            done = (process or self.start()).wait(timeout=300)
            said += done.stdout + done.stderr
            if done.returncode == status:
                break
            process = None
        assert done.returncode == status, said + self.log()
        self.seconds = time.monotonic() - self.begun
        return said

    def log(self) -> str:
        return "".join(f.read_text()[-3000:] for f in sorted(self.fold.root.glob("log*.txt")))

    def lines(self, fold: int = FOLD) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.run.fold(fold).metrics.read_text().splitlines()]

    def weights(self) -> dict[str, np.ndarray]:
        return load_file(
            self.fold.checkpoints
            / (self.fold.checkpoints / "LATEST").read_text().strip()
            / "model.safetensors"
        )

    def predictions(self) -> tuple[list[str], np.ndarray]:
        table = pq.read_table(self.fold.predictions)
        return table["key"].to_pylist(), np.array(table["logits"].to_pylist(), dtype=np.float32)

    def attempts(self) -> list[dict[str, Any]]:
        return read_json(self.fold.status)["attempts"]

    @property
    def num_rolled_back(self) -> int:
        return sum(attempt["undone_steps"] or 0 for attempt in self.attempts())

    def wait(self, seen: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not seen():
            assert time.monotonic() < deadline, "it did not come: " + self.log()
            time.sleep(0.02)

    def training(self, step: int = 1) -> None:
        """Wait for the metrics line of ``step``."""
        self.wait(
            lambda: (
                self.fold.metrics.exists() and f'"step": {step},' in self.fold.metrics.read_text()
            )
        )

    def ranks(self) -> list[int]:
        """Return the process ids of the ranks that run now, in rank order."""
        return [pid for pid, _ in self._processes()[0]]

    def workers(self) -> list[int]:
        """Return the process ids of their loader workers."""
        return [pid for pid, _ in self._processes()[1]]

    def _processes(self) -> tuple[list[Logging], list[Logging]]:
        """Return the ranks and their loader workers: what writes to a rank's log."""
        logs = {str(self.fold.log_of(rank)): rank for rank in range(self.nproc)}
        found, parents = [], {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                rank = logs.get(os.readlink(folder / "fd" / "1"))
                status = (folder / "stat").read_text().rpartition(")")[2].split()
                if rank is not None:
                    found.append(Logging(int(folder.name), rank))
                    parents[int(folder.name)] = int(status[1])
        found.sort(key=lambda process: process.rank)
        ranks = [process for process in found if parents[process.pid] not in parents]
        return ranks, [process for process in found if process not in ranks]


def same(trial: Trial, reference: Trial) -> None:
    """Assert that a disturbed run ended as the undisturbed one.

    Metrics, predictions and weights are equal to the bit, and each step was logged once.
    """
    ours, theirs = read_json(trial.fold.result), read_json(reference.fold.result)
    assert ours == theirs
    keys, logits = trial.predictions()
    assert keys == reference.predictions()[0] and np.array_equal(logits, reference.predictions()[1])
    weights, wanted = trial.weights(), reference.weights()
    assert weights.keys() == wanted.keys() and all(
        np.array_equal(weights[n], wanted[n]) for n in wanted
    )
    steps = [(x["step"], x["loss"]) for x in trial.lines() if "loss" in x]
    assert steps == [(x["step"], x["loss"]) for x in reference.lines() if "loss" in x]
    assert [s for s, _ in steps] == list(range(1, len(steps) + 1))
    tests = [(x["step"], x["test_war"]) for x in trial.lines() if "test_war" in x]
    assert tests == [(x["step"], x["test_war"]) for x in reference.lines() if "test_war" in x]
    assert read_json(trial.fold.status)["state"] == "DONE"
    assert not list(trial.fold.checkpoints.glob(".*"))


def same_in_mlflow(trial: Trial) -> None:
    """Assert that the tracking server has each metric of the file once, and nothing else."""
    from dfer_dist.tracking.metric_names import CURRENT
    from dfer_dist.tracking.mlflow_runs import tracking_of
    from dfer_dist.tracking.server import client

    tracking = tracking_of(trial.run)
    api = client(tracking.uri)
    child = tracking.folds[str(FOLD)]
    for name in ("loss", "test_war", "skipped_steps", "lost_clips"):
        sent = api.get_metric_history(child, CURRENT.of(name))
        history = sorted((m.step, m.value) for m in sent)
        wanted = sorted((x["step"], x[name]) for x in trial.lines() if name in x)
        # Steps are rarely skipped, and clips rarely lost: constant zeros are not sent.
        if name in ("skipped_steps", "lost_clips") and not any(value for _, value in wanted):
            wanted = []
        assert history == wanted, f"{name} at MLflow {history}, in the file {wanted}"
    assert api.get_run(child).info.status == "FINISHED"


def signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)
