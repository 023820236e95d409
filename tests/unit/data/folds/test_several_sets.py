"""Folds of several sets: each set's own, apart from each other, without clips of no class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dfer_dist.config.schema import ExtraClasses
from dfer_dist.data.captions.store import clip_keys
from dfer_dist.data.folds.clips import clips_of_set, fold_clips, fold_numbers, set_clips
from dfer_dist.data.loading.sampler import ClipSet
from dfer_dist.data.shards.index import Index
from dfer_dist.data.shards.joint import JointIndex, join, with_classes
from dfer_dist.utils.errors import UserError
from tests.helpers.data.folds import fold_overlay
from tests.helpers.data.sets import pack_other


@pytest.fixture(scope="module")
def other(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return pack_other(tiny_source, tmp_path_factory.mktemp("other") / "shards")


@pytest.fixture(scope="module")
def joint(tiny_shards: Index, other: Index) -> JointIndex:
    return join([tiny_shards, other], ExtraClasses.leave_out)


def labels(index: Index, clips: ClipSet) -> list[int]:
    found = []
    for shard, rows in zip(clips.shards, clips.rows, strict=True):
        own = index.sidecar(shard)["label"].to_pylist()
        found += own if rows is None else [own[row] for row in rows]
    return found


def test_fold_trains_on_the_same_fold_of_each_set(
    tiny_shards: Index, other: Index, joint: JointIndex
) -> None:
    assert fold_numbers(joint) == [1, 2, 3, 4, 5]
    for fold in (1, 4):
        clips = fold_clips(joint, fold)
        first = fold_clips(tiny_shards, fold)
        assert clips.test == first.test
        assert clips_of_set(joint, clips.train, 0) == first.train
        trained = set(clip_keys(other, clips_of_set(joint, clips.train, 1)))
        tested = set(clip_keys(other, set_clips(joint, 1, fold).test))
        assert (len(trained), len(tested)) == (32, 8)
        assert not trained & tested
        assert tested < set(clip_keys(other, fold_clips(other, fold).test))
    assert sum(len(set_clips(joint, 1, fold).test) for fold in range(1, 6)) == 40


def test_clips_without_a_class_are_nowhere(other: Index, joint: JointIndex) -> None:
    for clips in (fold_clips(joint, 3), set_clips(joint, 1, 3)):
        index = joint if len(clips.train) > 40 else joint.one_set(1)
        for part in (clips.train, clips.test):
            assert min(labels(index, part)) >= 0
    alone = with_classes(other, ("sadness", "fear"))
    clips = fold_clips(alone, 3)
    assert sorted(labels(alone, clips.train)) == [0] * 8 + [1] * 8
    assert (len(clips.test), alone.lost_classes(0)) == (
        4,
        {"Angry": 10, "contempt": 10, "Happy": 10},
    )


def test_kept_classes_leave_every_clip(tiny_shards: Index, other: Index) -> None:
    joint = join([tiny_shards, other], ExtraClasses.keep)
    train = fold_clips(joint, 2).train
    assert clips_of_set(joint, train, 1) == fold_clips(other, 2).train
    assert sorted(set(labels(joint, train))) == list(range(8))


def test_set_with_one_fold_has_it_in_every_fold(
    tiny_shards: Index, tiny_source: Path, tmp_path: Path
) -> None:
    single = pack_other(tiny_source, tmp_path / "single", one_fold=True)
    joint = join([tiny_shards, single], ExtraClasses.keep)
    parts = [set_clips(joint, 1, fold) for fold in (1, 5)]
    assert parts[0] == parts[1] == fold_clips(single, 1)
    assert (len(parts[0].train), len(parts[0].test)) == (40, 10)
    assert fold_numbers(join([single, replace(tiny_shards, name="x")], ExtraClasses.keep)) == [1]


def test_overlay_is_of_the_first_set(tiny_shards: Index, other: Index, joint: JointIndex) -> None:
    folds = fold_overlay(tiny_shards, 3)
    assert fold_numbers(joint, folds) == [1, 2, 3]
    clips = fold_clips(joint, 2, folds)
    expected = fold_clips(tiny_shards, 2, folds)
    assert clip_keys(tiny_shards, clips.test) == clip_keys(tiny_shards, expected.test)
    own, of_other = clips_of_set(joint, clips.train, 1), set_clips(joint, 1, 2).train
    assert clip_keys(other, own) == clip_keys(other, of_other)
    with pytest.raises(UserError, match="other has 5 folds, and there is a fold 6: give sets"):
        fold_clips(joint, 6, fold_overlay(tiny_shards, 6))
