"""The data of a fold of several sets: what is validated, how classes count, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config
from dfer_dist.data.captions.store import clip_keys
from dfer_dist.data.folds.clips import clips_of_set
from dfer_dist.data.loading.sampler import QuotaPlan
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.joint import JointIndex, join
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.training import data as module
from dfer_dist.training.data import FoldData, build_data
from dfer_dist.utils.errors import UserError
from tests.helpers.data.sets import pack_other
from tests.helpers.training.commands import SMALL


@pytest.fixture(scope="module")
def other(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return pack_other(tiny_source, tmp_path_factory.mktemp("other") / "shards")


def build(*sets: Index, more: tuple[str, ...] = (), fold: int = 2) -> tuple[Config, FoldData]:
    shards = f"data.shards=[{','.join(str(own.root) for own in sets)}]"
    config = load_config("demo", [*SMALL, shards, *more])
    ranks = Ranks(0, 1, 0, torch.device("cpu"))
    return config, build_data(config=config, fold=fold, ranks=ranks)


def test_validation_clips_are_those_of_the_first_set_alone(
    tiny_shards: Index, other: Index
) -> None:
    selection = ("train.selection=best_val", "data.extra_classes=keep")
    _, alone = build(tiny_shards, more=selection[:1])
    _, both = build(tiny_shards, other, more=selection)
    assert both.val and alone.val
    assert clip_keys(both.tested[0].index, both.val) == clip_keys(tiny_shards, alone.val)
    assert isinstance(both.index, JointIndex)
    own = clips_of_set(both.index, both.plan.clips, 0)
    assert clip_keys(tiny_shards, own) == clip_keys(tiny_shards, alone.plan.clips)
    assert len(both.plan.clips) - len(own) == 40
    assert alone.sets == ()


def test_class_sizes_are_those_of_an_epoch(tiny_shards: Index, other: Index) -> None:
    balance = ("train.class_balance=0.9", "data.mixture={other: 0.25}")
    _, both = build(tiny_shards, other, more=balance)
    _, alone = build(tiny_shards, more=balance[:1])
    # eight training clips of each of fear, anger, happiness and sadness
    expected = np.array(alone.class_sizes) + 0.25 * np.array([8, 8, 0, 8, 0, 0, 8])
    assert both.class_sizes == pytest.approx(expected.tolist())
    assert sum(both.class_sizes) == both.plan.num_clips == 48 + 8


def test_classes_of_all_sets_are_balanced_together(tiny_shards: Index, other: Index) -> None:
    _, both = build(tiny_shards, other, more=("data.balanced=true", "data.extra_classes=keep"))
    assert isinstance(both.plan, QuotaPlan)
    assert len(both.plan.groups) == 8
    assert both.plan.num_clips == 48 + 40


def test_set_without_training_clips_is_refused(
    tiny_shards: Index, other: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = tuple(replace(shard, split="test") for shard in other.shards)
    joint = join(
        [tiny_shards, replace(other, shards=tested)], load_config("demo").data.extra_classes
    )
    monkeypatch.setattr(module, "open_sets", lambda *_: joint)
    with pytest.raises(UserError, match="other has no training clips in this fold: leave it out"):
        build(tiny_shards, other)
