"""Training on folds of a file: stopped and resumed on other ranks, tested, kept to."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import FoldResult
from tests.helpers.data.folds import fold_overlay
from tests.helpers.training.commands import dfer, one_epoch, predictions, start_slow, wait_for


@pytest.fixture(scope="module")
def settings(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options and settings of runs of three folds, none of which has full shards."""
    runs = tmp_path_factory.mktemp("overlay")
    fold_overlay(tiny_shards, 3).write(runs / "by.json")
    more = [f"data.folds={runs / 'by.json'}", "train.epochs=2", "data.block=3"]
    return one_epoch(tiny_shards, runs / "runs", *more)


@pytest.fixture(scope="module")
def whole(settings: list[str]) -> RunDir:
    """The run of fold 2 on one rank, without a stop."""
    dfer("train", "demo", "--fold", "2", "--name", "whole", *settings)
    return RunDir(Path(settings[1]) / "whole")


def read_losses(fold: FoldDir) -> list[float]:
    lines = [json.loads(line) for line in fold.metrics.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_losses_are_equal_after_a_stop_and_on_other_ranks(
    whole: RunDir, settings: list[str]
) -> None:
    """Tests after each epoch change no loss either."""
    command = ["train", "demo", "--fold", "2", "--name", "stopped", *settings]
    command.append("eval.each_epoch=true")
    fold = RunDir(whole.root.parent / "stopped").fold(2)
    slow = start_slow(*command, "--nproc", "2")
    wait_for(fold.metrics, '"step": 3,')
    slow.send_signal(signal.SIGTERM)
    slow.wait(120)
    assert 3 <= len(read_losses(fold)) < 10, "not stopped on the way"
    dfer(*command)
    assert read_losses(fold) == pytest.approx(read_losses(whole.fold(2)), rel=1e-5)
    assert len(read_losses(fold)) == 10
    tested = [line for line in fold.metrics.read_text().splitlines() if '"test_uar"' in line]
    assert ['"step": 5,' in tested[0], '"step": 10,' in tested[1], len(tested)] == [True, True, 2]


def test_result_is_of_the_overlay(whole: RunDir, tiny_shards: Index, tmp_path: Path) -> None:
    overlay = fold_overlay(tiny_shards, 3)
    tested = [key for key, fold in overlay.fold_of.items() if fold == 2]
    fold = whole.fold(2)
    result = FoldResult.read(fold.result)
    assert (result.folds_hash, result.n) == (overlay.hash, 20)
    assert predictions(fold.predictions)[0] == tested
    checkpoint = str(fold.checkpoints / "LATEST")
    out = tmp_path / "again.parquet"
    dfer("eval", checkpoint, "--out", str(out))
    assert predictions(out)[0] == tested
    assert (predictions(out)[1] == predictions(fold.predictions)[1]).all()
    own = ["data.folds=null", "data.folds_hash=null"]
    assert "was trained with other folds" in dfer("eval", checkpoint, *own, status=2)
    assert "was among the training clips" in dfer("eval", checkpoint, "--fold", "3", status=2)
    assert "this data set has 1 to 3" in dfer("eval", checkpoint, "--fold", "4", status=2)
