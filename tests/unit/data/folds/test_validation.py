"""A part of the training clips to validate on: no test clip, no group in two parts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dfer_dist.data.folds import validation
from dfer_dist.data.folds.clips import fold_clips
from dfer_dist.data.folds.overlay import FoldOverlay
from dfer_dist.data.folds.packed import PackedClips, check_overlay, read_packed
from dfer_dist.data.folds.validation import make_validation
from dfer_dist.data.loading.sampler import clip_keys
from dfer_dist.data.shards.index import Index
from dfer_dist.utils.errors import UserError
from tests.helpers.data.folds import fold_overlay


def parts(index: Index, overlay: FoldOverlay) -> tuple[set[str], set[str]]:
    """Return the keys that the only fold of an overlay trains on and tests."""
    assert overlay.numbers == [1]
    assert not [w for w in check_overlay(overlay, index, read_packed(index), "x") if "fold 2" in w]
    clips = fold_clips(index, 1, overlay, ambiguous=True)
    return set(clip_keys(index, clips.train)), set(clip_keys(index, clips.test))


@pytest.mark.parametrize(("folds", "sizes"), [([1], (38, 10)), ([2, 4], (28, 8))])
def test_validation_part_is_a_fifth_of_what_all_folds_train_on(
    tiny_shards: Index, folds: list[int], sizes: tuple[int, int]
) -> None:
    overlay = make_validation(tiny_shards, folds, None, seed=0)
    train, val = parts(tiny_shards, overlay)
    assert (len(train), len(val)) == sizes
    left = [set(clip_keys(tiny_shards, fold_clips(tiny_shards, k).test)) for k in folds]
    assert not train & val
    assert train | val == set(read_packed(tiny_shards).keys) - set.union(*left)
    assert make_validation(tiny_shards, folds, None, seed=0) == overlay
    assert parts(tiny_shards, make_validation(tiny_shards, folds, None, seed=1))[1] != val


def test_own_validation_and_ambiguous_clips_are_not_validated_on(tiny_shards: Index) -> None:
    splits = ["test", "val", "ambiguous"] + ["train"] * 12
    shards = zip(tiny_shards.shards, splits, strict=True)
    index = replace(tiny_shards, shards=tuple(replace(s, split=split) for s, split in shards))
    train, val = parts(index, make_validation(index, [1], None, seed=0))
    test, own_val, ambiguous = (set(index.sidecar(i)["key"].to_pylist()) for i in range(3))
    assert not (train | val) & (test | own_val)
    assert ambiguous <= train


def test_folds_without_a_common_training_clip_are_named(tiny_shards: Index) -> None:
    folds = tiny_shards.folds
    with pytest.raises(UserError, match=f"by all of folds {', '.join(map(str, folds))}: give few"):
        make_validation(tiny_shards, folds, None, seed=0)


def test_groups_stay_together(tiny_shards: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = read_packed(tiny_shards)
    groups = [str(int(key) // 10 % 3) for key in clips.keys]
    grouped = PackedClips(clips.keys, clips.labels, clips.testable, groups)
    monkeypatch.setattr(validation, "read_packed", lambda _: grouped)
    seen = set()
    for seed in range(3):
        overlay = make_validation(tiny_shards, [1], None, seed)
        train, val = parts(tiny_shards, overlay)
        found = [{overlay.group_of[key] for key in part} for part in (train, val)]
        assert not found[0] & found[1] and len(found[1]) == 1
        seen |= found[1]
    assert seen == {"0", "1", "2"}
    one = PackedClips(clips.keys, clips.labels, clips.testable, ["same"] * 60)
    monkeypatch.setattr(validation, "read_packed", lambda _: one)
    with pytest.raises(UserError, match="have 1 group: two are needed"):
        make_validation(tiny_shards, [1], None, seed=0)


def test_folds_of_a_file_count(tiny_shards: Index) -> None:
    own = fold_overlay(tiny_shards, 3)
    train, val = parts(tiny_shards, make_validation(tiny_shards, [2], own, seed=0))
    assert train | val == {key for key, fold in own.fold_of.items() if fold != 2}


def test_other_files_may_leave_no_clip_out(tiny_shards: Index) -> None:
    overlay = make_validation(tiny_shards, [1], None, seed=0)
    other = replace(overlay, made_by="file")
    with pytest.raises(UserError, match="is in fold -1, but folds are 1 to 1"):
        check_overlay(other, tiny_shards, read_packed(tiny_shards), "x")
