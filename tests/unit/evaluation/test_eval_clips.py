"""Which clips a checkpoint is tested on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfer_dist.checkpoints.portable import Checkpoint
from dfer_dist.config.schema import Config
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.joint import with_classes
from dfer_dist.evaluation.eval_clips import EvalClips, find_eval_clips, unseen_ambiguous_clips
from dfer_dist.utils.errors import UserError


def trained(index: Index, **changes: Any) -> Checkpoint:
    """Return a checkpoint without tensors of a model that was trained for fold 2 of a set."""
    state = {"dataset": index.name, "index_hash": index.hash, "fold": 2, "classes": index.classes}
    return Checkpoint(Path("c"), Config(), {**state, **changes}, {}, {}, {}, {})


def mixture(first: str) -> dict[str, Any]:
    """Return what differs after training on dfew and mafw, packed in another form."""
    names = dict.fromkeys([first, "dfew", "mafw"], "0")
    return {"dataset": "+".join(names), "index_hash": "1", "set_hashes": names}


def clips_of(saved: Checkpoint, index: Index, fold: int | None = None) -> EvalClips:
    return find_eval_clips(saved, Config(), index, fold)


def splits(index: Index, shards: tuple[int, ...]) -> set[str]:
    return {index.shards[i].split for i in shards}


@pytest.mark.parametrize(
    ("state", "fold", "folds"),
    [
        ({}, None, [2]),
        # packed anew, as with other crops, or renamed
        ({"index_hash": "0"}, None, [2]),
        ({"dataset": "elsewhere"}, None, [2]),
        ({"dataset": "elsewhere", "index_hash": "0"}, None, [1, 2, 3, 4, 5]),
        ({"dataset": "elsewhere", "index_hash": "0"}, 3, [3]),
        ({"dataset": None, "index_hash": None, "fold": None}, 1, [1]),
    ],
)
def test_own_set_is_tested_by_its_fold_and_others_in_full(
    tiny_shards: Index, state: dict[str, Any], fold: int | None, folds: list[int]
) -> None:
    chosen = clips_of(trained(tiny_shards, **state), tiny_shards, fold)
    assert chosen.fold == (folds[0] if len(folds) == 1 else None)
    assert splits(tiny_shards, chosen.part.test.shards) == {f"fold{k}" for k in folds}
    assert len(chosen.part.test) == 12 * len(folds)
    assert (chosen.index, chosen.left_out) == (tiny_shards, {})


def test_training_clips_and_unknown_folds_are_refused(tiny_shards: Index) -> None:
    with pytest.raises(UserError, match="fold 1 was among the training clips"):
        clips_of(trained(tiny_shards), tiny_shards, 1)
    with pytest.raises(UserError, match="fold 1 was among the training clips"):
        clips_of(trained(tiny_shards, **mixture("dfew")), tiny_shards, 1)
    with pytest.raises(UserError, match="which fold it was trained for: give --fold"):
        clips_of(trained(tiny_shards, dataset=None, fold=None), tiny_shards)
    with pytest.raises(UserError, match="fold 6 is out of range"):
        clips_of(trained(tiny_shards, dataset="x", index_hash="0"), tiny_shards, 6)


def test_the_only_test_split_is_tested_by_every_fold_of_a_mixture(tiny_shards: Index) -> None:
    split = {"fold1": "test", "fold2": "val"}
    shards = tuple(replace(s, split=split.get(s.split, "train")) for s in tiny_shards.shards)
    one = replace(tiny_shards, shards=shards)
    chosen = clips_of(trained(one, **mixture("mafw"), fold=3), one)
    assert (chosen.fold, len(chosen.part.test)) == (1, 12)
    assert splits(one, chosen.part.test.shards) == {"test"}


def test_clips_of_classes_that_the_model_lacks_are_left_out(tiny_shards: Index) -> None:
    lacks = {"sadness", "fear"}
    classes = ["awe", *(c for c in tiny_shards.classes[::-1] if c not in lacks)]
    chosen = clips_of(trained(tiny_shards, classes=classes), tiny_shards)
    kept = [
        (shard, row)
        for shard in tiny_shards.test_shards(2)
        for row, label in enumerate(tiny_shards.sidecar(shard)["label"].to_pylist())
        if tiny_shards.classes[label] not in lacks
    ]
    refs = [
        chosen.part.test.sample_ref(place, row, 0)[:2]
        for place, count in enumerate(chosen.part.test.counts)
        for row in range(count)
    ]
    assert refs == kept and len(chosen.part.test) == len(kept)
    assert set(chosen.left_out) == lacks
    assert len(kept) + sum(chosen.left_out.values()) == 12
    assert chosen.common == [1, 2, 3, 4, 5]
    assert chosen.index.classes == tuple(classes)


def test_sets_without_common_class_are_refused(tiny_shards: Index) -> None:
    with pytest.raises(UserError, match=r"has no class in common with the model \(awe, joy\)"):
        clips_of(trained(tiny_shards, classes=["awe", "joy"]), tiny_shards)
    # a class without a clip
    shards = tuple(replace(s, histogram=(*s.histogram, 0)) for s in tiny_shards.shards)
    more = replace(tiny_shards, classes=(*tiny_shards.classes, "awe"), shards=shards)
    with pytest.raises(UserError, match="no test clip is of a class that the model has"):
        clips_of(trained(more, classes=["awe", "joy"]), more)


def test_clips_without_a_majority_are_of_classes_that_the_model_has(tiny_shards: Index) -> None:
    """The first shard, without a majority now, has one, two and one clip of classes 2, 3 and 4."""
    first = replace(tiny_shards.shards[0], split="ambiguous")
    index = replace(tiny_shards, shards=(first, *tiny_shards.shards[1:]))
    names = index.classes
    assert len(unseen_ambiguous_clips(Config(), index, [])) == 4
    fewer = with_classes(index, [names[3], names[0], names[4]])
    clips = unseen_ambiguous_clips(Config(), fewer, [])
    labels = fewer.sidecar(0)["label"].to_pylist()
    rows = [clips.sample_ref(0, i, 0).row for i in range(len(clips))]
    assert sorted(labels[row] for row in rows) == [0, 0, 2]
    with pytest.raises(
        UserError, match=r"no clip without a majority is of a class .* \(happiness\)"
    ):
        unseen_ambiguous_clips(Config(), with_classes(index, names[:1]), [])
