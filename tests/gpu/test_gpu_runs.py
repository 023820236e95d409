"""Training on one GPU with the command line."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dfer_dist.data.packing.packer import pack
from dfer_dist.data.shards.index import Index
from dfer_dist.data.sources.datasets import read_dataset
from dfer_dist.demo.dataset import render_demo
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import read_json
from tests.helpers.paths import HELPERS
from tests.helpers.ranks.spawn import run_ranks
from tests.helpers.training.commands import DFER, arguments, close, dfer, predictions, wait_for

pytestmark = pytest.mark.gpu

SMALL_ENGINE = HELPERS / "ranks" / "small_engine.py"
CHANCE = 100 / 7


def losses(run: RunDir, fold: int) -> list[float]:
    lines = [json.loads(line) for line in run.fold(fold).metrics.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_fold_learns_in_half_precision(device: str, precision: str, tmp_path: Path) -> None:
    """Of 280 clips 56 are tested: chance is 14.3 % with a standard deviation of 4.7."""
    if device == "cpu" and precision == "fp16":
        pytest.skip("a processor without float16 units computes at 1 GFLOP/s")
    source = read_dataset(
        "demo",
        *(render_demo(tmp_path / "source", clips=280) / part for part in ("frames", "lists")),
    )
    index = pack(source.records, source.name, tmp_path / "shards", 64, classes=source.classes)
    given = [
        f"data.shards={index.root}",
        f"train.device={device}",
        f"train.precision={precision}",
        "data.workers=1",
        "eval.shuffle_frames=false",
    ]
    text = dfer(
        "train", "demo", "--fold", "1", "--runs", str(tmp_path), "tracking.enabled=false", *given
    )
    run = RunDir(tmp_path / "demo")
    result, seen = read_json(run.fold(1).result), losses(run, 1)
    assert result["device"] == device and result["skipped_steps"] == 0, text
    assert (
        len(seen) == 42 and all(map(math.isfinite, seen)) and np.mean(seen[-7:]) < np.mean(seen[:7])
    )
    assert result["war"] > 2 * CHANCE
    again = tmp_path / "again.parquet"
    dfer(
        "eval",
        str(run.fold(1).checkpoints / "LATEST"),
        "--out",
        str(again),
        f"train.device={device}",
    )
    assert close(predictions(again)[1], predictions(run.fold(1).predictions)[1], 1e-2)


@pytest.mark.parametrize(
    ("optimizer", "precision"), [("adamw", "bf16"), ("adamw", "fp16"), ("sgd", "fp32")]
)
@pytest.mark.parametrize("offload", [0, 1])
def test_checkpoint_restores_master_weights_and_moments(
    device: str, tmp_path: Path, optimizer: str, precision: str, offload: int
) -> None:
    """A toy model of dense layers: losses equal those of an unbroken run to 1e-6.

    The kernels of dense layers add in a fixed order.
    """
    given = [
        "--device",
        device,
        "--optimizer",
        optimizer,
        "--precision",
        precision,
        "--offload",
        str(offload),
    ]
    half = run_ranks(SMALL_ENGINE, 1, "--folder", str(tmp_path / "half"), "--steps", "4", *given)
    whole = run_ranks(SMALL_ENGINE, 1, "--folder", str(tmp_path / "whole"), "--steps", "8", *given)
    rest = run_ranks(
        SMALL_ENGINE,
        1,
        "--folder",
        str(tmp_path / "rest"),
        "--steps",
        "8",
        *given,
        "--resume",
        half["path"],
    )
    assert half["losses"] + rest["losses"] == pytest.approx(whole["losses"], rel=1e-6)
    assert rest["rates"] == whole["rates"]


def test_preempted_run_resumes_as_if_uninterrupted(
    device: str, tiny_shards: Index, tmp_path: Path
) -> None:
    """In float32, losses are equal to 1e-3 and logits to 1e-2.

    The backward kernel of attention may add in any order.
    """
    given = [
        *arguments(tiny_shards, tmp_path),
        "tracking.enabled=false",
        "train.precision=fp32",
        f"train.device={device}",
        "train.epochs=4",
    ]
    dfer("train", "demo", "--fold", "2", "--name", "whole", *given)
    whole, broken = (RunDir(tmp_path / name) for name in ("whole", "broken"))
    command = ["train", "demo", "--fold", "2", "--name", "broken", *given]
    process = subprocess.Popen(
        [DFER, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(broken.fold(2).metrics)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 75, output
    left = len(losses(broken, 2))
    assert 0 < left < 24, "the signal came too late"
    dfer(*command)
    assert len(read_json(broken.fold(2).status)["attempts"]) == 2
    assert losses(broken, 2) == pytest.approx(losses(whole, 2), rel=1e-3)
    (keys, logits), (others, theirs) = (
        predictions(run.fold(2).predictions) for run in (broken, whole)
    )
    assert keys == others and close(logits, theirs, 1e-2)
