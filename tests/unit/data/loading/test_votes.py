"""Votes of training clips: what is read, and the targets of a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dfer_dist.config.load import load_config
from dfer_dist.config.schema import Config, ExtraClasses, TargetKind
from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.loading.sampler import train_val_split
from dfer_dist.data.loading.votes import check_votes, read_votes, training_votes
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.joint import join
from dfer_dist.distributed.process_group import Ranks
from dfer_dist.training.data import build_data
from dfer_dist.utils.errors import UserError
from tests.helpers.data.votes import pack_with_votes, votes_of

RANKS = Ranks(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def voted(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return pack_with_votes(tiny_source, tmp_path_factory.mktemp("voted") / "shards")


def config_of(index: Index, *overrides: str) -> Config:
    return load_config("demo", [f"data.shards={index.root}", "train.global_batch=8", *overrides])


def test_votes_of_the_clips_of_a_fold_are_those_that_were_packed(voted: Index) -> None:
    clips = fold_clips(voted, 2, ambiguous=True).train
    train, _ = train_val_split(voted, clips, 0.2, seed=0)
    for chosen, count in ((clips, 48), (train, len(train))):
        votes = read_votes(voted, chosen)
        assert votes is not None and len(votes.keys) == count == len(chosen)
        for key, label, counts in zip(votes.keys, votes.labels, votes.counts, strict=True):
            own = int(key) // 5 % 7
            expected = votes_of(int(key), own)
            assert counts.tolist() == list(expected or [0] * 7)
            assert label == (int(np.argmax(expected)) if expected else own)
    assert len(train) < 48


def test_clips_without_votes_have_their_label(voted: Index) -> None:
    votes = training_votes(voted, fold_clips(voted, 1).train, TargetKind.votes)
    assert votes is not None
    assert votes.of(["00001", "00013"]).tolist() == [
        pytest.approx([0.6, 0.3, 0.1, 0, 0, 0, 0]),
        np.eye(7)[2].tolist(),
    ]
    known = len(votes.keys) - sum(int(key) % 13 == 0 for key in votes.keys)
    least = -sum(p * np.log(p) for p in (0.6, 0.3, 0.1)) * known / len(votes.keys)
    assert f"of {known} of {len(votes.keys)} clips, mean entropy {least:.4f} nats" in str(votes)


def test_sets_that_are_trained_together_may_have_votes_or_none(
    tiny_shards: Index, voted: Index
) -> None:
    index = join([replace(tiny_shards, name="other"), voted], ExtraClasses.leave_out)
    clips = fold_clips(index, 2, ambiguous=True).train
    votes = training_votes(index, clips, TargetKind.votes)
    assert votes is not None and len(set(votes.keys)) == 96 == len(votes.keys)
    of_label, of_votes = votes.of(["other/00002", "dfew/00002"]).tolist()
    assert of_label == [1, 0, 0, 0, 0, 0, 0]
    assert of_votes == pytest.approx([0.6, 0.3, 0.1, 0, 0, 0, 0])


def test_validation_has_no_ambiguous_clip(voted: Index) -> None:
    train, val = train_val_split(voted, fold_clips(voted, 1, ambiguous=True).train, 0.5, seed=0)
    assert train.count_in(voted.ambiguous_shards) == 5
    assert val.count_in(voted.ambiguous_shards) == 0 < len(val)


def test_data_of_a_fold_has_what_the_settings_ask_for(voted: Index) -> None:
    plain = build_data(config=config_of(voted), fold=2, ranks=RANKS)
    assert plain.votes is None and plain.ambiguous_clips == 0
    batch: Any = SimpleNamespace(keys=["00002", "00009"], labels=torch.tensor([0, 1]))
    assert plain.targets(batch) is batch.labels
    more = ["train.target=votes", "data.ambiguous=train", "train.class_balance=0.99"]
    data = build_data(config=config_of(voted, *more), fold=2, ranks=RANKS)
    assert data.ambiguous_clips == 5 == len(data.plan.clips) - len(plain.plan.clips)
    assert not set(data.test.shards) & set(voted.ambiguous_shards)
    assert data.targets(batch).tolist() == [
        pytest.approx([0.6, 0.3, 0.1, 0, 0, 0, 0]),
        [0, 0.5, 0, 0.5, 0, 0, 0],
    ]
    assert data.targets(batch).dtype == torch.float32
    assert data.votes is not None and sum(data.class_sizes) == pytest.approx(48)
    assert data.class_sizes == pytest.approx(data.votes.distributions.sum(0).tolist())


def test_sets_without_votes_or_ambiguous_clips_are_refused(
    tiny_shards: Index, voted: Index
) -> None:
    of_votes = config_of(tiny_shards, "train.target=votes")
    message = "dfew was packed without votes: .*or set train.target=majority"
    with pytest.raises(UserError, match=message) as error:
        check_votes(tiny_shards, of_votes)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):
        build_data(config=of_votes, fold=2, ranks=RANKS)
    assert read_votes(tiny_shards, fold_clips(tiny_shards, 1).train) is None
    check_votes(tiny_shards, config_of(tiny_shards))
    both = config_of(voted, "train.target=votes", "data.ambiguous=train")
    check_votes(voted, both)
    sure = replace(voted, shards=tuple(s for s in voted.shards if s.split != "ambiguous"))
    with pytest.raises(UserError, match="has no clip without a majority: set "):
        check_votes(sure, both)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (-1.0, "votes that are negative or no numbers: pack it again"),
        (float("nan"), "votes that are negative or no numbers"),
        (None, "votes that are negative or no numbers"),
        ((), "no training clip of dfew has votes: pack the set with its votes"),
    ],
)
def test_votes_that_no_packer_writes_are_refused(
    voted: Index, first: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes = () if first == () else (first, *[0.0] * 6)
    sidecar = Index.sidecar

    def forged(self: Index, shard: int) -> pa.Table:
        table = sidecar(self, shard)
        column = pa.array([votes] * table.num_rows, pa.list_(pa.float32()))
        return table.set_column(table.column_names.index("votes"), "votes", column)

    monkeypatch.setattr(Index, "sidecar", forged)
    with pytest.raises(UserError, match=message):
        training_votes(voted, fold_clips(voted, 1).train, TargetKind.votes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("data.ambiguous=train", "data.ambiguous=train: .*no label: set train.target=votes"),
        (
            "train.target=votes train.objective=descriptions model.context_tokens=0",
            "uses no label, and train.target needs them: set train.target=majority",
        ),
        ("train.target=votes model.output=sigmoid", "set model.output=softmax"),
        ("train.target=vote", "train.target"),
        ("data.ambiguous=yes", "data.ambiguous"),
    ],
)
def test_settings_of_votes_that_cannot_work_are_refused(arguments: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_config("demo", arguments.split())
    assert "\n" not in str(error.value)
