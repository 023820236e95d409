"""Which clips a fold is trained, validated and tested on."""

from __future__ import annotations

from dataclasses import replace

from dfer_dist.data.folds.clips import FoldClips, fold_clips, fold_numbers
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.loading.prefetch import training_requests
from dfer_dist.data.loading.sampler import EpochPlan, SampleRef, all_clips, clip_keys
from dfer_dist.data.shards.index import Index, LeftOut
from tests.helpers.data.folds import fold_overlay


def with_splits(index: Index, *splits: str) -> Index:
    """The first shards of a set, in other splits."""
    shards = zip(index.shards, splits, strict=False)
    return replace(index, shards=tuple(replace(shard, split=s) for shard, s in shards))


def test_own_folds_have_full_shards(tiny_shards: Index) -> None:
    lost = (LeftOut("x", "fold2", "no frames"), LeftOut("y", "fold3", "no frames"))
    index = replace(tiny_shards, left_out=lost)
    assert fold_numbers(index) == [1, 2, 3, 4, 5]
    clips = fold_clips(index, 2)
    assert clips == FoldClips(
        all_clips(index, index.train_shards(2)),
        None,
        all_clips(index, index.test_shards(2)),
        ("x",),
    )
    assert (len(clips.train), len(clips.test)) == (48, 12)


def test_own_validation_clips_are_apart(tiny_shards: Index) -> None:
    clips = fold_clips(with_splits(tiny_shards, "test", "train", "val", "train"), 1)
    assert clips.val and (clips.train.shards, clips.val.shards, clips.test.shards) == (
        (1, 3),
        (2,),
        (0,),
    )


def test_ambiguous_clips_are_trained_on_if_asked_and_never_tested(tiny_shards: Index) -> None:
    index = with_splits(tiny_shards, "ambiguous", "fold1", "fold2", "fold3")
    assert fold_numbers(index) == [1, 2, 3]
    assert fold_clips(index, 1).train.shards == (2, 3)
    asked = fold_clips(index, 1, ambiguous=True)
    assert (asked.train.shards, asked.test.shards) == ((0, 2, 3), (1,))


def test_overlay_replaces_the_splits(tiny_shards: Index) -> None:
    folds = fold_overlay(tiny_shards, 3)
    assert fold_numbers(tiny_shards, folds) == [1, 2, 3]
    clips = fold_clips(tiny_shards, 2, folds)
    test, train = (clip_keys(tiny_shards, part) for part in (clips.test, clips.train))
    assert test == [key for key, fold in folds.fold_of.items() if fold == 2]
    assert train == [key for key, fold in folds.fold_of.items() if fold != 2]
    assert clips.val is None and clips.left_out == ()


def test_overlay_with_the_sets_own_folds_gives_the_same_stream(tiny_shards: Index) -> None:
    own = {k: fold_clips(tiny_shards, k) for k in fold_numbers(tiny_shards)}
    fold_of = {key: k for k in own for key in clip_keys(tiny_shards, own[k].test)}
    folds = FoldOverlay("own", "dfew", tiny_shards.hash, "file", 5, fold_of).signed()
    for k, clips in own.items():
        assert fold_clips(tiny_shards, k, folds) == clips


def test_ambiguous_clips_of_a_tested_group_are_not_trained_on(tiny_shards: Index) -> None:
    index = with_splits(tiny_shards, "ambiguous", "fold1", "fold2")
    folds = fold_overlay(index, 2)
    usual, asked = fold_clips(index, 1, folds), fold_clips(index, 1, folds, ambiguous=True)
    assert clip_keys(index, usual.test) == clip_keys(index, asked.test)
    assert 0 not in asked.test.shards
    assert set(clip_keys(index, asked.train)) - set(clip_keys(index, usual.train)) == {
        key for key in index.sidecar(0)["key"].to_pylist() if folds.fold_of[key] == 2
    }


def test_ranks_share_the_same_global_batches_of_parts_of_shards(tiny_shards: Index) -> None:
    clips = fold_clips(tiny_shards, 1, fold_overlay(tiny_shards, 3, shift=1)).train
    plan = EpochPlan(clips, seed=5, epoch=0, global_batch=8, block=2)
    batches = {world: global_batches(plan, world) for world in (1, 2, 4)}
    assert batches[1] == batches[2] == batches[4]
    refs = {(ref.shard, ref.row) for batch in batches[1][:5] for ref in batch}
    parts = zip(clips.shards, clips.rows, strict=True)
    assert refs == {(i, int(row)) for i, rows in parts if rows is not None for row in rows}
    assert len(refs) == 40 and len(batches[1]) == 10


def global_batches(plan: EpochPlan, world: int) -> list[list[SampleRef]]:
    """Two epochs as ``world`` ranks request them, one step in each row."""
    lanes = [plan.lanes(range(rank, rank + 1), world) for rank in range(world)]
    of_ranks = [training_requests(plan, own, 8 // world, (0, 0), 2) for own in lanes]
    return [[ref for part in parts for ref in part] for parts in zip(*of_ranks, strict=True)]
