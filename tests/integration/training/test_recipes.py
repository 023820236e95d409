"""All parts of the recipes together on real ranks: equal losses on any number of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from dfer_dist.data.shards.index import Index
from dfer_dist.runs.layout import RunDir
from dfer_dist.utils.files import read_json
from tests.helpers.training.commands import (
    close,
    dfer,
    one_epoch,
    predictions,
    start_slow,
    wait_for,
)

RECIPE = [
    "train.epochs=2",
    "data.augment.rand_augment=2",
    "data.augment.erasing=0.5",
    "data.augment.mixup=0.8",
    "data.augment.cutmix=1",
    "train.label_smoothing=0.1",
    "train.class_balance=0.9",
    "train.ema=0.9",
    "model.drop_path=0.3",
    "model.temporal_pool=mean",
    "optim.layer_decay=0.75",
    "optim.decay_all=false",
    "optim.betas=[0.9,0.95]",
    "optim.min_lr=1e-5",
    "eval.views=2",
    "eval.crops=2",
    "eval.mirror=true",
]


def command(index: Index, runs: Path, name: str, ranks: int, *more: str) -> list[str]:
    arguments = one_epoch(index, runs, *RECIPE, *more)
    return ["train", "demo", "--fold", "2", "--nproc", str(ranks), "--name", name, *arguments]


def losses(run: RunDir) -> list[float]:
    lines = map(json.loads, run.fold(2).metrics.read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def check_equal(run: RunDir, expected: RunDir) -> None:
    assert len(losses(expected)) == 12
    assert losses(run) == pytest.approx(losses(expected), rel=1e-5)
    keys, logits = predictions(run.fold(2).predictions)
    want_keys, want = predictions(expected.fold(2).predictions)
    assert keys == want_keys and close(logits, want, 1e-3)


@pytest.fixture(scope="module")
def one_rank(tiny_shards: Index, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    runs = tmp_path_factory.mktemp("recipes")
    dfer(*command(tiny_shards, runs, "one", 1))
    return RunDir(runs / "one")


def test_two_ranks_resume_what_one_began(one_rank: RunDir, tiny_shards: Index) -> None:
    runs = one_rank.root.parent
    run = RunDir(runs / "two")
    first = start_slow(*command(tiny_shards, runs, "two", 1))
    wait_for(run.fold(2).metrics, '"step": 3,')
    first.send_signal(signal.SIGTERM)
    assert first.wait(120).returncode == 75
    begun = len(losses(run))
    dfer(*command(tiny_shards, runs, "two", 2, "train.micro_batch=2"))
    assert read_json(run.fold(2).status)["attempts"][-1]["world_size"] == 2
    assert losses(run)[:begun] == losses(one_rank)[:begun] and 3 <= begun < 12
    check_equal(run, one_rank)


@pytest.mark.engine_full
def test_four_ranks_give_equal_losses(one_rank: RunDir, tiny_shards: Index) -> None:
    runs = one_rank.root.parent
    dfer(*command(tiny_shards, runs, "four", 4))
    check_equal(RunDir(runs / "four"), one_rank)


def test_result_says_how_the_clips_were_seen(one_rank: RunDir) -> None:
    result = read_json(one_rank.fold(2).result)
    assert [result[name] for name in ("views", "crops", "mirror")] == [2, 2, True]


def test_uneven_share_of_a_rank_is_refused_in_one_line(tiny_shards: Index, tmp_path: Path) -> None:
    text = dfer(*command(tiny_shards, tmp_path, "uneven", 2, "train.global_batch=6"), status=2)
    assert "on 2 ranks gives micro batches of 3 clips" in text
    assert "Traceback" not in text
