"""Training a fold through the command line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tests.helpers.forked import Forked
from tests.helpers.forked_ranks import SLOW_STEPS
from tests.helpers.paths import DFER

SMALL = [
    "data.num_frames=4",
    "data.image_size=32",
    "data.augment.crop_scale=0.8",
    "train.epochs=2",
    "train.global_batch=8",
    "train.save_epochs=1",
    "eval.batch=5",
    "eval.shuffle_frames=false",
]
ONE_EPOCH = [
    "train.precision=fp32",
    "train.epochs=1",
    "tracking.enabled=false",
    "data.workers=1",
]


def arguments(index, runs: Path, *more: str) -> list[str]:
    """Return options and settings of a small run on ``index``."""
    return ["--runs", str(runs), f"data.shards={index.root}", *SMALL, *more]


def one_epoch(index, runs: Path, *more: str) -> list[str]:
    """Return options and settings of an epoch in float32 without tracking."""
    return arguments(index, runs, *ONE_EPOCH, *more)


def dfer(*args: str, status: int = 0, forks_ranks: bool = True) -> str:
    """Run ``dfer``, check its exit status and return its output."""
    done = Forked([DFER, *args], os.environ, forks_ranks=forks_ranks).wait(timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def start_slow(*args: str) -> Forked:
    """Start ``dfer``, whose steps take long enough to be interrupted between two of them."""
    return Forked([DFER, *args], os.environ | {SLOW_STEPS: "0.3"}, forks_ranks=True)


def predictions(path: Path) -> tuple[list[str], np.ndarray]:
    """Return keys and logits, float32 [N, C], of a file of predictions."""
    table = pq.read_table(path)
    return table["key"].to_pylist(), np.array(table["logits"].to_pylist(), dtype=np.float32)


def wait_for(path: Path, text: str = "", seconds: float = 120) -> None:
    """Wait until a file exists and holds ``text``."""
    deadline = time.monotonic() + seconds
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.05)


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Return whether the largest difference is at most ``tolerance`` times the largest value."""
    return float(np.abs(a - b).max()) <= tolerance * float(np.abs(b).max())
