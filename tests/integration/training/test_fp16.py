"""A fold in float16, on a processor that would refuse it."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from dfer_dist.checkpoints import portable
from dfer_dist.data.shards.index import Index
from dfer_dist.inference.exported import load
from dfer_dist.utils.files import read_json
from tests.helpers.training.commands import SMALL, close, dfer, predictions
from tests.helpers.training.trials import Trial, same

FP16 = [*SMALL, "train.precision=fp16", "tracking.enabled=false", "train.max_bad_steps=1"]
FIRST_SCALE = 2.0**18


def start_fold(shards: Index, root: Path) -> Trial:
    """Prepare a fold whose first steps overflow."""
    trial = Trial(shards, root, nproc=1)
    trial.prepare(settings=FP16)
    trial.hook("dfer_dist.distributed.process_group", "hooks.allow_fp16_on_cpu()")
    trial.hook("dfer_dist.training.loss_scale", f"hooks.begin_with_loss_scale(me, {FIRST_SCALE})")
    return trial


@pytest.fixture(scope="module")
def whole(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    trial = start_fold(tiny_shards, tmp_path_factory.mktemp("whole"))
    trial.finish(trial.start(settings=FP16), again=0)
    return trial


def latest(trial: Trial) -> Path:
    path = portable.read_pointer(trial.fold.checkpoints, "LATEST")
    assert path
    return path


def test_overflows_lower_the_scale_and_are_no_bad_steps(whole: Trial) -> None:
    """One bad step would end the run."""
    scales = [line["loss_scale"] for line in whole.lines() if "loss_scale" in line]
    state = read_json(latest(whole) / "state.json")
    # The second overflow is the first that halves the scale.
    overflows = 1 + round(np.log2(FIRST_SCALE / scales[-1]))
    assert scales[:3] == [FIRST_SCALE, FIRST_SCALE, FIRST_SCALE / 2]
    assert 2 < state["overflow_steps"] == overflows < len(scales) - 2
    assert state["skipped_steps"] == overflows
    assert state["loss_scale"]["scale"] == scales[-1]
    assert not whole.fold.bad_steps.exists()
    assert read_json(whole.fold.result)["skipped_steps"] == 0


@pytest.mark.engine_full
def test_preempted_fold_resumes_to_the_bit(
    whole: Trial, tiny_shards: Index, tmp_path: Path
) -> None:
    """It is interrupted while the scale still falls."""
    trial = start_fold(tiny_shards, tmp_path)
    trial.hook("dfer_dist.training.meters", "hooks.slow(me, 0.3)")
    command = trial.start(settings=FP16)
    trial.training(2)
    command.send_signal(signal.SIGTERM)
    trial.finish(command, status=75, again=0)
    assert 0 < len(trial.lines()) < len(whole.lines())
    trial.finish(trial.start(settings=FP16), again=0)
    same(trial, whole)


def test_checkpoint_is_evaluated_and_exported(whole: Trial, tmp_path: Path) -> None:
    """In float16 to the bit; on a processor without float16 units in float32, about equal."""
    has_fp16 = torch.ops.mkldnn._is_mkldnn_fp16_supported()
    again = tmp_path / "again.parquet"
    dfer("eval", str(latest(whole)), "--out", str(again))
    keys, logits = predictions(again)
    expected_keys, expected = predictions(whole.fold.predictions)
    assert keys == expected_keys and close(logits, expected, 1e-2)
    assert np.array_equal(logits, expected) == has_fp16
    dfer("export", str(latest(whole)), str(tmp_path / "model"))
    model = load(tmp_path / "model", device="cpu").model
    assert next(model.parameters()).dtype == (torch.float16 if has_fp16 else torch.float32)
