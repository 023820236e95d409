"""Training on a mixture of two sets: global batches, resuming, and exact tests of each set."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config
from dfer_dist.data.loading.loader import train_loader
from dfer_dist.data.shards.index import Index
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.runs.layout import FoldDir, RunDir
from dfer_dist.runs.records import FoldResult, Provenance
from dfer_dist.training.data import build_data
from tests.helpers.data.sets import pack_other
from tests.helpers.training.commands import (
    ONE_EPOCH,
    SMALL,
    dfer,
    predictions,
    start_slow,
    wait_for,
)


@pytest.fixture(scope="module")
def settings(
    tiny_shards: Index, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Those of a run on all clips of ``tiny_shards`` and half of those of a second set."""
    other = pack_other(tiny_source, tmp_path_factory.mktemp("other") / "shards")
    sets = [f"data.shards=[{tiny_shards.root},{other.root}]", "data.mixture={other: 0.5}"]
    return [*SMALL, *ONE_EPOCH, *sets, "data.workers=0", "train.epochs=2"]


def read_batches(config: Config, world_size: int) -> list[tuple[list[str], np.ndarray, list[int]]]:
    """Return keys, pixels and labels of the global batches that so many ranks read."""
    data = build_data(config=config, fold=2, ranks=Ranks(0, 1, 0, torch.device("cpu")))
    batches = [
        train_loader(
            data.index,
            config.data,
            data.plan,
            epochs=2,
            micro_batch=8 // world_size,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    device = torch.device("cpu")
    return [
        (
            [key for part in parts for key in part.keys],
            np.concatenate([part.pixels(device).numpy() for part in parts]),
            [label for part in parts for label in part.labels.tolist()],
        )
        for parts in zip(*batches, strict=True)
    ]


def test_global_batches_are_equal_on_1_2_and_4_ranks(settings: list[str]) -> None:
    config = load_config("demo", settings)
    one = read_batches(config, 1)
    # 48 clips of dfew and half of the 32 of the classes that dfew has, in each of two epochs
    assert len(one) == 2 * (48 + 16) // 8
    for epoch in (one[:8], one[8:]):
        keys = [key for batch, _, _ in epoch for key in batch]
        assert len(set(keys)) == 64
        assert sum(key.startswith("other/") for key in keys) == 16
    for world_size in (2, 4):
        for (keys, pixels, labels), expected in zip(
            read_batches(config, world_size), one, strict=True
        ):
            assert (keys, labels) == (expected[0], expected[2])
            assert np.array_equal(pixels, expected[1])


@pytest.fixture(scope="module")
def trained_on_both(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run of fold 2 on one rank, without a stop."""
    runs = tmp_path_factory.mktemp("both")
    dfer("train", "demo", "--fold", "2", "--name", "both", "--runs", str(runs), *settings)
    return RunDir(runs / "both")


def read_losses(fold: FoldDir) -> list[float]:
    lines = [json.loads(line) for line in fold.metrics.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_losses_are_equal_after_a_stop_and_on_other_ranks(
    trained_on_both: RunDir, settings: list[str], tmp_path: Path
) -> None:
    command = ["train", "demo", "--fold", "2", "--name", "stopped", "--runs", str(tmp_path)]
    fold = RunDir(tmp_path / "stopped").fold(2)
    slow = start_slow(*command, "--nproc", "2", *settings)
    wait_for(fold.metrics, '"step": 3,')
    slow.send_signal(signal.SIGTERM)
    slow.wait(120)
    assert 3 <= len(read_losses(fold)) < 8, "not stopped in the first epoch"
    dfer(*command, *settings)
    losses = read_losses(fold)
    assert losses == pytest.approx(read_losses(trained_on_both.fold(2)), rel=1e-5)
    assert len(losses) == 16
    changed = [*settings, "data.mixture={other: 0.25}"]
    text = dfer(*command, *changed, status=2)
    assert "data.mixture was {'other': 0.5}, now {'other': 0.25}" in text


def test_each_set_is_tested_on_its_own(trained_on_both: RunDir, tmp_path: Path) -> None:
    fold = trained_on_both.fold(2)
    result = FoldResult.read(fold.result)
    assert (result.dataset, result.n, len(predictions(fold.predictions)[0])) == ("dfew", 12, 12)
    assert [(own.name, own.clips, own.weight) for own in result.sets] == [
        ("dfew", 48, 1.0),
        ("other", 32, 0.5),
    ]
    assert result.sets[1].without_class == {"contempt": 10}
    (other,) = result.others
    assert (other.dataset, other.scores.n) == ("other", 8)
    origins = Provenance.read(trained_on_both.provenance).data
    assert origins is not None and [own.name for own in origins.sets] == ["dfew", "other"]
    out = tmp_path / "other.parquet"
    shards = f"data.shards={origins.sets[1].shards}"
    checkpoint = str(fold.checkpoints / "LATEST")
    text = dfer("eval", checkpoint, "--out", str(out), shards)
    assert "2 clips of classes that the model lacks were left out (contempt 2)" in text
    keys, logits = predictions(out)
    stored_keys, stored = predictions(fold.root / "predictions-other.parquet")
    assert keys == stored_keys and np.array_equal(logits, stored)
    text = dfer("eval", checkpoint, "--fold", "1", shards, status=2)
    assert "fold 1 was among the training clips of this checkpoint" in text
    assert re.search(r"\| other \| 32 \| 0.5 \| 8 \|", trained_on_both.report.read_text())
    last = json.loads(fold.metrics.read_text().splitlines()[-1])
    assert last["test_war/other"] == other.scores.war
